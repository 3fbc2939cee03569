"""Real machines: compute nodes that netboot, beside a control node in a container on this machine.

The container is as in the simulator. Its network cards are this machine's (cards.py), the compute
nodes' power is what the profile says (power.py).
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.core.errors import UserError
from orchestrator.core.waiting import as_long_as
from orchestrator.image.layers import Layers
from orchestrator.node.paths import SSH_PORT
from orchestrator.node.remote import Remote, Unreachable
from orchestrator.node.trust import open_trust
from orchestrator.provision.machines import PowerState, netns
from orchestrator.provision.machines.cards import Cards
from orchestrator.provision.machines.composed import Composed, Machine
from orchestrator.provision.machines.network import Cables, prefix
from orchestrator.provision.machines.nspawn import Container
from orchestrator.provision.machines.power import Supply, supply

if TYPE_CHECKING:
    from orchestrator.profile import Node, Profile
    from orchestrator.profile.power import Power
    from orchestrator.provision.identity import BootFile

#: Seconds for a machine to answer that is up, and between two looks.
ANSWER_TIMEOUT, POLL = 2.0, 1.0
#: Seconds from a network that is gone to a machine that is off, where nothing tells the latter.
SETTLE = 5.0


def cluster(profile: Profile) -> Composed:
    """The driver `real`."""
    return Composed("real", profile, Cards(profile, prefix(profile)), machine)


def machine(node: Node, home: Path, cables: Cables, layers: Layers) -> Machine:
    """The machine of a node."""
    if cables.profile.is_control(node):
        return Container(node, home, cables, layers)
    return RealMachine(node, home, cables)


@dataclass(frozen=True)
class RealMachine:
    """A compute node of metal."""

    node: Node
    home: Path
    cables: Cables

    netboots = True

    @property
    def power(self) -> Power:
        return self.cables.profile.power_of(self.node)

    @property
    def supply(self) -> Supply:
        return supply(self.cables.profile, self.node, self.space)

    @property
    def space(self) -> str:
        """The network that it is reached by: the control node's."""
        return self.cables.named(self.cables.profile.control.name)

    @property
    def boot_timeout(self) -> float:
        return self.power.boot_timeout_s

    @property
    def console_place(self) -> str:
        return "the machine's own screen or serial port"

    @property
    def record(self) -> Path:
        """Holds what was done last: "on" or "off"."""
        return self.home / "switched"

    def plug(self) -> None:
        """Its cables are a person's business."""

    def state(self) -> PowerState:
        """What its supply tells; else whether it answers, and what was done to it last."""
        known = self.supply.state()
        if known is not None:
            return known
        if self.answers():
            return PowerState.ON
        done = self.record.read_text() if self.record.exists() else ""
        return {"on": PowerState.WAKING, "off": PowerState.OFF}.get(done, PowerState.SILENT)

    def answers(self) -> bool:
        """Whether it takes or refuses a connection: either way there is a system that has power."""
        address = str(self.cables.profile.boot_link(self.node).address)
        try:
            with (
                netns.entered(self.space),
                socket.create_connection((address, SSH_PORT), ANSWER_TIMEOUT),
            ):
                return True
        except ConnectionRefusedError:
            return True
        except (OSError, UserError):
            return False

    def trouble(self) -> None:
        """Nothing can be known from here."""

    def leader(self) -> int:
        raise UserError(
            f"{self.node.name} is a separate machine: its processes do not run on this one",
            f"Reach it over SSH: orchestrate node ssh {self.node.name}",
        )

    def power_on(self, files: dict[str, BootFile]) -> None:
        self.supply.on()
        self._note("on")

    def power_off(self, timeout: float) -> None:
        """In order over SSH, then by its supply; with `timeout` 0 nothing is waited for.

        Raises UserError where neither is possible.
        """
        if timeout > 0:
            off = self._shut_down() and self._wait_until_gone()
            off = self.supply.cut() or off
        else:
            off = self.supply.cut() or self._shut_down()
        if off:
            self._note("off")
            return
        name, driver = self.node.name, self.power.driver
        if self.answers():
            limit = self.power.off_timeout_s
            said = f"{name} was told to shut down but still answers after {limit:g} s"
        else:
            said = f"{name} does not answer"
        raise UserError(
            f"{said}; the power driver '{driver}' cannot cut its power",
            "Hold its power button until it is off.",
        )

    def _shut_down(self) -> bool:
        """Tell it to shut down; False where it does not answer."""
        if not self.answers():
            return False
        profile = self.cables.profile
        address = str(profile.boot_link(self.node).address)
        remote = Remote(self.node.name, address, open_trust(profile.name))
        with netns.entered(self.space):
            try:
                remote.run(["systemctl", "poweroff"], what="shutting down")
            except Unreachable:
                pass  # it went too quickly to say so; if it stays, that is noticed
            finally:
                remote.close()
        return True

    def _wait_until_gone(self) -> bool:
        """Whether it has shut down within the profile's time."""

        def runs() -> bool:
            known = self.supply.state()
            if known is None and not self.answers():
                time.sleep(SETTLE)
                return False
            return known != PowerState.OFF

        return not as_long_as(runs, self.power.off_timeout_s, POLL)

    def _note(self, done: str) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        self.record.write_text(done)

    def clear(self) -> None:
        """Nothing of it is here."""
