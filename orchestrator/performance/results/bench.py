"""A benchmark run as it is stored: workloads, results, and series of all nodes.

Units: seconds, bytes, tokens. Wall-clock times are seconds since 1970 by the control node's clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from orchestrator.performance.results.probe import Spread


class RunState(StrEnum):
    """How a run ended. Only a complete one is compared with later ones."""

    COMPLETE = "complete"
    #: Something went wrong during the run: its figures are stored, but not compared with others.
    MARKED = "marked"
    INTERRUPTED = "interrupted"


def layout_text(tensor: int, pipeline: int, data: int = 1) -> str:
    """A layout as text, as in a run's provenance."""
    return f"tensor {tensor}, pipeline {pipeline}" + (f", copies {data}" if data > 1 else "")


@dataclass(frozen=True)
class Workload:
    """One workload. ``concurrency``: most requests at once. ``rate``: requests per second, as a
    Poisson process; None: a new request starts as soon as one ends. ``requests``: per repeat."""

    name: str
    prompt_tokens: int
    output_tokens: int
    requests: int
    concurrency: int | None = None
    rate: float | None = None

    @property
    def load(self) -> str:
        if self.rate is not None:
            return f"{self.rate:g} requests/s"
        return f"{self.concurrency} at once"


@dataclass(frozen=True)
class Asked:
    """What the user wants measured; ``--resume`` continues it. ``rates``: add the sweep over
    request rates; ``targets_ms``: latency targets for goodput, by ttft, tpot, e2el."""

    workloads: tuple[Workload, ...]
    repeats: int = 4
    rates: bool = True
    targets_ms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Window:
    """Start and end of a repeat."""

    start: float
    end: float


@dataclass(frozen=True)
class Measured:
    """One workload's results. Latencies are medians over requests; their spread is over repeats.

    ``goodput_per_s``: requests per second that met the latency targets, if there are any.
    ``engine``: growth of vLLM's counters over all repeats, warm-up requests included.
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
class Foreseen:
    """A figure of a forecast. Nine of ten measured ones are to lie from ``low`` to ``high``; no
    interval if both are equal. ``origin``: where it comes from; ``cause``: its largest part."""

    value: float
    low: float
    high: float
    origin: str
    cause: str = ""


@dataclass(frozen=True)
class Sealed:
    """A workload's forecast, stored before the workload was measured.

    Either the figures are there, or ``reason``: why there is no forecast. ``made_from``: sha256 of
    the probes and of the engine's measurements, as far as there were any.
    ``form``: of what ``seal`` is made of; another field is another form. ``seal``: see bench/seal.
    """

    workload: Workload
    time: str
    ttft_s: Foreseen | None = None
    tpot_s: Foreseen | None = None
    output_tokens_per_s: Foreseen | None = None
    saturated: bool = False
    reason: str = ""
    made_from: dict[str, str] = field(default_factory=dict)
    form: int = 1
    seal: str = ""


@dataclass(frozen=True)
class Named:
    """The cause that was named for a phase when the run ended."""

    workload: str
    phase: str
    cause: str


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
    """Everything that the figures depend on."""

    profile: str
    profile_sha256: str
    #: The profile's text at that time, to show differences between runs.
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
    #: Why it is not complete, if so.
    note: str = ""
    measured: tuple[Measured, ...] = ()
    series: tuple[Series, ...] = ()
    #: Each node's clock minus the control node's; the series are corrected by it.
    clocks_s: dict[str, float] = field(default_factory=dict)
    asked: Asked | None = None
    #: Problems that leave the figures valid: a clock that moved, samples that ended early.
    warnings: tuple[str, ...] = ()
    forecasts: tuple[Sealed, ...] = ()
    causes: tuple[Named, ...] = ()
