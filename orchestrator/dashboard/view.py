"""What the documents of both kinds of cluster have in common."""

from __future__ import annotations

import shlex
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from orchestrator.dashboard.gather import Polled
from orchestrator.dashboard.kept import Kept
from orchestrator.dashboard.minute import Minute, phases
from orchestrator.performance.results.probe import Probes
from orchestrator.profile import Profile
from orchestrator.profile.choose import is_active, named
from orchestrator.profile.existing import Attached
from orchestrator.verify.report import Check, Report

#: The document's form: raised when a field changes its meaning.
FORM = 1
#: Changes that are remembered.
EVENTS = 50


def command(profile: Profile | Attached, words: str) -> str:
    """A command about this cluster, as it has to be typed here."""
    if is_active(profile.path):
        return f"orchestrate {words}"
    return f"orchestrate {words} --profile {shlex.quote(named(profile.path))}"


class Changes:
    """What changed while somebody looked, the newest last."""

    def __init__(self) -> None:
        self._before: dict[str, str] = {}
        self._events: deque[dict[str, Any]] = deque(maxlen=EVENTS)

    def seen(self, states: Mapping[str, str]) -> bool:
        """Remember what each thing is now; whether anything is not what it was."""
        changed = {name: state for name, state in states.items() if self._before.get(name) != state}
        for name, state in changed.items():
            if name in self._before:
                self._events.append({"time": time.time(), "what": name, "state": state})
        self._before.update(changed)
        return bool(changed)

    def document(self) -> list[dict[str, Any]]:
        return list(self._events)


def limits(minute: Minute, kept: Kept | None) -> dict[str, Any]:
    """What limits now: the last minute, explained as a report explains a load."""
    found = minute.measured()
    if found is None:
        return {"text": "No token was computed in the last minute.", "phases": []}
    one = found.workload
    load = f"{one.concurrency} at once, {one.prompt_tokens} + {one.output_tokens} tokens"
    if kept is None or kept.known is None or kept.probes is None:
        why = kept.reason if kept and kept.known is None else "there are no probes"
        return {"text": f"Not explained: {why}", "phases": [], "load": load}
    told = list(phases(found, minute.series(), kept.known, kept.probes))
    return {"text": "", "phases": told, "load": load}


def links(
    probes: Probes | None, nodes: Mapping[str, Mapping[str, Any]], speeds: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Probed links with what moves over them now; other network cards by themselves. ``speeds``:
    bytes per second of cards, by "NODE CARD"."""
    found, shown = [], set()

    def end(node: str, card: str) -> dict[str, Any]:
        shown.add((node, card))
        rates = nodes.get(node, {}).get("cards", {}).get(card, {})
        return {"node": node, "card": card, **rates}

    for each in probes.links if probes else ():
        ends = [
            end(node, card) for node, card in zip((each.a, each.b), each.interfaces, strict=True)
        ]
        rate = each.bytes_per_s.median
        found.append(_link(each.network, ends, rate, each.latency_s.median))
    for node, values in nodes.items():
        for card, rates in values.get("cards", {}).items():
            moved = any(rates.get(way) for way in ("sent", "received"))
            if (node, card) not in shown and (moved or f"{node} {card}" in speeds):
                found.append(_link("", [end(node, card)], speeds.get(f"{node} {card}"), None))
    return found


def _link(
    network: str, ends: Sequence[Mapping[str, Any]], rate: float | None, latency: float | None
) -> dict[str, Any]:
    used = [each[way] for each in ends for way in ("sent", "received") if each.get(way) is not None]
    now = max(used, default=None)
    share = now / rate if rate and now is not None else None
    return {"network": network, "ends": list(ends), "bytes_per_s": rate, "latency_s": latency,
            "now_bytes_per_s": now, "share": share}  # fmt: skip


def checks(found: Sequence[Check], profile: Profile | Attached) -> dict[str, Any]:
    """Checks that were made by looking; the first ones are those that failed."""
    report = Report(tuple(sorted(found, key=lambda each: (not each.failed, not each.warns))))
    return {
        "ok": report.ok,
        "summary": report.summary,
        "failed": len(report.failed),
        "list": [asdict(check) for check in report.checks],
        "all": command(profile, "verify"),
    }


def document(
    profile: Profile | Attached,
    sources: Sequence[Polled],
    minute: Minute,
    kept: Kept | None,
    changes: Changes,
    made: Mapping[str, Any],
) -> dict[str, Any]:
    """The parts that every cluster has, and those that were ``made``."""
    return {
        "form": FORM,
        "name": profile.name,
        "machines": str(profile.machines),
        "model": profile.serving.model,
        "load": minute.load(),
        "forecasts": kept.forecasts if kept else [],
        "no_forecast": kept.reason if kept else "",
        "runs": kept.runs if kept else [],
        "events": changes.document(),
        "sources": [source.document() for source in sources],
        "bench": command(profile, "bench run"),
        **made,
    }
