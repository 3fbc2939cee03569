"""The driver `real`: real compute nodes that netboot, and a control node in a container here.

The container is the same as in the simulator, but has network cards of this machine (cards.py). The
profile says how compute nodes get power (power.py).
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from pathlib import Path

from orchestrator.core.errors import UserError
from orchestrator.core.waiting import as_long_as
from orchestrator.image.layers import Layers
from orchestrator.node.paths import SSH_PORT
from orchestrator.node.remote import Remote, Unreachable
from orchestrator.node.trust import open_trust
from orchestrator.profile import Node, Profile
from orchestrator.profile.power import Power
from orchestrator.provision.identity import BootFile
from orchestrator.provision.machines import PowerState, netns
from orchestrator.provision.machines.cards import Cards
from orchestrator.provision.machines.composed import Driver, Machine, SeparateMachine
from orchestrator.provision.machines.network import Cables, prefix
from orchestrator.provision.machines.nspawn import Container
from orchestrator.provision.machines.power import Supply, supply

#: Seconds for a running machine to answer, and between two polls.
ANSWER_TIMEOUT, POLL = 2.0, 1.0
#: Seconds from the last answer until a machine counts as off, if its power state is unknown.
SETTLE = 5.0


def cluster(profile: Profile) -> Driver:
    return Driver("real", profile, Cards(profile, prefix(profile)), machine)


def machine(node: Node, home: Path, cables: Cables, layers: Layers) -> Machine:
    """A container for the control node, a RealMachine for a compute node."""
    if cables.profile.is_control(node):
        accepted = cables.profile.accept_root_on_host
        return Container(node, home, cables, layers, may_share_root=accepted)
    return RealMachine(node, home, cables)


@dataclass(frozen=True)
class RealMachine(SeparateMachine):
    """A real compute node."""

    cables: Cables

    @property
    def power(self) -> Power:
        return self.cables.profile.power_of(self.node)

    @property
    def supply(self) -> Supply:
        return supply(self.cables.profile, self.node, self.space)

    @property
    def space(self) -> str:
        """The network namespace that reaches it: the control node's."""
        return self.cables.named(self.cables.profile.control.name)

    @property
    def boot_timeout(self) -> float:
        return self.power.boot_timeout_s

    @property
    def console_place(self) -> str:
        return "the machine's own screen or serial port"

    @property
    def record(self) -> Path:
        """The file with the last power action: "on" or "off"."""
        return self.home / "switched"

    def plug(self) -> None:
        """Nothing: a person plugs its cables."""

    def state(self) -> PowerState:
        """The power driver's answer; if it has none, by SSH's port and the last power action."""
        known = self.supply.state()
        if known is not None:
            return known
        if self.answers():
            return PowerState.ON
        done = self.record.read_text() if self.record.exists() else ""
        return {"on": PowerState.WAKING, "off": PowerState.OFF}.get(done, PowerState.SILENT)

    def answers(self) -> bool:
        """Whether it accepts or refuses a connection to SSH: either proves that it has power."""
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
        """None: the state of a real machine's system cannot be read from here."""

    def power_on(self, files: dict[str, BootFile]) -> None:
        self.supply.on()
        self._note("on")

    def power_off(self, timeout: float) -> None:
        """Shut down over SSH, then cut the power. With `timeout` 0: cut the power at once.

        Raises UserError if neither is possible.
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
        """Tell it to shut down; False if it does not answer."""
        if not self.answers():
            return False
        profile = self.cables.profile
        address = str(profile.boot_link(self.node).address)
        remote = Remote(self.node.name, address, open_trust(profile.name))
        with netns.entered(self.space):
            try:
                remote.run(["systemctl", "poweroff"], what="shutting down")
            except Unreachable:
                pass  # it shut down before it answered; if it did not, the caller notices
            finally:
                remote.close()
        return True

    def _wait_until_gone(self) -> bool:
        """Wait for it to be off; False if it is not after the profile's `power.off_timeout_s`."""

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
        """Nothing: a real machine leaves nothing on this host."""
