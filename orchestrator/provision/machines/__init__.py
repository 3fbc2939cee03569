"""Machine drivers: power and boot of the nodes. The profile's `machines` names the driver."""

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
    """Whether a machine has power, as far as this machine can find out."""

    ON = "on"
    OFF = "off"
    #: Switched on by orchestrate; it has not answered yet.
    WAKING = "waking"
    #: It does not answer; the reason is unknown.
    SILENT = "no answer"


class Driver(Protocol):
    """What `up` and `down` need of machines. Every method is idempotent."""

    @property
    def kind(self) -> str:
        """The driver's name, as in the profile's `machines`."""

    @property
    def cables(self) -> Cables:
        """The networks that connect the machines."""

    @property
    def boot_timeout(self) -> float:
        """Seconds that a machine may take from power-on to SSH."""

    @property
    def why_shared(self) -> str:
        """After `prepare`: why containers share this machine's root, in a line; empty if not."""

    def check_rights(self) -> None:
        """Raises UserError if the user lacks the rights to run machines."""

    def prepare(self, image: Path) -> None:
        """Make what machines share: networks, mounted layers. Left-overs are reused or removed."""

    def network(self) -> AbstractContextManager[None]:
        """Enter the network namespace that reaches the cluster; only the calling thread does."""

    def netboots(self, node: Node) -> bool:
        """Whether the machine boots over the network, from the control node."""

    def state(self, node: Node) -> PowerState:
        """Whether the machine has power. For a real machine this may take seconds."""

    def running(self, node: Node) -> bool:
        """Whether the machine is known to have power."""

    def trouble(self, node: Node) -> UserError | None:
        """Why a machine with power will not come up; None if no reason is known."""

    def power_on(self, node: Node, files: dict[str, BootFile]) -> None:
        """Switch on and boot the image. `files`: the node's boot files, by path in its root.

        `files` is empty for a node that netboots. Raises UserError if a real machine cannot be
        switched on.
        """

    def power_off(self, node: Node, *, timeout: float = 20) -> None:
        """Shut down; cut the power after `timeout` seconds, or at once if it is 0.

        A real machine gets the profile's `power.off_timeout_s` instead. Raises UserError if a real
        machine cannot be switched off from here.
        """

    def cleanup(self) -> None:
        """Remove everything that `prepare` made. The machines must be off."""

    def leader(self, node: Node) -> int:
        """The process id, on this machine, of the node's PID 1.

        Raises UserError if the node does not run, or has a kernel of its own.
        """

    def console(self, node: Node) -> str:
        """Where to find the machine's console: a log file's path, or a sentence."""


def power_states(driver: Driver, nodes: Sequence[Node]) -> dict[str, PowerState]:
    """Each node's power state, by name; asked in parallel.

    If a power command of the profile fails, this prints a warning and gives SILENT for the node.
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
    """The driver `kind`; by default the one that the cluster runs with, else the profile's.

    `accel`: the accelerator of QEMU machines. Raises BadInput for an unknown kind, or `accel` with
    a kind other than qemu; UserError if the cluster runs with another driver.
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
