"""The engine's constants, fitted to runs on one node with one device.

What is left of a measured time without the device's work (which the probes' rates give) is the
engine's. Runs with several prompts and several requests at once tell its parts from each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.performance.predict.engine import Engine
from orchestrator.performance.predict.layout import Parallelism
from orchestrator.performance.predict.load import Limits, LoadPrediction, OfferedLoad, forecast
from orchestrator.performance.predict.rates import Rates
from orchestrator.performance.predict.shape import ModelShape


@dataclass(frozen=True)
class Sample:
    """A run on one node, with one device: what was measured, beside what the device alone takes.

    ``device_ttft_s`` and ``device_tpot_s``: predicted with an engine that costs nothing.
    ``operations_s``, ``first_operations_s``: what waiting for the operations of all layers adds.
    ``first_steps``, ``first_sequences``, ``first_tokens``: of the engine's, until the first token.
    """

    concurrency: float
    first_steps: float
    first_sequences: float
    first_tokens: float
    ttft_s: float
    tpot_s: float
    device_ttft_s: float
    device_tpot_s: float
    operations_s: float
    first_operations_s: float


def sample(
    shape: ModelShape,
    rates: Rates,
    load: OfferedLoad,
    measured_s: tuple[float, float],
    limits: Limits | None = None,
) -> Sample:
    """A run on one device, its time to the first token and that of each further one measured."""

    free = Engine(0.0, 0.0, 0.0, 0.0, 0.0)

    def with_engine(engine: Engine) -> LoadPrediction:
        return forecast(shape, Parallelism(), replace(rates, engine=engine), load, limits)

    def first(engine: Engine) -> float:
        """How often a cost of one second counts until the first token."""
        return with_engine(engine).prefill.seconds - alone.prefill.seconds

    alone = with_engine(free)
    launched = with_engine(replace(free, per_layer_operations=Engine().per_layer_operations))
    return Sample(
        concurrency=alone.running,
        first_steps=first(replace(free, step_s=1.0)),
        first_sequences=first(replace(free, per_sequence_s=1.0)),
        first_tokens=first(replace(free, per_token_s=1.0)),
        ttft_s=measured_s[0],
        tpot_s=measured_s[1],
        device_ttft_s=alone.prefill.seconds,
        device_tpot_s=alone.decode.seconds,
        operations_s=launched.decode.seconds - alone.decode.seconds,
        first_operations_s=launched.prefill.seconds - alone.prefill.seconds,
    )


def calibrate(samples: Sequence[Sample], start: Engine | None = None) -> Engine:
    """The engine that fits the samples best, by least squares; no constant is negative.

    Time per token beyond the device's and its operations: step_s + per_sequence_s * concurrency,
    the second only where concurrency differs. Time to the first token beyond its steps': request_s
    + per_token_s * prompt tokens, likewise. Where even the operations are more than was measured,
    fewer are taken. Without samples: ``start``.
    """
    engine = start or Engine()
    if not samples:
        return engine
    engine = replace(engine, per_layer_operations=_operations(samples, engine))
    share = engine.per_layer_operations / (start or Engine()).per_layer_operations
    names = {"step_s", "request_s"}
    beyond = [each.tpot_s - each.device_tpot_s - share * each.operations_s for each in samples]
    running = [float(each.concurrency) for each in samples]
    step, per_sequence = line(running, beyond)
    if len(set(running)) > 1:
        names.add("per_sequence_s")
    else:
        per_sequence = min(engine.per_sequence_s, beyond[0] / running[0]) if beyond[0] > 0 else 0.0
        step = max(step - per_sequence * running[0], 0.0)
    first = [
        each.ttft_s
        - each.device_ttft_s
        - share * each.first_operations_s
        - step * each.first_steps
        - per_sequence * each.first_sequences
        for each in samples
    ]
    prompts = [each.first_tokens for each in samples]
    request, per_token = line(prompts, first)
    if len(set(prompts)) > 1:
        names.add("per_token_s")
    return replace(
        engine,
        step_s=step,
        per_sequence_s=per_sequence,
        request_s=request,
        per_token_s=per_token,
        fitted=frozenset(names),
    )


def _operations(samples: Sequence[Sample], engine: Engine) -> float:
    """Operations a layer: as assumed, or as few as fit the quickest sample."""
    shares = [
        max(each.tpot_s - each.device_tpot_s, 0.0) / each.operations_s
        for each in samples
        if each.operations_s > 0
    ]
    return engine.per_layer_operations * min(1.0, *shares) if shares else 0.0


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """The line a + b x with the least squares of its distances, of those with a, b >= 0.

    With equal ``x`` the slope is 0. (Non-negative least squares in two unknowns: if the free
    solution has a negative one, the best has a zero: Lawson and Hanson, 1974, chapter 23.)
    """
    count = len(x)
    mean_x, mean_y = sum(x) / count, sum(y) / count
    spread = sum((each - mean_x) ** 2 for each in x)
    level = (max(mean_y, 0.0), 0.0)
    if not spread:
        return level
    slope = sum((p - mean_x) * (q - mean_y) for p, q in zip(x, y, strict=True)) / spread
    free = (mean_y - slope * mean_x, slope)
    if min(free) >= 0:
        return free
    through = max(sum(p * q for p, q in zip(x, y, strict=True)) / sum(p * p for p in x), 0.0)

    def squares(a: float, b: float) -> float:
        return sum((q - a - b * p) ** 2 for p, q in zip(x, y, strict=True))

    return min((level, (0.0, through)), key=lambda found: squares(*found))
