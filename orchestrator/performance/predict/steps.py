"""How long a step of the engine takes: by formulas, or not known at all.

The load model (``load``) asks no more than this. ``measured`` answers from the engine's own cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from orchestrator.performance.predict.layout import Parallelism
from orchestrator.performance.predict.phase import Parts, Work, step
from orchestrator.performance.predict.rates import Rates
from orchestrator.performance.predict.shape import ModelShape

#: Steps that the host launches before a card's first token is back: its own, and the next one,
#: since vLLM looks at a step's result only then (asynchronous scheduling).
LAUNCHED_FIRST = 2.0


class Steps(Protocol):
    """The times that a load is made of."""

    @property
    def stages(self) -> int:
        """Stages of the pipeline."""

    def step(self, work: Work, in_flight: float) -> Parts:
        """One step of one batch; ``in_flight`` batches share the engine."""

    def first(self, steps: Parts, last: Work, together: float) -> Parts:
        """All until the first token. ``steps``: the request's steps with prompts, and what it waits
        for; ``last``: the last of them; ``together``: requests sent at the same time."""


@dataclass(frozen=True)
class Formulas:
    """Steps by the roofline, messages and the engine's constants."""

    shape: ModelShape
    layout: Parallelism
    rates: Rates

    @property
    def stages(self) -> int:
        return self.layout.pipeline

    def step(self, work: Work, in_flight: float) -> Parts:
        return step(self.shape, self.layout, self.rates, work, in_flight)

    def first(self, steps: Parts, last: Work, together: float) -> Parts:
        late_s = 0.0
        if not self.rates.synchronous:
            plain = step(self.shape, self.layout, self.rates, last)
            late = step(self.shape, self.layout, self.rates, last, launched=LAUNCHED_FIRST)
            late_s = late.seconds - plain.seconds
        return steps.plus(host_s=self.rates.engine.request_s + late_s)


@dataclass(frozen=True)
class Nothing:
    """Steps of which no formula says anything: no sizes of the model, or no probes."""

    stages: int = 1
    request_s: float = 0.0

    def step(self, work: Work, in_flight: float) -> Parts:
        return Parts()

    def first(self, steps: Parts, last: Work, together: float) -> Parts:
        return steps.plus(engine_s=self.request_s)
