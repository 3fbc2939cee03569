"""The driver `nspawn`: simulated machines as systemd-nspawn containers that boot the real image.

Each has its own PID, mount, UTS and network namespace: Ray finds its local daemon by scanning
/proc, so nodes must not see each other's processes. The root is an overlay of the image's layers
with a writable tmpfs, as on a netbooted node.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.core import paths
from orchestrator.core.errors import UserError
from orchestrator.core.run import run
from orchestrator.core.source import display
from orchestrator.core.waiting import as_long_as
from orchestrator.image.layers import Layers, unmount_below
from orchestrator.node.paths import FILES_ROOT, LASTING
from orchestrator.profile import Node, Profile
from orchestrator.provision.identity import BootFile
from orchestrator.provision.machines import PowerState, cgroup, netns, userns
from orchestrator.provision.machines.composed import Driver
from orchestrator.provision.machines.network import Cables, prefix
from orchestrator.provision.machines.processes import Process, children, ended, kill
from orchestrator.provision.machines.switch import Switch
from orchestrator.provision.machines.userns import Unmappable

#: The size limit of a node's writable tmpfs, as a share of this machine's memory.
OVERLAY_SIZE = "50%"
#: Rights of root that systemd-nspawn leaves and nothing in an image needs.
UNNEEDED = (
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_WRITE",
    "CAP_DAC_READ_SEARCH",
    "CAP_IPC_OWNER",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MKNOD",
    "CAP_NET_BROADCAST",
    "CAP_SETFCAP",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TTY_CONFIG",
)
#: In its own user namespace, systemd needs it to give services file systems of their own. On this
#: machine it would be all rights.
NAMESPACED = "CAP_SYS_ADMIN"
#: System calls that systemd-nspawn allows and nothing in an image needs.
REFUSED_CALLS = (
    "@keyring",
    "@module",
    "@raw-io",
    "@reboot",
    "@swap",
    "bpf",
    "fanotify_init",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "kexec_load",
    "open_by_handle_at",
    "perf_event_open",
    "quotactl",
    "userfaultfd",
)
#: Seconds for nspawn to make a container's namespaces.
START_TIMEOUT = 60.0


@dataclass(frozen=True)
class Container:
    """One node as a container. All its files are below `home`."""

    node: Node
    home: Path
    cables: Cables
    layers: Layers
    #: Root in it may be root on this machine, where the kernel knows no better.
    may_share_root: bool = True

    netboots = False
    boot_timeout = 300.0

    @property
    def console(self) -> Path:
        return self.home / "console.log"

    @property
    def unique(self) -> str:
        return self.cables.named(self.node.name)

    @property
    def root(self) -> Path:
        return self.home / "root"

    @property
    def process(self) -> Process:
        return Process(self.home / "process.json")

    def plug(self) -> None:
        """A run that was killed may have started the container and not connected it."""
        try:
            if self._is_unplugged():
                self._plug_started()
        except UserError:
            self.power_off(0)
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
        try:
            first = userns.base(self.unique)
            shown = self._mapped(first, self.home / "mapped")
        except Unmappable as error:
            self._must_be_confined(str(error))
            first, shown = userns.HOST, self._shown()
        layers = shown[: len(self.layers.places())]
        self._mount(layers, files, first)
        with netns.entered(netns.host()):
            self._start(first, served=shown[len(layers) :])
        try:
            self._plug_started()
        except UserError:
            self.power_off(0)
            raise

    def why_shared(self) -> str:
        """Why root in the container is root here, in a line; empty: it is not.

        Raises UserError if the profile does not accept that.
        """
        trial = self.home / "trial"
        try:
            self._mapped(userns.base(self.unique), trial)
        except Unmappable as error:
            self._must_be_confined(str(error))
            return f"root in containers is root here, with fewer rights: {error}"
        finally:
            unmount_below(trial)
        return ""

    def _must_be_confined(self, reason: str) -> None:
        """Raises UserError unless root in the container may be root here, for this reason."""
        if not self.may_share_root:
            profile = self.cables.profile
            raise UserError(
                f"{profile.where('machines')}: root in the container of {self.node.name} would be"
                f" root on this machine, which cannot map ids: {reason}",
                "Use a newer kernel (Debian 13's). Or accept the risk: set"
                f" `accept_root_on_host: true` in {display(profile.path)}.",
            )

    def _shown(self) -> list[Path]:
        """What the container sees and cannot change: the layers; then what the control node
        serves."""
        places = self.layers.places()
        if self.cables.profile.is_control(self.node):
            served = paths.served(self.cables.profile.name)
            served.mkdir(parents=True, exist_ok=True)
            places.append(served)
        return places

    def _mapped(self, first: int, below: Path) -> list[Path]:
        """The same, mounted again `below`, with this container's ids, which begin at `first`."""
        places = []
        for number, source in enumerate(self._shown()):
            place = below / str(number)
            place.mkdir(parents=True, exist_ok=True)
            userns.map_mount(source, place, first)
            places.append(place)
        return places

    def _mount(self, layers: Sequence[Path], files: dict[str, BootFile], first: int) -> None:
        """Mount the root: the layers below a tmpfs with the boot files."""
        overlay = self.home / "overlay"
        for directory in (overlay, self.root):
            directory.mkdir(parents=True, exist_ok=True)
        run(["mount", "-t", "tmpfs", "-o", f"mode=755,size={OVERLAY_SIZE}", "tmpfs", overlay])
        upper = overlay / "upper"
        work = overlay / "work"
        for directory in (upper, work):
            directory.mkdir()
        write_boot_files(upper, files)
        userns.give(overlay, first)
        lower = ":".join(str(place) for place in reversed(layers))
        options = f"lowerdir={lower},upperdir={upper},workdir={work}"
        run(["mount", "-t", "overlay", "-o", options, "overlay", self.root], what="mount the root")
        for place in (FILES_ROOT, LASTING):
            make_mount_point(self.root, place, first)

    def _start(self, first: int, served: Sequence[Path]) -> None:
        argv = [
            "systemd-nspawn",
            "--quiet",
            "--boot",
            f"--directory={self.root}",
            f"--machine={self.cables.named(self.node.host_name)}",
            f"--hostname={self.node.host_name}",
            # A bind mount's missing parents would belong to this machine's root.
            "--tmpfs=/run/orchestrate:mode=755",
            f"--bind-ro={self.layers.ident_file}:/run/orchestrate/image-id",
            *confinement(first),
            # Independent of this machine's systemd-machined, resolver, time zone and journal.
            "--register=no",
            "--resolv-conf=off",
            "--timezone=off",
            "--link-journal=no",
            "--console=pipe",
            *(f"--bind-ro={place}:{FILES_ROOT}" for place in served),
        ]
        if self.cables.profile.is_control(self.node):
            lasting = paths.lasting(self.cables.profile.name)
            lasting.mkdir(parents=True, exist_ok=True)
            userns.give(lasting, first)
            argv.append(f"--bind={lasting}:{LASTING}")
        if not cgroup.SYSTEMD_RUNS.is_dir():
            argv = cgroup.starting_in(self.unique, [*argv, "--keep-unit"])
        self.console.unlink(missing_ok=True)
        # A writable /proc/sys/net: with boot.nat, the control node enables IP forwarding.
        env = {"SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network"}
        self.process.start(argv, log=self.console, env=env)

    def _is_unplugged(self) -> bool:
        """Whether it runs in a network namespace that is not the one of the node's name."""
        pid = self.process.pid()
        inside = self._inside(pid) if pid is not None else []
        return pid is not None and not (inside and netns.is_called(inside[0], self.unique))

    def _plug_started(self) -> None:
        """Give the container's network namespace the node's name and links.

        It belongs to the container's user namespace, so it cannot be there before. Limits of its
        links stay. Raises UserError if the container does not start.
        """
        pid = self.process.pid()
        own: list[int] = []

        def starting() -> bool:
            own[:] = [each for each in self._inside(pid) if netns.differ(each, pid)] if pid else []
            return not own and self.process.pid() is not None

        as_long_as(starting, START_TIMEOUT, 0.01)
        if not own:
            raise UserError(f"{self.node.name} does not start", f"Its console: {self.console}")
        limits = self.cables.throttled(self.node)
        self.cables.unplug(self.node)
        netns.adopt(self.unique, own[0])
        self.cables.plug_namespace(self.node)
        for network, limit in limits.items():
            self.cables.throttle(self.node, network, limit)

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
        cgroup.remove(self.unique)
        self.process.record.unlink(missing_ok=True)


def write_boot_files(upper: Path, files: dict[str, BootFile]) -> None:
    for name, file in files.items():
        path = upper / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(file.content)
        path.chmod(file.mode)


def make_mount_point(root: Path, place: str, first: int) -> None:
    """Make a directory below an image's root, and its missing parents; they belong to its root."""
    path = root
    for name in place.strip("/").split("/"):
        path /= name
        if not path.is_dir():
            path.mkdir()
            os.chown(path, first, first)


def confinement(first: int) -> list[str]:
    """systemd-nspawn's options for what root may do in a container with the ids from `first`."""
    mapped = first != userns.HOST
    unneeded = UNNEEDED if mapped else (*UNNEEDED, NAMESPACED)
    return [
        f"--private-users={first}:{userns.SIZE}" if mapped else "--tmpfs=/run/lock:mode=1777",
        "--private-network",  # made in that user namespace, so that its root may configure it
        "--capability=CAP_NET_ADMIN",  # systemd-networkd sets the addresses, nft the firewall
        f"--drop-capability={','.join(unneeded)}",
        "--no-new-privileges=yes",
        f"--system-call-filter=~{' '.join(REFUSED_CALLS)}",
    ]


def cluster(profile: Profile) -> Driver:
    """The driver `nspawn`: every node is a container."""
    return Driver("nspawn", profile, Switch(profile, prefix(profile)), Container)
