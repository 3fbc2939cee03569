"""Look at the boots of a cluster's nodes: one round trip to the control node. Changes nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.netboot import state, timeline
from orchestrator.netboot.causes import Cause, stuck
from orchestrator.netboot.timeline import Boot, Netboot, Place
from orchestrator.node_paths import LASTING, VENV
from orchestrator.remote import Remote

if TYPE_CHECKING:
    from orchestrator.netboot.diary import Diary
    from orchestrator.profile import Profile

#: How far back logs are read, in journalctl's words.
SINCE = "-12h"
TIMEOUT = 30.0


@dataclass(frozen=True)
class Seen:
    """The boots, and of each that does not get on the likely cause."""

    netboot: Netboot
    stuck: Mapping[str, Cause]

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
                {"mac": mac, "seen": seen, "profile": profile_lines(mac)}
                for mac, seen in self.netboot.unknown.items()
            ],
            "refused": [asdict(event) for event in self.netboot.refused],
        }


def profile_lines(mac: str) -> str:
    """What to add to `compute_nodes` for a machine that has no place there."""
    return (
        f'- name: NAME\n  links:\n    NETWORK: {{interface: NAME, mac: "{mac}", address: ADDRESS}}'
    )


def seen(profile: Profile, diary: Diary, logs: Mapping[str, Any] | None) -> Seen:
    """The boots, from the diary and the control node's logs (None: it cannot be asked)."""
    places = [
        Place(node.name, profile.boot_link(node).mac, str(profile.boot_link(node).address))
        for node in profile.nodes
    ]
    netboot = timeline.assemble(places, [*timeline.from_up(diary.read()), *_events(logs or {})])
    now = time.time()
    computing = [netboot.boots[node.name] for node in profile.compute_nodes]
    causes = {boot.node: stuck(boot, netboot, now) for boot in computing if _boots(boot)}
    return Seen(netboot, {name: cause for name, cause in causes.items() if cause})


def _boots(boot: Boot) -> bool:
    return bool(boot.steps)


def _events(logs: Mapping[str, Any]) -> Iterable[timeline.Event]:
    yield from timeline.from_dnsmasq((time, text) for time, text in logs.get("dnsmasq", ()))
    yield from timeline.from_access(logs.get("access", ()))
    yield from timeline.from_service(logs.get("events", ()))


def fetch(control: Remote) -> dict[str, Any]:
    """The control node's logs of boots. Raises UserError where it does not answer."""
    want = {
        "state": LASTING,
        "unit": state.DHCP_UNIT,
        "since": SINCE,
        "access": state.ACCESS_LOG,
        "events": state.EVENTS,
    }
    source = Path(__file__).with_name("probe_boot.py").read_text()
    argv = [f"{VENV}/bin/python", "-I", "-", json.dumps(want)]
    said = control.run(argv, what="reading the boot logs", stdin=source, timeout=TIMEOUT)
    logs: dict[str, Any] = json.loads(said.out)
    return logs
