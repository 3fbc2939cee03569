"""Forecasts against what was measured afterwards: each phase of a run, and all of them. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.performance.bench.seal import broken
from orchestrator.performance.results.bench import Foreseen, Measured, Run, RunState, Workload


class Load(StrEnum):
    """Kinds of load."""

    ONE = "one request"
    MANY = "many at once"
    RATE = "a rate"


class Seal(StrEnum):
    """When a forecast was made."""

    SEALED = "before"
    #: From measurements of other loads; which ones count was written down before.
    HELD_OUT = "held out"
    #: Of measurements from before forecasts were sealed.
    AFTER = "after"


FIRST, FURTHER = "first token", "further token"
#: How far a forecast may be off, as a share of what was measured.
BOUNDS = {Load.ONE: 0.15, Load.MANY: 0.25, Load.RATE: 0.25}
#: So many of the worst are named.
WORST = 5


@dataclass(frozen=True)
class Scored:
    """A phase's forecast beside its measurement, in seconds. Without ``low`` and ``high``, or with
    equal ones, the forecast had no interval."""

    run: str
    workload: str
    phase: str
    load: Load
    layout: str
    origin: str
    forecast_s: float
    measured_s: float
    low_s: float | None = None
    high_s: float | None = None
    made: Seal = Seal.SEALED

    @property
    def off(self) -> float:
        """How far the forecast is off, as a share of what was measured."""
        return self.forecast_s / self.measured_s - 1

    @property
    def good(self) -> bool:
        """Whether it is off by no more than its kind of load may be."""
        return abs(self.off) <= BOUNDS[self.load]

    @property
    def inside(self) -> bool | None:
        """Whether the measurement lies in the forecast's interval; None: it had none."""
        if self.low_s is None or self.high_s is None or self.low_s == self.high_s:
            return None
        return self.low_s <= self.measured_s <= self.high_s

    @property
    def name(self) -> str:
        return f"{self.run}, {self.workload}, {self.phase}"


@dataclass(frozen=True)
class Unscored:
    """A forecast that does not count, or a run's load without one, and why."""

    run: str
    workload: str
    reason: str


@dataclass(frozen=True)
class Scores:
    """The forecasts of runs, scored or not."""

    scored: tuple[Scored, ...] = ()
    unscored: tuple[Unscored, ...] = ()

    def plus(self, other: Scores) -> Scores:
        return Scores((*self.scored, *other.scored), (*self.unscored, *other.unscored))


@dataclass(frozen=True)
class Group:
    """Statistics of the forecasts of one kind. ``keys``: what they have in common.

    ``off``: the median of absolute errors; ``off_90``: nine of ten are at most so far off;
    ``good``: the share within the bound; ``inside``: the share of measurements in the interval, of
    ``with_interval`` forecasts that had one.
    """

    keys: tuple[str, ...]
    number: int
    off: float
    off_90: float
    good: float
    with_interval: int
    inside: float | None


def kind(workload: Workload) -> Load:
    """The kind of a workload."""
    if workload.rate is not None:
        return Load.RATE
    return Load.ONE if workload.concurrency == 1 else Load.MANY


def score(run: Run) -> Scores:
    """A run's forecasts against its measurements."""
    found = Scores()
    measured = {each.workload: each for each in run.measured}
    for made in run.forecasts:
        figures = {FIRST: made.ttft_s, FURTHER: made.tpot_s}
        why = broken(made, run.provenance) or made.reason or _unfit(run, measured, made.workload)
        if why:
            found = found.plus(Scores(unscored=(Unscored(run.id, made.workload.name, why),)))
        else:
            phases = _phases(run, measured[made.workload], figures)
            found = found.plus(Scores(tuple(phases)))
    foreseen = {each.workload for each in run.forecasts}
    without = [name.name for name in measured if name not in foreseen]
    reason = "no forecast was sealed before it was measured"
    return found.plus(Scores(unscored=tuple(Unscored(run.id, name, reason) for name in without)))


def _unfit(run: Run, measured: Mapping[Workload, Measured], workload: Workload) -> str:
    if run.state is RunState.MARKED:
        return f"the run is marked: {run.note}"
    return "" if workload in measured else "it was not measured"


def _phases(run: Run, found: Measured, figures: Mapping[str, Foreseen | None]) -> Iterator[Scored]:
    seen = {FIRST: found.ttft_s.median, FURTHER: found.tpot_s.median}
    for phase, made in figures.items():
        if made is None or not seen[phase]:  # an answer of one token has no further one
            continue
        yield Scored(
            run.id,
            found.workload.name,
            phase,
            kind(found.workload),
            run.provenance.layout,
            made.origin,
            made.value,
            seen[phase],
            made.low,
            made.high,
        )


def groups(scored: Iterable[Scored]) -> list[Group]:
    """Statistics by phase, kind of load, layout, and origin of the forecast."""
    return _grouped((each, (each.phase, each.load, each.layout, each.origin)) for each in scored)


def totals(scored: Iterable[Scored]) -> list[Group]:
    """Statistics by kind of load alone: for one request, and under load."""
    names = {Load.ONE: "one request"}
    return _grouped((each, (names.get(each.load, "under load"),)) for each in scored)


def worst(scored: Iterable[Scored]) -> list[Scored]:
    """Those that are the farthest off, the worst first."""
    return sorted(scored, key=lambda each: -abs(each.off))[:WORST]


def _grouped(named: Iterable[tuple[Scored, tuple[str, ...]]]) -> list[Group]:
    by_keys: dict[tuple[str, ...], list[Scored]] = {}
    for each, keys in named:
        by_keys.setdefault(tuple(map(str, keys)), []).append(each)
    return [_group(keys, each) for keys, each in sorted(by_keys.items())]


def _group(keys: tuple[str, ...], found: Sequence[Scored]) -> Group:
    off = sorted(abs(each.off) for each in found)
    inside = [each.inside for each in found if each.inside is not None]
    return Group(
        keys,
        len(found),
        statistics.median(off),
        off[-(-9 * len(off) // 10) - 1],
        statistics.fmean(each.good for each in found),
        len(inside),
        statistics.fmean(inside) if inside else None,
    )
