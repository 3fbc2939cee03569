"""How machines get power and the image: a driver a kind, named by the profile's `machines`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from orchestrator.errors import BadInput

if TYPE_CHECKING:
    from orchestrator.identity import BootFile
    from orchestrator.profile import Node, Profile


class Driver(Protocol):
    """What `up` and `down` ask of machines. Every method may be called again safely."""

    def prepare(self, image: Path) -> None:
        """Make what machines share: networks, mounted layers. Left-overs are taken or removed."""

    def network(self) -> AbstractContextManager[None]:
        """Enter the network that the cluster is reached from; for the calling thread only."""

    def running(self, node: Node) -> bool:
        """Whether the machine has power."""

    def power_on(self, node: Node, files: dict[str, BootFile]) -> None:
        """Boot the image; `files` is what the node gets at boot (identity, addresses)."""

    def power_off(self, node: Node, *, timeout: float = 20) -> None:
        """Shut down in order; by force after `timeout` seconds."""

    def cleanup(self) -> None:
        """Remove all that prepare made. Machines are off by then."""

    def leader(self, node: Node) -> int:
        """The process id here of the machine's PID 1. Raises UserError where it does not run."""

    def console(self, node: Node) -> Path:
        """The log of the machine's console."""


def driver(profile: Profile) -> Driver:
    """The driver that the profile names.

    Raises BadInput for a kind that this version does not have.
    """
    from orchestrator.machines.nspawn import Nspawn

    kinds = {"nspawn": Nspawn}
    if profile.machines not in kinds:
        raise BadInput(
            f"{profile.path}: machines: {profile.machines!r} is not a driver of this version",
            f"Allowed: {', '.join(kinds)}",
        )
    return kinds[profile.machines](profile)
