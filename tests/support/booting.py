"""A QEMU machine from power on, and waiting for what is seen of it.

Everything is waited for by an event with a deadline: a line on a console, a line of the boot
service's log.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from orchestrator.node.remote import Remote
from orchestrator.provision.machines import PowerState
from orchestrator.provision.machines.qemu import QemuMachine

if TYPE_CHECKING:
    from support.netboot import Net

#: Seconds between two looks at what is waited for.
POLL = 0.2
#: Long enough for a machine that would go on, to have done so.
STAYS = 20.0
ESCAPES = re.compile(r"\x1b\[[0-9;?=]*[A-Za-z]|[\x00-\x08\x0b-\x1f]")

T = TypeVar("T")


def until(what: str, seconds: float, look: Callable[[], T | None], shown: Callable[[], str]) -> T:
    """Wait until `look` finds something (neither None nor False); at the deadline fail with what
    `shown` tells."""
    deadline = time.monotonic() + seconds
    while (found := look()) is None or found is False:
        assert time.monotonic() < deadline, f"{what}: not in {seconds:g} s\n{shown()}"
        time.sleep(POLL)
    return found


@dataclass
class Booting:
    """A QEMU machine from power on. `mark` is when this boot began."""

    net: Net
    machine: QemuMachine
    mac: str
    mark: float

    @property
    def console(self) -> str:
        text = self.machine.console.read_text(errors="replace")
        return ESCAPES.sub("", text.replace("\r", "\n"))

    def sees(self, pattern: str, seconds: float | None = None) -> str:
        """Wait for a line on the console; returns it."""

        def look() -> str | None:
            found = re.search(f".*(?:{pattern}).*", self.console)
            assert found or self.machine.state() == PowerState.ON, f"QEMU ended:\n{self.tail()}"
            return found[0] if found else None

        return until(f"console: {pattern}", seconds or self.limit, look, self.tail)

    def events(self) -> list[dict[str, Any]]:
        """What the boot service has seen since this boot began."""
        return [event for event in self.net.events() if event["time"] >= self.mark]

    def reports(self, step: str, status: str, *, text: str = "") -> dict[str, Any]:
        """Wait for the node's report of a step that says `text`; returns it."""

        def look() -> dict[str, Any] | None:
            told = (event for event in self.events() if tells(event, self.mac, step, status))
            return next((event for event in told if text in event["text"]), None)

        return until(f"report: {step} {status} {text}", self.limit, look, self.tail)

    def sees_event(self, kind: str) -> dict[str, Any]:
        """Wait for the boot service to see this of the machine; returns it."""

        def look() -> dict[str, Any] | None:
            return next((event for event in self.events() if tells(event, self.mac, kind)), None)

        return until(f"event: {kind}", self.limit, look, self.tail)

    def reaches_ssh(self, name: str = "compute0") -> Remote:
        """Wait for SSH with a host certificate of the cluster's authority, and the right image."""
        remote = self.net.remote(name)
        with self.net.driver.network():
            try:
                remote.wait_for_ssh(self.limit)
            except Exception as error:
                raise AssertionError(f"{error}\n{self.tail()}") from error
        assert self.net.on(name, "hostname") == name
        assert self.net.on(name, "cat", "/run/orchestrate/image-id") == self.net.image_id
        return remote

    def leaves_initrd(self) -> None:
        """Wait until the initrd has its layers and identity and hands over to systemd.

        For tests of firmware and loader: what comes after does not depend on them, is tested by
        others (`reaches_ssh`), and takes half the time of a boot.
        """
        for step in ("root", "identity", "switch"):
            self.reports(step, "done")

    def shell(self, script: str, stdin: str = "") -> str:
        """What a script prints on the node. Raises UserError where it fails."""
        with self.net.driver.network():
            remote = self.net.remote(self.machine.node.name)
            return remote.run(["sh", "-c", script], stdin=stdin, timeout=120).out

    def stays_without_kernel(self) -> None:
        """For a while, no kernel starts. A wait by time: nothing tells of what is not."""
        with pytest.raises(AssertionError, match="Linux version"):
            self.sees("Linux version", STAYS)

    def power_off(self, timeout: float = 0) -> None:
        """Pull the plug; with a timeout, in order."""
        self.net.remote(self.machine.node.name).close()
        self.machine.power_off(timeout)

    @property
    def limit(self) -> float:
        return self.machine.boot_timeout

    def tail(self) -> str:
        told = "\n".join(json.dumps(event) for event in self.events()[-15:])
        return f"console:\n{self.console[-3000:]}\nevents:\n{told}"


def tells(event: dict[str, Any], *words: str) -> bool:
    """Whether an event has all these words among its values."""
    return set(words) <= {str(value) for value in event.values()}
