"""Power of real machines: a class for each `power.driver` of a profile."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from shutil import which

from orchestrator.core.console import err
from orchestrator.core.errors import UserError
from orchestrator.core.run import CommandFailed, Result, run
from orchestrator.profile import Node, Profile
from orchestrator.profile.power import PLACEHOLDER, Power
from orchestrator.provision.machines import PowerState, netns, wol

#: Exit codes of coreutils' `timeout` after SIGTERM and after SIGKILL.
TIMED_OUT = (124, 137)
#: Seconds between SIGTERM and SIGKILL for a power command that timed out.
GRACE = 2.0


def supply(profile: Profile, node: Node, space: str) -> Supply:
    """A node's power supply; `space` is the network namespace that reaches the cluster."""
    power = profile.power_of(node)
    kinds: dict[str, Callable[[Profile, Node, Power, str], Supply]] = {
        "wol": PowerByWol,
        "command": PowerByCommand,
        "manual": Manual,
    }
    return kinds[power.driver](profile, node, power, space)


@dataclass(frozen=True)
class Supply(ABC):
    """One machine's power. Raises UserError where what it is asked to do fails."""

    profile: Profile
    node: Node
    power: Power
    space: str

    @abstractmethod
    def on(self) -> None:
        """Switch it on; nothing happens if it is on."""

    def cut(self) -> bool:
        """Cut its power; False if the driver cannot do that."""
        return False

    def state(self) -> PowerState | None:
        """ON or OFF; None if the driver cannot tell."""
        return None


@dataclass(frozen=True)
class PowerByWol(Supply):
    """Wake-on-LAN, which can only switch a machine on."""

    def on(self) -> None:
        network = self.profile.boot.network
        interface = self.profile.boot_link(self.profile.control).interface
        broadcast = self.profile.networks[network].subnet.broadcast_address
        with netns.entered(self.space):
            wol.send(interface, broadcast, self.profile.boot_link(self.node).mac)


@dataclass(frozen=True)
class Manual(Supply):
    """A person switches the machine on and off; this says when."""

    def on(self) -> None:
        link = self.profile.boot_link(self.node)
        limit = self.power.boot_timeout_s
        text = f"Switch on {self.node.name} ({link.mac}) now: it has {limit:g} s to boot."
        err.print(text, markup=False)


@dataclass(frozen=True)
class PowerByCommand(Supply):
    """Commands from the profile: `power.on`, `power.off`, `power.status`."""

    def on(self) -> None:
        assert self.power.on is not None  # checked when the profile is loaded
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
        """Run a command with its placeholders replaced, in the profile's directory.

        Raises UserError with its output if its exit code is not in `ok`, it times out, or it is
        not installed.
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
        # coreutils' `timeout`, since it also ends the processes that the command started.
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
        """File, line and key of the profile that define this node's power."""
        if not self.node.power:
            return self.profile.where("power")
        index = self.profile.compute_nodes.index(self.node)
        return self.profile.where("compute_nodes", index, "power")
