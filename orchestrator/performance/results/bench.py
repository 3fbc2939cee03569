"""A run as it is stored: what was asked of the cluster, what came back, what was seen meanwhile.

Seconds, bytes, tokens. Wall-clock times are seconds since 1970 on the control node's clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from orchestrator.performance.results.probe import Spread


class RunState(StrEnum):
    """What became of a run. Only a complete one is compared with later ones."""

    COMPLETE = "complete"
    #: Something went wrong under load; its figures are kept, and kept apart.
    MARKED = "marked"
    INTERRUPTED = "interrupted"


def layout_text(tensor: int, pipeline: int) -> str:
    """How a model lies, as a run's provenance has it."""
    return f"tensor {tensor}, pipeline {pipeline}"


@dataclass(frozen=True)
class Workload:
    """One load. ``concurrency``: requests at once at most; ``rate``: requests a second, as a
    Poisson process; None: each as soon as one ends. ``requests``: of each repeat."""

    name: str
    prompt_tokens: int
    output_tokens: int
    requests: int
    concurrency: int | None = None
    rate: float | None = None

    @property
    def load(self) -> str:
        """How hard, in words."""
        if self.rate is not None:
            return f"{self.rate:g} requests/s"
        return f"{self.concurrency} at once"


@dataclass(frozen=True)
class Asked:
    """What the user wants measured; ``--resume`` goes on with it. ``rates``: also the sweep over
    requests a second; ``targets_ms``: by ttft, tpot, e2el, for goodput."""

    workloads: tuple[Workload, ...]
    repeats: int = 4
    rates: bool = True
    targets_ms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Window:
    """When a repeat ran."""

    start: float
    end: float


@dataclass(frozen=True)
class Measured:
    """What one workload gave. Latencies are medians over requests; their spread is over repeats.

    ``goodput_per_s``: requests a second within the latency target, where there is one. ``engine``:
    differences of vLLM's own counters over all repeats and the requests that warm up.
    """

    workload: Workload
    ttft_s: Spread
    ttft_p99_s: Spread
    tpot_s: Spread
    tpot_p99_s: Spread
    output_tokens_per_s: Spread
    requests_per_s: Spread
    goodput_per_s: Spread | None
    completed: int
    failed: int
    windows: tuple[Window, ...]
    engine: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Series:
    """A quantity of one node over time, on the control node's clock."""

    node: str
    name: str
    unit: str
    times: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Provenance:
    """All that the figures depend on."""

    profile: str
    profile_sha256: str
    #: The profile as it was, to show what changed between two runs.
    profile_text: str
    image_id: str
    versions: dict[str, str]
    model: str
    model_revision: str
    layout: str
    probes: str
    machine: str


@dataclass(frozen=True)
class Run:
    """One run of `orchestrate bench run`. ``id``: its start, UTC, as a sortable name."""

    id: str
    provenance: Provenance
    state: RunState
    #: Why it is not complete.
    note: str = ""
    measured: tuple[Measured, ...] = ()
    series: tuple[Series, ...] = ()
    #: By node, its clock minus the control node's, before correction.
    clocks_s: dict[str, float] = field(default_factory=dict)
    asked: Asked | None = None
    #: What does not spoil the figures, and has to be known: a clock that moved, samples that ended.
    warnings: tuple[str, ...] = ()
