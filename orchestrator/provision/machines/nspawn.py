"""The driver `nspawn`: simulated machines as systemd-nspawn containers that boot the real image.

Each has its own PID, mount, UTS and network namespace: Ray finds its local daemon by scanning
/proc, so nodes must not see each other's processes. The root is an overlay of the image's layers
with a writable tmpfs, as on a netbooted node.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.core import paths
from orchestrator.core.errors import UserError
from orchestrator.core.run import run
from orchestrator.image.layers import Layers, unmount_below
from orchestrator.node.paths import FILES_ROOT, LASTING
from orchestrator.provision.machines import PowerState, cgroup, netns
from orchestrator.provision.machines.composed import Composed
from orchestrator.provision.machines.network import Cables, prefix
from orchestrator.provision.machines.processes import Process, children, ended, kill
from orchestrator.provision.machines.switch import Switch

if TYPE_CHECKING:
    from orchestrator.profile import Node, Profile
    from orchestrator.provision.identity import BootFile

#: The size limit of a node's writable tmpfs, as a share of this machine's memory.
OVERLAY_SIZE = "50%"


@dataclass(frozen=True)
class Container:
    """One node as a container. All its files are below `home`."""

    node: Node
    home: Path
    cables: Cables
    layers: Layers

    netboots = False
    boot_timeout = 300.0

    @property
    def console(self) -> Path:
        return self.home / "console.log"

    @property
    def process(self) -> Process:
        return Process(self.home / "process.json")

    def plug(self) -> None:
        self.cables.plug_namespace(self.node)

    @property
    def console_place(self) -> str:
        return str(self.console)

    def state(self) -> PowerState:
        return PowerState.OFF if self.process.pid() is None else PowerState.ON

    def trouble(self) -> None:
        """None: a container runs or does not."""

    def leader(self) -> int:
        pid = self.process.pid()
        inside = self._inside(pid) if pid is not None else []
        if not inside:
            raise UserError(f"{self.node.name} is not running", "Run: orchestrate up")
        return inside[0]

    def power_on(self, files: dict[str, BootFile]) -> None:
        self.clear()
        overlay = self.home / "overlay"
        root = self.home / "root"
        for directory in (overlay, root):
            directory.mkdir(parents=True, exist_ok=True)
        run(["mount", "-t", "tmpfs", "-o", f"mode=755,size={OVERLAY_SIZE}", "tmpfs", overlay])
        upper = overlay / "upper"
        work = overlay / "work"
        for directory in (upper, work):
            directory.mkdir()
        write_boot_files(upper, files)
        lower = ":".join(str(place) for place in reversed(self.layers.places()))
        options = f"lowerdir={lower},upperdir={upper},workdir={work}"
        run(["mount", "-t", "overlay", "-o", options, "overlay", root], what="mount the root")
        self._start(root)

    def _start(self, root: Path) -> None:
        unique = self.cables.named(self.node.name)
        argv = [
            "systemd-nspawn",
            "--quiet",
            "--boot",
            f"--directory={root}",
            f"--machine={self.cables.named(self.node.host_name)}",
            f"--network-namespace-path={netns.DIRECTORY / unique}",
            f"--bind-ro={self.layers.ident_file}:/run/orchestrate/image-id",
            "--capability=CAP_NET_ADMIN",  # systemd-networkd sets the addresses
            # Independent of this machine's systemd-machined, resolver, time zone and journal.
            "--register=no",
            "--resolv-conf=off",
            "--timezone=off",
            "--link-journal=no",
            "--console=pipe",
        ]
        profile = self.cables.profile
        if profile.is_control(self.node):
            served = paths.served(profile.name)
            served.mkdir(parents=True, exist_ok=True)
            argv.append(f"--bind-ro={served}:{FILES_ROOT}")
            lasting = paths.lasting(profile.name)
            lasting.mkdir(parents=True, exist_ok=True)
            argv.append(f"--bind={lasting}:{LASTING}")
        if not cgroup.SYSTEMD_RUNS.is_dir():
            argv = cgroup.starting_in(unique, [*argv, "--keep-unit"])
        self.console.unlink(missing_ok=True)
        # A writable /proc/sys/net: with boot.nat, the control node enables IP forwarding.
        env = {"SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network"}
        self.process.start(argv, log=self.console, env=env)

    def power_off(self, timeout: float) -> None:
        pid = self.process.pid()
        if pid is not None:
            inside = self._inside(pid)
            if timeout > 0:
                os.kill(pid, signal.SIGTERM)  # nspawn turns it into an orderly shutdown
            if not ended(pid, timeout):
                # PID 1 first: its end kills all processes in the container, and it would outlive
                # nspawn.
                kill([*inside, pid])
        self.clear()

    def _inside(self, pid: int) -> list[int]:
        """The process id of the container's PID 1, a child of nspawn; empty if there is none."""
        return children(pid)

    def clear(self) -> None:
        """Remove what is left of a container that does not run, except its console log."""
        unmount_below(self.home)
        cgroup.remove(self.cables.named(self.node.name))
        self.process.record.unlink(missing_ok=True)


def write_boot_files(upper: Path, files: dict[str, BootFile]) -> None:
    """Write a node's boot files into the upper directory of its overlay."""
    for name, file in files.items():
        path = upper / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(file.content)
        path.chmod(file.mode)


def cluster(profile: Profile) -> Composed:
    """The driver `nspawn`: every node is a container."""
    return Composed("nspawn", profile, Switch(profile, prefix(profile)), Container)
