"""The order of a run: each workload's forecast is sealed and stored before the workload starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from orchestrator.performance.bench.load import rate_workloads
from orchestrator.performance.bench.seal import Basis, foreseen, out_of_date
from orchestrator.performance.results.bench import Asked, Measured, Run, Workload

#: Measures a workload; its figures, and warnings.
Measure = Callable[[Workload], tuple[Measured, tuple[str, ...]]]


def loads(run: Run, basis: Callable[[], Basis], measure: Measure) -> Iterator[Run]:
    """Forecast a workload, then measure it, one after the other; the rates last: they come from
    results. What the run has is not measured again, and keeps its forecast.

    Yields the run to be stored: after each forecast, and after each measurement.
    """
    asked = run.asked or Asked(())
    done = {each.workload.name for each in run.measured}
    for chosen in (lambda _: asked.workloads, rate_workloads if asked.rates else lambda _: ()):
        for workload in chosen(run.measured):
            if workload.name in done:
                continue
            run = foreseen(run, workload, basis())
            yield run
            found, notes = measure(workload)
            late = out_of_date(run, workload, basis())
            warnings = tuple(dict.fromkeys((*run.warnings, *notes, *filter(None, [late]))))
            run = replace(run, measured=(*run.measured, found), warnings=warnings)
            yield run
