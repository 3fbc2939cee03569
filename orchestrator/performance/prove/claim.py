"""What a named cause says about a measured time. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.core.errors import BadInput
from orchestrator.core.nearest import nearest
from orchestrator.performance.predict.phase import Cause
from orchestrator.performance.report.story import Phase
from orchestrator.performance.results.bench import Measured, Run

#: A phase's name, and the latency that it is.
LATENCY = {"prefill": "ttft_s", "decode": "tpot_s"}


@dataclass(frozen=True)
class Claim:
    """Of the ``found`` load's phase, ``seconds`` are said to be the cause's. ``parts``: what is
    said of the other causes."""

    found: Measured
    phase: str
    cause: Cause
    seconds: float
    parts: dict[str, float]
    why: str

    @property
    def measured_s(self) -> float:
        return seconds_of(self.found, self.phase)


def seconds_of(found: Measured, phase: str) -> float:
    """A load's time in a phase: the median over its requests."""
    return float(getattr(found, LATENCY[phase]).median)


def claims(
    run: Run, phases: Sequence[Phase], names: Sequence[str], cause: str | None = None
) -> list[Claim]:
    """The claims of a run's report. ``names``: of these workloads; else of each phase's causes, the
    first workload that has it. ``cause``: try this one instead of the named ones.

    Raises BadInput for an unknown name, or where nothing is named.
    """
    known = {each.workload.name: each for each in run.measured}
    if unknown := [name for name in names if name not in known]:
        text = f"there is no workload {unknown[0]!r} in the run {run.id}"
        raise BadInput(text, nearest(unknown[0], list(known)))
    chosen = [each for each in phases if not names or each.workload in names]
    if not names:
        first: dict[tuple[str, str], Phase] = {}
        for each in chosen:
            first.setdefault((each.name, each.cause), each)
        chosen = list(first.values())
    found = [claim(known[each.workload], each, Cause(cause) if cause else None) for each in chosen]
    if not found:
        raise BadInput(
            f"no cause is named in the run {run.id}",
            "Its report says why: orchestrate bench show",
        )
    return found


def claim(found: Measured, phase: Phase, cause: Cause | None = None) -> Claim:
    """What a phase's cause says, or what another would have to.

    A cause that the model named takes its predicted part. A cause that a counter named also takes
    what is unexplained: that is what the counter explains. Another ``cause`` would have to take as
    much as the largest of all that, to be the cause.
    """
    named = Cause(phase.cause)
    beyond = max(0.0, phase.unexplained_s)
    seconds = phase.parts.get(named, 0.0) + (beyond if phase.counted else 0.0)
    why = phase.why
    if cause and cause is not named:
        seconds = max(
            seconds, phase.parts.get(cause, 0.0), max(phase.parts.values(), default=0.0), beyond
        )
        why = f"asked for; the report names {named}"
    return Claim(found, phase.name, cause or named, seconds, dict(phase.parts), why)
