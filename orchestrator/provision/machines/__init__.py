"""Machine drivers: power and boot of the nodes. The profile's `machines` names the driver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import TYPE_CHECKING

from orchestrator.core.errors import BadInput, UserError

if TYPE_CHECKING:
    from orchestrator.profile import Node, Profile
    from orchestrator.provision.machines.composed import Driver


class PowerState(StrEnum):
    """Whether a machine has power, as far as this machine can find out."""

    ON = "on"
    OFF = "off"
    #: Switched on by orchestrate; it has not answered yet.
    WAKING = "waking"
    #: It does not answer; the reason is unknown.
    SILENT = "no answer"


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
