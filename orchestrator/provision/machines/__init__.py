"""How machines get power and the image: a driver a kind, named by the profile's `machines`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from orchestrator.core.errors import BadInput, UserError

if TYPE_CHECKING:
    from orchestrator.profile import Node, Profile
    from orchestrator.provision.identity import BootFile
    from orchestrator.provision.machines.network import Cables


class PowerState(StrEnum):
    """Whether a machine has power, as far as that can be known from here."""

    ON = "on"
    OFF = "off"
    #: Switched on, and nothing heard of it yet.
    WAKING = "waking"
    #: It does not answer, and nobody knows why.
    SILENT = "no answer"


class Driver(Protocol):
    """What `up` and `down` ask of machines. Every method may be called again safely."""

    @property
    def kind(self) -> str:
        """Its name in profiles."""

    @property
    def cables(self) -> Cables:
        """What connects the machines."""

    @property
    def boot_timeout(self) -> float:
        """Seconds that a machine may take from power to SSH."""

    def check_rights(self) -> None:
        """Raises UserError where this user may not do what it takes to run machines."""

    def prepare(self, image: Path) -> None:
        """Make what machines share: networks, mounted layers. Left-overs are taken or removed."""

    def network(self) -> AbstractContextManager[None]:
        """Enter the network that the cluster is reached from; for the calling thread only."""

    def netboots(self, node: Node) -> bool:
        """Whether the machine gets image and identity from the control node, over the network."""

    def state(self, node: Node) -> PowerState:
        """Whether the machine has power. Of a real one it may take seconds to find out."""

    def running(self, node: Node) -> bool:
        """Whether the machine is known to have power."""

    def trouble(self, node: Node) -> UserError | None:
        """What keeps a machine with power from coming up; None where nothing is known to."""

    def power_on(self, node: Node, files: dict[str, BootFile]) -> None:
        """Boot the image; `files` is what the node gets at boot (identity, addresses).

        Empty for a node that netboots. Raises UserError where a real machine's power cannot be
        switched.
        """

    def power_off(self, node: Node, *, timeout: float = 20) -> None:
        """Shut down in order; by force after `timeout` seconds, or as long as the profile says.

        Raises UserError where a real machine cannot be switched off from here.
        """

    def cleanup(self) -> None:
        """Remove all that prepare made. Machines are off by then."""

    def leader(self, node: Node) -> int:
        """The process id here of the machine's PID 1.

        Raises UserError where it does not run, or has a kernel of its own.
        """

    def console(self, node: Node) -> str:
        """Where the machine's console is: the file of its log, or the words for people."""


def power_states(driver: Driver, nodes: Sequence[Node]) -> dict[str, PowerState]:
    """By name, whether each has power: asked side by side.

    Where a command of the user's fails that should tell it, this says so, and the rest goes on.
    """
    from orchestrator.core.console import err

    def state(node: Node) -> PowerState:
        try:
            return driver.state(node)
        except UserError as error:
            err.print(f"warning: {error}", markup=False)
            return PowerState.SILENT

    with ThreadPoolExecutor(len(nodes)) as pool:
        names = (node.name for node in nodes)
        return dict(zip(names, pool.map(state, nodes), strict=True))


def driver(profile: Profile, kind: str | None = None, accel: str | None = None) -> Driver:
    """The driver `kind`; else the one that the cluster runs with; else the profile's.

    `accel` is what QEMU machines run under. Raises BadInput for a kind that this version does not
    have, or `accel` for another one; UserError where the cluster runs with another one.
    """
    from orchestrator.provision.machines import nspawn, qemu, real
    from orchestrator.provision.machines.composed import recorded_kind

    kinds: dict[str, Callable[[], Driver]] = {
        "nspawn": lambda: nspawn.cluster(profile),
        "qemu": lambda: qemu.cluster(profile, accel),
        "real": lambda: real.cluster(profile),
    }
    recorded = recorded_kind(profile)
    chosen = kind or recorded or profile.machines
    if chosen not in kinds:
        where = "--machines" if kind else profile.where("machines")
        raise BadInput(
            f"{where}: {chosen!r} is not a driver of this version", f"Allowed: {', '.join(kinds)}"
        )
    if accel and chosen != "qemu":
        raise BadInput(
            f"--accel is for QEMU machines; {profile.name} has machines: {chosen}",
            "Add: --machines qemu",
        )
    if recorded in kinds and recorded != chosen:
        other = kinds[recorded]()
        if any(other.running(node) for node in profile.nodes):
            raise UserError(
                f"{profile.name} runs with machines: {recorded}",
                f"Run: orchestrate down, then up --machines {chosen}",
            )
    return kinds[chosen]()
