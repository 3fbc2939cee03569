"""What a report tells, apart from how it looks. Seconds, bytes, FLOPs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.performance.report.plots import Point
from orchestrator.performance.results.bench import Run
from orchestrator.performance.results.probe import Probes


@dataclass(frozen=True)
class Phase:
    """A phase of a workload against its prediction.

    ``parts``: predicted seconds by part; ``unexplained_s``: measured minus all parts, negative
    where the prediction is too long. ``modelled``: parts that no counter of the machine shows.
    """

    workload: str
    name: str
    measured_s: float
    parts: Mapping[str, float]
    unexplained_s: float
    cause: str
    why: str
    modelled: tuple[str, ...] = ()
    point: Point | None = None


@dataclass(frozen=True)
class Story:
    """Everything of one report. ``verdict``: what to know, the most important first."""

    run: Run
    verdict: tuple[str, ...]
    probes: Probes | None = None
    phases: tuple[Phase, ...] = ()
    #: Targets by the name of a latency, where the profile has some.
    targets_s: Mapping[str, float] | None = None
    #: The last good run of the same load, and what is different since.
    compared: tuple[str, ...] = ()
