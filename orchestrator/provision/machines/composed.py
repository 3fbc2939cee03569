"""The common implementation of all drivers: networks, an image's layers, a machine per node."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from orchestrator.core import paths
from orchestrator.core.errors import UserError
from orchestrator.image import ident
from orchestrator.image.layers import Layers, unmount_below
from orchestrator.profile import Node, Profile
from orchestrator.provision.identity import BootFile
from orchestrator.provision.machines import PowerState, cgroup, netns
from orchestrator.provision.machines.network import Cables
from orchestrator.provision.machines.processes import Process, children, kill

_Cables = TypeVar("_Cables", bound=Cables)


class Machine(Protocol):
    """One machine; its members mean the same as those of `Driver`, for a single node."""

    @property
    def netboots(self) -> bool: ...
    @property
    def boot_timeout(self) -> float: ...
    @property
    def console_place(self) -> str: ...
    def plug(self) -> None: ...
    def state(self) -> PowerState: ...
    def leader(self) -> int: ...
    def why_shared(self) -> str: ...
    def trouble(self) -> UserError | None: ...
    def power_on(self, files: dict[str, BootFile]) -> None: ...
    def power_off(self, timeout: float) -> None: ...
    def clear(self) -> None: ...


@dataclass(frozen=True)
class SeparateMachine:
    """The base of machines with a kernel of their own, which boot over the network."""

    node: Node
    home: Path

    netboots = True

    def why_shared(self) -> str:
        return ""

    def leader(self) -> int:
        raise UserError(
            f"{self.node.name} is a separate machine: its processes do not run on this one",
            f"Reach it over SSH: orchestrate node ssh {self.node.name}",
        )


class Driver:
    """What `up` and `down` need of machines; every method is idempotent. All its files are below
    the cluster's directory `machines`.

    `kind`: the profile's word for it; `machine` makes the machine of a node; `remember` is called
    at the end of `prepare`; `why_shared`: after `prepare`, why containers share this machine's
    root, in a line; empty if not.
    """

    def __init__(
        self,
        kind: str,
        profile: Profile,
        cables: _Cables,
        machine: Callable[[Node, Path, _Cables, Layers], Machine],
        remember: Callable[[], None] = lambda: None,
    ) -> None:
        netns.host()
        self.kind = kind
        self.profile = profile
        self.home = home(profile)
        self.cables: Cables = cables
        self.remember = remember
        self.layers = Layers(self.home)
        self.why_shared = ""
        self.machines = {
            node.name: machine(node, self.home / node.name, cables, self.layers)
            for node in profile.nodes
        }

    @property
    def boot_timeout(self) -> float:
        """Seconds that a machine may take from power-on to SSH."""
        return max(machine.boot_timeout for machine in self.machines.values())

    def check_rights(self) -> None:
        """Raises UserError unless the user is root."""
        if os.geteuid() != 0:
            raise UserError(
                "machines need root (network namespaces, mounts, containers)",
                "Run: sudo --preserve-env orchestrate ...",
            )

    def prepare(self, image: Path) -> None:
        """Make what machines share: networks, mounted layers. Left-overs are reused or removed."""
        self.check_rights()
        self._end_left()
        self._make_way(image)
        self.layers.mount(image)
        self.why_shared = self.machines[self.profile.control.name].why_shared()
        write_kind(self.profile, self.kind)
        self.cables.make()
        for machine in self.machines.values():
            machine.plug()
        self.remember()

    def _make_way(self, image: Path) -> None:
        """Remove what another image or driver left. Raises UserError if machines of it run."""
        mounted = self.layers.ident()
        if mounted in (None, ident(image)) and recorded_kind(self.profile) in (None, self.kind):
            return
        if any(self.running(node) for node in self.profile.nodes):
            raise UserError(
                f"{self.profile.name} runs on another image ({(mounted or '')[:12]})",
                "Run: orchestrate down, then up again",
            )
        self.cleanup()

    def _end_left(self) -> None:
        """End simulated machines of nodes that the profile does not have any more."""
        records = self.home.glob("*/process.json")
        for place in [each.parent for each in records if each.parent.name not in self.machines]:
            pid = Process(place / "process.json").pid()
            if pid is not None:
                kill([*children(pid), pid])
            unmount_below(place)
            cgroup.remove(self.cables.named(place.name))
            netns.delete(self.cables.named(place.name))
            shutil.rmtree(place)

    def network(self) -> AbstractContextManager[None]:
        """Enter the network namespace that reaches the cluster; only the calling thread does."""
        return netns.entered(self.cables.named(self.profile.control.name))

    def netboots(self, node: Node) -> bool:
        """Whether the machine boots over the network, from the control node."""
        return self.machines[node.name].netboots

    def console(self, node: Node) -> str:
        """Where to find the machine's console: a log file's path, or a sentence."""
        return self.machines[node.name].console_place

    def state(self, node: Node) -> PowerState:
        """Whether the machine has power. For a real machine this may take seconds."""
        return self.machines[node.name].state()

    def running(self, node: Node) -> bool:
        return self.state(node) == PowerState.ON

    def trouble(self, node: Node) -> UserError | None:
        """Why a machine with power will not come up; None if no reason is known."""
        return self.machines[node.name].trouble()

    def leader(self, node: Node) -> int:
        """The process id, on this machine, of the node's PID 1.

        Raises UserError if the node does not run, or has a kernel of its own.
        """
        return self.machines[node.name].leader()

    def power_on(self, node: Node, files: dict[str, BootFile]) -> None:
        """Switch on and boot the image. `files`: the node's boot files, by path in its root; none
        of a node that netboots. Raises UserError if a real machine cannot be switched on."""
        if not self.running(node):
            self.machines[node.name].power_on(files)

    def power_off(self, node: Node, *, timeout: float = 20) -> None:
        """Shut down; cut the power after `timeout` seconds, or at once if it is 0.

        A real machine gets the profile's `power.off_timeout_s` instead. Raises UserError if a real
        machine cannot be switched off from here.
        """
        self.machines[node.name].power_off(timeout)

    def cleanup(self) -> None:
        """Remove everything that `prepare` made. The machines must be off."""
        self._end_left()
        for machine in self.machines.values():
            machine.clear()
        self.cables.remove()
        unmount_below(self.home)
        shutil.rmtree(self.home, ignore_errors=True)


def home(profile: Profile) -> Path:
    """The directory with the state of a cluster's machines on this host."""
    return paths.cluster(profile.name) / "machines"


def recorded_kind(profile: Profile) -> str | None:
    """The driver that the cluster was prepared with; None if it is down."""
    record = home(profile) / "kind"
    return record.read_text() if record.exists() else None


def write_kind(profile: Profile, kind: str) -> None:
    (home(profile) / "kind").write_text(kind)
