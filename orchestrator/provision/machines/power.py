"""How real machines are switched on and off: a class for each `power.driver` of a profile."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from shutil import which
from typing import TYPE_CHECKING, Protocol

from orchestrator.core.console import err
from orchestrator.core.errors import UserError
from orchestrator.core.run import CommandFailed, Result, run
from orchestrator.profile.power import PLACEHOLDER
from orchestrator.provision.machines import PowerState, netns, wol

if TYPE_CHECKING:
    from orchestrator.profile import Node, Profile
    from orchestrator.profile.power import Power

#: What `timeout` of coreutils ends with where it had to end a command, and to kill it.
TIMED_OUT = (124, 137)
#: Seconds that a command has to end in, once it is told to.
GRACE = 2.0


class Supply(Protocol):
    """One machine's power."""

    def on(self) -> None:
        """Switch it on, or keep it on. Raises UserError where that fails."""

    def cut(self) -> bool:
        """Take its power away; False where this way cannot. Raises UserError where it fails."""

    def state(self) -> PowerState | None:
        """ON or OFF; None where this way cannot tell."""


def supply(profile: Profile, node: Node, space: str) -> Supply:
    """A node's power by the profile; `space` is the namespace with the cluster's network."""
    power = profile.power_of(node)
    kinds: dict[str, Callable[[Profile, Node, Power, str], Supply]] = {
        "wol": PowerByWol,
        "command": PowerByCommand,
        "manual": Manual,
    }
    return kinds[power.driver](profile, node, power, space)


@dataclass(frozen=True)
class PowerMethod:
    """What each class is made with."""

    profile: Profile
    node: Node
    power: Power
    space: str


@dataclass(frozen=True)
class PowerByWol(PowerMethod):
    """Wake-on-LAN switches on, and nothing else."""

    def on(self) -> None:
        network = self.profile.boot.network
        interface = self.profile.boot_link(self.profile.control).interface
        broadcast = self.profile.networks[network].subnet.broadcast_address
        with netns.entered(self.space):
            wol.send(interface, broadcast, self.profile.boot_link(self.node).mac)

    def cut(self) -> bool:
        return False

    def state(self) -> PowerState | None:
        return None


@dataclass(frozen=True)
class Manual(PowerMethod):
    """A person is the switch."""

    def on(self) -> None:
        link = self.profile.boot_link(self.node)
        limit = self.power.boot_timeout_s
        text = f"Switch on {self.node.name} ({link.mac}) now: it has {limit:g} s to boot."
        err.print(text, markup=False)

    def cut(self) -> bool:
        return False

    def state(self) -> PowerState | None:
        return None


@dataclass(frozen=True)
class PowerByCommand(PowerMethod):
    """Commands of the user's."""

    def on(self) -> None:
        assert self.power.on is not None  # profile/checks.py
        self._run(self.power.on, f"switching {self.node.name} on")

    def cut(self) -> bool:
        if self.power.off is None:
            return False
        self._run(self.power.off, f"switching {self.node.name} off")
        return True

    def state(self) -> PowerState | None:
        if self.power.status is None:
            return None
        says = self.power.status_says
        what = f"asking whether {self.node.name} has power"
        told = self._run(self.power.status, what, ok=(0,) if says else (0, 1))
        has_power = says in told.out if says else told.code == 0
        return PowerState.ON if has_power else PowerState.OFF

    def _run(self, template: Sequence[str], what: str, ok: Sequence[int] = (0,)) -> Result:
        """Run a command with its placeholders filled in.

        Raises UserError, with its words, where it fails, takes too long or is not there.
        """
        words = [self._fill(word) for word in template]
        directory = self.profile.path.absolute().parent
        if "/" in words[0]:
            words[0] = str(directory / words[0])
        where = f"{self._where()}: {what}"
        if which(words[0]) is None:
            raise UserError(
                f"{where}: command not found: {words[0]}", "Install it, or correct the profile."
            )
        limit = self.power.command_timeout_s
        # `timeout` ends what the command started, too.
        guard = ["timeout", f"--kill-after={GRACE:g}", f"{limit:g}"]
        begun = time.monotonic()
        with netns.entered(netns.host() if self.power.network == "host" else self.space):
            done = run([*guard, *words], what=what, ok=None, stdin="", cwd=directory)
        result = Result(tuple(words), done.code, done.out, done.err)
        if done.code in TIMED_OUT and time.monotonic() - begun >= limit:
            failed = CommandFailed(result, where)
            raise UserError(
                failed.message.replace(f"exit code: {done.code}", f"timed out after {limit:g} s"),
                "Run it by hand. If it needs more time, raise power.command_timeout_s.",
            )
        if done.code not in ok:
            raise CommandFailed(result, where)
        return result

    def _fill(self, word: str) -> str:
        link = self.profile.boot_link(self.node)
        values = {
            "node": self.node.name,
            "index": str(self.profile.compute_nodes.index(self.node)),
            "mac": link.mac,
            "address": str(link.address),
            "interface": link.interface,
        }
        return PLACEHOLDER.sub(lambda match: values[match[1]], word)

    def _where(self) -> str:
        """Where the profile says it."""
        if not self.node.power:
            return self.profile.where("power")
        index = self.profile.compute_nodes.index(self.node)
        return self.profile.where("compute_nodes", index, "power")
