"""Read the state of a cluster's boots, in one round trip to the control node. Changes nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Container, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from orchestrator.core.errors import UserError
from orchestrator.core.templating import render
from orchestrator.node.paths import LASTING, PYTHON
from orchestrator.node.remote import Remote
from orchestrator.provision.netboot import sources, state, timeline
from orchestrator.provision.netboot.causes import BootCause, stuck
from orchestrator.provision.netboot.sources import FAILED, BootEvent
from orchestrator.provision.netboot.timeline import BootTimeline, Netboot, Place

if TYPE_CHECKING:
    from orchestrator.profile import Profile
    from orchestrator.provision.netboot.diary import Diary

#: How far back logs are read, in journalctl's notation.
SINCE = "-12h"
TIMEOUT = 30.0
#: `Watch` reads the logs at most once in so many seconds.
WATCH_INTERVAL = 2.0


@dataclass(frozen=True)
class Certified:
    """The last host certificate that the boot service made for a node: when, and for which key."""

    time: float
    key: str


@dataclass(frozen=True)
class Seen:
    """All boots, the likely cause of each stuck one, and unknown machines."""

    netboot: Netboot
    stuck: Mapping[str, BootCause]
    #: An unknown machine's hardware address -> the profile lines that would add it as a node.
    lines: Mapping[str, str]
    #: Of nodes that are on.
    certified: Mapping[str, Certified] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        return {
            "boot": {
                name: [asdict(step) for step in boot.steps]
                for name, boot in self.netboot.boots.items()
            },
            "stuck": {
                name: asdict(cause) | {"last": list(self.netboot.boots[name].last)}
                for name, cause in self.stuck.items()
            },
            "unknown": [
                {"mac": mac, "seen": seen, "profile": self.lines[mac]}
                for mac, seen in self.netboot.unknown.items()
            ],
            "refused": [asdict(refusal) for refusal in self.netboot.refused],
        }


def profile_lines(profile: Profile, mac: str) -> str:
    """The lines to add to `compute_nodes` for an unknown machine.

    The names of node and interface are guesses; the address is the next free one.
    """
    network = profile.boot.network
    last = profile.compute_nodes[-1]
    links = [profile.boot_link(node) for node in profile.nodes]
    taken = {link.address for link in links}
    hosts = profile.networks[network].subnet.hosts()
    free = next((each for each in hosts if each > max(taken) and each not in taken), "ADDRESS")
    return render(
        "node.yml",
        name=f"{last.name.rstrip('0123456789')}{len(profile.compute_nodes)}",
        accelerators=last.accelerators,
        network=network,
        interface=profile.boot_link(last).interface,
        mac=mac,
        address=free,
    )


def seen(
    profile: Profile,
    diary: Diary,
    logs: Mapping[str, Any] | None,
    booting: Container[str],
    answering: Container[str] = (),
) -> Seen:
    """All boots, from the diary and the control node's logs (None if they cannot be read).

    ``booting``: nodes with power but without SSH. ``answering``: nodes with both, of which only
    late layers can be stuck.
    """
    now = time.time()
    netboot = timeline.assemble(_places(profile), _events(diary, logs or {}), now)
    causes = {
        name: stuck(boot, netboot, now, answers=name in answering)
        for name, boot in netboot.boots.items()
        if name in booting or name in answering
    }
    return Seen(
        netboot,
        stuck={name: cause for name, cause in causes.items() if cause},
        lines={mac: profile_lines(profile, mac) for mac in netboot.unknown},
        certified={
            str(event["node"]): Certified(float(event["time"]), str(event["text"]))
            for event in (logs or {}).get("events", ())
            if event["kind"] == "identity"
            and (event["node"] in booting or event["node"] in answering)
        },
    )


def _places(profile: Profile) -> list[Place]:
    links = [(node.name, profile.boot_link(node)) for node in profile.nodes]
    return [Place(name, link.mac, str(link.address)) for name, link in links]


def _events(diary: Diary, logs: Mapping[str, Any]) -> Iterable[BootEvent]:
    yield from sources.from_up(diary.read())
    yield from sources.from_dnsmasq((time, text) for time, text in logs.get("dnsmasq", ()))
    yield from sources.from_access(logs.get("access", ()))
    yield from sources.from_service(logs.get("events", ()))


@dataclass
class Watch:
    """The boot steps of nodes, for many threads: the logs are read at most every WATCH_INTERVAL."""

    profile: Profile
    diary: Diary
    control: Remote
    _lock: Lock = field(default_factory=Lock)
    _boots: Mapping[str, BootTimeline] = field(default_factory=dict)
    _looked: float = -WATCH_INTERVAL

    def step(self, node: str) -> str:
        """A node's current boot step for people, with the text of a failure; empty if unknown."""
        with self._lock:
            if time.monotonic() - self._looked >= WATCH_INTERVAL:
                # If the control node does not answer, another step of `up` reports it.
                with suppress(UserError):
                    logs = fetch(self.profile, self.control)
                    events = _events(self.diary, logs)
                    self._boots = timeline.assemble(
                        _places(self.profile), events, time.time()
                    ).boots
                self._looked = time.monotonic()
        at = self._boots[node].current if node in self._boots else None
        if at is None:
            return ""
        return f"boots: {at.step} {at.text}" if at.status == FAILED else f"boots: {at.step}"


def wanted(profile: Profile, events: str) -> dict[str, Any]:
    """What probe_boot.py is asked for."""
    return {
        "dnsmasq": state.DHCP_UNIT,
        "files": state.FILES_UNIT,
        "since": SINCE,
        "wanted": sources.DNSMASQ_WORDS,
        "events": events,
        "machines": [place.mac for place in _places(profile) if place.mac],
    }


def fetch(profile: Profile, control: Remote) -> dict[str, Any]:
    """The control node's logs of boots, by source. Raises UserError if it does not answer."""
    want = wanted(profile, f"{LASTING}/{state.EVENTS}")
    source = Path(__file__).with_name("probe_boot.py").read_text()
    argv = [PYTHON, "-I", "-", json.dumps(want)]
    said = control.run(argv, what="reading the boot logs", stdin=source, timeout=TIMEOUT)
    logs: dict[str, Any] = json.loads(said.out)
    return logs
