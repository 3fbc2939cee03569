"""What was measured before, and what is forecast from it: runs, probes, the engine."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.core.errors import UserError
from orchestrator.performance.bench import history
from orchestrator.performance.bench.basis import basis
from orchestrator.performance.bench.load import offered, workloads
from orchestrator.performance.predict import inputs
from orchestrator.performance.predict.layout import Parallelism
from orchestrator.performance.predict.outlook import Figure, Known, outlook
from orchestrator.performance.report.score import score
from orchestrator.performance.results.bench import Provenance, Run, RunState, layout_text
from orchestrator.performance.results.probe import Probes
from orchestrator.profile import Profile
from orchestrator.profile.existing import Attached

#: Runs that are shown.
RUNS = 12


@dataclass(frozen=True)
class Kept:
    """What is kept of a cluster. ``known``: what forecasts are made from, or the ``reason``."""

    known: Known | None = None
    reason: str = ""
    probes: Probes | None = None
    runs: list[dict[str, Any]] = field(default_factory=list)
    forecasts: list[dict[str, Any]] = field(default_factory=list)


class Shelf:
    """The files of a cluster; a run is read once."""

    def __init__(self, profile: Profile | Attached) -> None:
        self.profile = profile
        self._runs: dict[str, tuple[float, Run | None]] = {}

    def look(
        self, layout: Parallelism, image: str = "", config: dict[str, Any] | None = None
    ) -> Kept:
        profile = self.profile
        shape = layout_text(layout.tensor, layout.pipeline)
        now = Provenance(
            profile.name, profile.sha256, "", image, {}, profile.serving.model, "", shape, "",
            str(profile.machines),
        )  # fmt: skip
        made = basis(profile, now, layout, config)
        try:
            probes = inputs.probes(profile.name)
        except UserError:
            probes = None
        runs = dict(self._newest())
        forecasts = list(_forecasts(profile, made.known, runs)) if made.known else []
        rows = [_row(name, run) for name, run in runs.items()]
        return Kept(made.known, made.reason, probes, rows, forecasts)

    def _newest(self) -> Iterator[tuple[str, Run | None]]:
        """The newest runs, None for one that cannot be read."""
        name = self.profile.name
        for each in reversed(history.names(name)[-RUNS:]):
            changed = history.report(name, each).with_suffix(".json").stat().st_mtime
            if each not in self._runs or self._runs[each][0] != changed:
                try:
                    self._runs[each] = (changed, history.load(name, each))
                except UserError:
                    self._runs[each] = (changed, None)
            yield each, self._runs[each][1]


def _row(name: str, run: Run | None) -> dict[str, Any]:
    if run is None:
        return {"id": name, "state": "unreadable", "note": "its file does not hold a run"}
    single = [each for each in run.measured if each.workload.concurrency == 1]
    most = max(run.measured, key=lambda each: each.output_tokens_per_s.median, default=None)
    scored = score(run).scored
    return {
        "id": name,
        "state": str(run.state),
        "note": run.note,
        "model": run.provenance.model,
        "layout": run.provenance.layout,
        "tpot_s": single[0].tpot_s.median if single else None,
        "tokens_per_s": most.output_tokens_per_s.median if most else None,
        "load": most.workload.load if most else "",
        "forecasts": len(scored),
        "off": statistics.median(abs(each.off) for each in scored) if scored else None,
    }


def _forecasts(
    profile: Profile | Attached, known: Known, runs: Mapping[str, Run | None]
) -> Iterator[dict[str, Any]]:
    """Each workload's forecast, beside its newest measurement with this layout."""
    layout = layout_text(known.layout.tensor, known.layout.pipeline)
    measured = {
        each.workload: each.output_tokens_per_s.median
        for run in reversed(list(runs.values()))
        if run and run.state is RunState.COMPLETE and run.provenance.layout == layout
        for each in run.measured
    }
    for workload in workloads(profile):
        found = outlook(known, offered(workload))
        yield {
            "workload": workload.name,
            "load": f"{workload.load}, {workload.prompt_tokens} + {workload.output_tokens} tokens",
            "tokens_per_s": _figure(found.output_tokens_per_s),
            "ttft_s": _figure(found.ttft_s),
            "tpot_s": _figure(found.tpot_s),
            "origin": str(found.tpot_s.origin),
            "measured_tokens_per_s": measured.get(workload),
        }


def _figure(found: Figure) -> list[float]:
    return [found.value, found.low, found.high]
