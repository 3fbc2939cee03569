"""Simulated machines as containers that boot the very image with systemd.

Each has its own PID, mount, UTS and network namespace: Ray finds its local daemon by scanning
/proc, so hosts must not see each other's processes. The root is the image's layers under an overlay
on tmpfs, as on a netbooted node.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator import paths
from orchestrator.errors import UserError
from orchestrator.image import ident
from orchestrator.machines import cgroup, netns
from orchestrator.run import run

if TYPE_CHECKING:
    from orchestrator.identity import BootFile
    from orchestrator.profile import Node, Profile

#: What a machine's changes to its root may take of this machine's memory.
OVERLAY_SIZE = "50%"
#: Seconds for a killed process to be gone.
KILL_TIMEOUT = 10.0


class Nspawn:
    """The driver `nspawn`. All it makes lies under the cluster's directory `machines`."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.home = paths.cluster(profile.name) / "machines"
        self.prefix = f"orchestrate-{profile.name}"

    # Shared: networks and layers.

    def prepare(self, image: Path) -> None:
        require_root()
        self._mount_layers(image)
        self._make_networks()

    def network(self) -> AbstractContextManager[None]:
        return netns.entered(self._unique(self.profile.control))

    def cleanup(self) -> None:
        for node in self.profile.nodes:
            self._clear(node)
            netns.delete(self._unique(node))
        netns.delete(self._switch)
        for mounted in sorted(mounts_below(self.home), reverse=True):
            run(["umount", "--lazy", mounted], what="unmount")
        shutil.rmtree(self.home, ignore_errors=True)

    def _mount_layers(self, image: Path) -> None:
        """Mount each layer once for all machines, the page cache is shared so."""
        wanted = ident(image)
        record = self.home / "image"
        if record.exists() and record.read_text() != wanted:
            if any(self.running(node) for node in self.profile.nodes):
                raise UserError(
                    f"{self.profile.name} runs on another image ({record.read_text()[:12]})",
                    "Run: orchestrate down, then up again",
                )
            self.cleanup()
        self.home.mkdir(parents=True, exist_ok=True)
        present = mounts_below(self.home)
        for layer in self._layers(image):
            place = self.home / "layers" / layer["name"]
            place.mkdir(parents=True, exist_ok=True)
            if str(place) not in present:
                source = (image / layer["file"]).resolve()
                options = ["-t", "squashfs", "-o", "ro,loop"]
                run(["mount", *options, source, place], what=f"mount the layer {layer['name']}")
        (self.home / "manifest.json").write_bytes((image / "manifest.json").read_bytes())
        record.write_text(wanted)

    def _layers(self, image: Path) -> list[dict[str, str]]:
        layers: list[dict[str, str]] = json.loads((image / "manifest.json").read_text())["layers"]
        return layers

    @property
    def _switch(self) -> str:
        return f"{self.prefix}-switch"

    def _unique(self, node: Node) -> str:
        """A name that no other cluster's machine has: of its namespace, container and cgroup."""
        return f"{self.prefix}-{node.name}"

    def _make_networks(self) -> None:
        """A bridge for each network, all in one namespace; a veth from it into each node's."""
        netns.create(self._switch)
        for index, network in enumerate(self.profile.networks):
            self._make_bridge(f"br{index}")
            members = [node for node in self.profile.nodes if network in node.links]
            for number, node in enumerate(members):
                self._plug(node, network, f"br{index}", f"port{index}-{number}")

    def _make_bridge(self, bridge: str) -> None:
        if not link_exists(self._switch, bridge):
            run(["ip", "-n", self._switch, "link", "add", bridge, "type", "bridge"])
            run(["ip", "-n", self._switch, "link", "set", bridge, "up"])

    def _plug(self, node: Node, network: str, bridge: str, port: str) -> None:
        space, link = self._unique(node), node.links[network]
        netns.create(space)
        if link_exists(space, link.interface):
            return
        peer = ["peer", "name", port, "netns", self._switch]
        add = ["link", "add", link.interface, "address", link.mac, "type", "veth", *peer]
        run(["ip", "-n", space, *add], what=f"plug {node.name} into {network}")
        run(["ip", "-n", self._switch, "link", "set", port, "master", bridge, "up"])

    # One machine.

    def console(self, node: Node) -> Path:
        return self.home / node.name / "console.log"

    def running(self, node: Node) -> bool:
        return self._pid(node) is not None

    def leader(self, node: Node) -> int:
        """The process id, on this machine, of the node's PID 1."""
        pid = self._pid(node)
        inside = self._inside(pid) if pid is not None else []
        if not inside:
            raise UserError(f"{node.name} is not running", "Run: orchestrate sim up")
        return inside[0]

    def power_on(self, node: Node, files: dict[str, BootFile]) -> None:
        if self.running(node):
            return
        self._clear(node)
        home = self.home / node.name
        overlay = home / "overlay"
        root = home / "root"
        for directory in (overlay, root):
            directory.mkdir(parents=True, exist_ok=True)
        run(["mount", "-t", "tmpfs", "-o", f"mode=755,size={OVERLAY_SIZE}", "tmpfs", overlay])
        upper = overlay / "upper"
        work = overlay / "work"
        for directory in (upper, work):
            directory.mkdir()
        write_boot_files(upper, files)
        names = [layer["name"] for layer in self._layers(self.home)]
        lower = ":".join(str(self.home / "layers" / name) for name in reversed(names))
        options = f"lowerdir={lower},upperdir={upper},workdir={work}"
        run(["mount", "-t", "overlay", "-o", options, "overlay", root], what="mount the root")
        self._start(node, root)

    def _start(self, node: Node, root: Path) -> None:
        argv = [
            "systemd-nspawn",
            "--quiet",
            "--boot",
            f"--directory={root}",
            f"--machine={self._unique(node)}",
            f"--network-namespace-path={netns.DIRECTORY / self._unique(node)}",
            f"--bind-ro={self.home / 'image'}:/run/orchestrate/image-id",
            "--capability=CAP_NET_ADMIN",  # systemd-networkd sets the addresses
            # No systemd-machined, resolver or time zone of this machine is needed, or reached.
            "--register=no",
            "--resolv-conf=off",
            "--timezone=off",
            "--link-journal=no",
            "--console=pipe",
        ]
        if self.profile.is_control(node):
            served = paths.served(self.profile.name)
            served.mkdir(parents=True, exist_ok=True)
            argv.append(f"--bind-ro={served}:/srv/orchestrate")
        if not cgroup.SYSTEMD_RUNS.is_dir():
            argv = cgroup.starting_in(self._unique(node), [*argv, "--keep-unit"])
        with self.console(node).open("wb") as log:
            # Its own session: the container outlives this command, and Ctrl-C is not for it.
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        record = {"pid": process.pid, "started": start_time(process.pid)}
        (self.home / node.name / "process.json").write_text(json.dumps(record))

    def power_off(self, node: Node, *, timeout: float = 20) -> None:
        pid = self._pid(node)
        if pid is not None:
            inside = self._inside(pid)
            if timeout > 0:
                os.kill(pid, signal.SIGTERM)  # nspawn turns it into an orderly shutdown
            if not ended(pid, timeout):
                # PID 1 first: it would outlive nspawn, and takes all in its namespace with it.
                for process in (*inside, pid):
                    with suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)
                    ended(process, KILL_TIMEOUT)
        self._clear(node)

    def _inside(self, pid: int) -> list[int]:
        """The container's PID 1, as nspawn's child."""
        with suppress(FileNotFoundError, ProcessLookupError):
            return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return []

    def _clear(self, node: Node) -> None:
        """Remove the root of a machine that does not run; its console log stays."""
        home = self.home / node.name
        for mounted in sorted(mounts_below(home), reverse=True):
            run(["umount", "--lazy", mounted], what="unmount")
        cgroup.remove(self._unique(node))
        (home / "process.json").unlink(missing_ok=True)

    def _pid(self, node: Node) -> int | None:
        """The container's process, if it is still the one that we started."""
        try:
            record = json.loads((self.home / node.name / "process.json").read_text())
        except (FileNotFoundError, ValueError):
            return None
        pid = int(record["pid"])
        return pid if start_time(pid) == record["started"] else None


def require_root() -> None:
    """Raises UserError for other users: namespaces and mounts need root."""
    if os.geteuid() != 0:
        raise UserError(
            "simulated machines need root (network namespaces, mounts, containers)",
            "Run: sudo --preserve-env orchestrate ...",
        )


def write_boot_files(upper: Path, files: dict[str, BootFile]) -> None:
    """Lay a node's boot files into the upper directory of its root."""
    for name, file in files.items():
        path = upper / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(file.content)
        path.chmod(file.mode)


def mounts_below(directory: Path) -> list[str]:
    """Mount points at or below a directory."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    points = [line.split()[1].replace("\\040", " ") for line in lines]
    return [point for point in points if Path(point).is_relative_to(directory)]


def link_exists(space: str, link: str) -> bool:
    return run(["ip", "-n", space, "link", "show", link], ok=None).code == 0


def start_time(pid: int) -> str | None:
    """When a process started, in clock ticks after boot (proc(5), field 22); None if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]


def ended(pid: int, timeout: float) -> bool:
    """Wait for a process to end; False if it is still there after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while start_time(pid) is not None:
        with suppress(ChildProcessError):  # another command started it
            os.waitpid(pid, os.WNOHANG)
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
