"""How machines get power and the image: a driver a kind, named by the profile's `machines`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from orchestrator.errors import BadInput, UserError

if TYPE_CHECKING:
    from orchestrator.identity import BootFile
    from orchestrator.profile import Node, Profile


class Driver(Protocol):
    """What `up` and `down` ask of machines. Every method may be called again safely."""

    @property
    def kind(self) -> str:
        """Its name in profiles."""

    @property
    def boot_timeout(self) -> float:
        """Seconds that a machine may take from power to SSH."""

    def prepare(self, image: Path) -> None:
        """Make what machines share: networks, mounted layers. Left-overs are taken or removed."""

    def network(self) -> AbstractContextManager[None]:
        """Enter the network that the cluster is reached from; for the calling thread only."""

    def netboots(self, node: Node) -> bool:
        """Whether the machine gets image and identity from the control node, over the network."""

    def running(self, node: Node) -> bool:
        """Whether the machine has power."""

    def power_on(self, node: Node, files: dict[str, BootFile]) -> None:
        """Boot the image; `files` is what the node gets at boot (identity, addresses).

        Empty for a node that netboots.
        """

    def power_off(self, node: Node, *, timeout: float = 20) -> None:
        """Shut down in order; by force after `timeout` seconds."""

    def cleanup(self) -> None:
        """Remove all that prepare made. Machines are off by then."""

    def leader(self, node: Node) -> int:
        """The process id here of the machine's PID 1.

        Raises UserError where it does not run, or has a kernel of its own.
        """

    def console(self, node: Node) -> Path:
        """The log of the machine's console."""


def driver(profile: Profile, kind: str | None = None) -> Driver:
    """The driver `kind`; else the one that the cluster runs with; else the profile's.

    Raises BadInput for a kind that this version does not have, UserError where the cluster runs
    with another one.
    """
    from orchestrator.machines.nspawn import Container
    from orchestrator.machines.qemu import machine
    from orchestrator.machines.simulator import Simulator, recorded_kind

    kinds = {"nspawn": Container, "qemu": machine}
    recorded = recorded_kind(profile)
    chosen = kind or recorded or profile.machines
    if chosen not in kinds:
        where = "--machines" if kind else f"{profile.path}: machines"
        raise BadInput(
            f"{where}: {chosen!r} is not a driver of this version", f"Allowed: {', '.join(kinds)}"
        )
    if recorded in kinds and recorded != chosen:
        other = Simulator(recorded, profile, kinds[recorded])
        if any(other.running(node) for node in profile.nodes):
            raise UserError(
                f"{profile.name} runs with machines: {recorded}",
                f"Run: orchestrate down, then up --machines {chosen}",
            )
    return Simulator(chosen, profile, kinds[chosen])
