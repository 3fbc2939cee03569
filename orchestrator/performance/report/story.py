"""A report's content, apart from its looks. Units: seconds, bytes, FLOPs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.performance.report.plots import Bar
from orchestrator.performance.results.bench import Run
from orchestrator.performance.results.probe import Probes


@dataclass(frozen=True)
class Phase:
    """A phase of a workload compared with its prediction.

    ``parts``: predicted seconds by part; ``unexplained_s``: measured minus all parts, negative if
    the prediction is too long. ``modelled``: parts that no counter shows. ``counted``: a counter
    named the cause.
    """

    workload: str
    name: str
    measured_s: float
    parts: Mapping[str, float]
    unexplained_s: float
    cause: str
    why: str
    modelled: tuple[str, ...] = ()
    counted: bool = False


@dataclass(frozen=True)
class Sentence:
    """The answer to a question that every reader has. ``source``: where its figures come from."""

    asks: str
    says: str
    source: str = ""


@dataclass(frozen=True)
class FirstScreen:
    """The first screen. ``rows``: its picture, the times of ``what``."""

    sentences: tuple[Sentence, ...] = ()
    what: str = ""
    rows: tuple[Bar, ...] = ()


@dataclass(frozen=True)
class Story:
    """One report's content. ``verdict``: conclusions, the most important first. ``stages``: the
    nodes of the ranks, by pipeline stage."""

    run: Run
    verdict: tuple[str, ...]
    probes: Probes | None = None
    phases: tuple[Phase, ...] = ()
    #: The profile's latency targets in seconds, by the latency's name.
    targets_s: Mapping[str, float] | None = None
    #: Differences from the last complete run of the same layout.
    compared: tuple[str, ...] = ()
    answer: FirstScreen = FirstScreen()
    stages: tuple[tuple[str, ...], ...] = ()
