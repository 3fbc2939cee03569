"""Fit the engine's constants to runs on one node with one device.

A measured time minus the device's work (known from probes) is the engine's. Runs with different
prompt lengths and concurrencies separate its parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.performance.predict.engine import Engine
from orchestrator.performance.predict.layout import Parallelism
from orchestrator.performance.predict.load import Limits, LoadPrediction, OfferedLoad, forecast
from orchestrator.performance.predict.rates import Rates
from orchestrator.performance.predict.shape import ModelShape

#: Operations of a smaller share of a token's time are hidden: what is left of them is rounding.
HIDDEN = 1e-3


@dataclass(frozen=True)
class Sample:
    """One workload on one device: measured times, and predicted ones without the engine.

    ``device_ttft_s``, ``device_tpot_s``: predicted with an engine that costs nothing.
    ``operations_s``, ``first_operations_s``: the predicted wait for the operations of all layers,
    per token and until the first token. ``first_steps``, ``first_sequences``, ``first_tokens``: how
    often the engine's costs per step, sequence and token occur until the first token.
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
    """A sample from a workload on one device. ``measured_s``: to the first token, and per token."""

    free = Engine(0.0, 0.0, 0.0, 0.0, 0.0)

    def with_engine(engine: Engine) -> LoadPrediction:
        return forecast(shape, Parallelism(), replace(rates, engine=engine), load, limits)

    def first(engine: Engine) -> float:
        """How often a cost of one second occurs until the first token."""
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
    """The engine's constants that fit the samples best, by least squares; none is negative.

    Time per token, minus device and operations, is fitted by step_s + per_sequence_s * concurrency;
    the second term needs samples with different concurrencies. Time to first token, minus its
    steps, is fitted by request_s + per_token_s * prompt tokens, likewise. If the operations alone
    take longer than was measured, their number is reduced. Without samples: ``start``.
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
    """Operations per layer: as assumed, or fewer if the fastest sample leaves no time for them."""
    shares = [
        max(each.tpot_s - each.device_tpot_s, 0.0) / each.operations_s
        for each in samples
        if each.operations_s > HIDDEN * each.tpot_s
    ]
    return engine.per_layer_operations * min([1.0, *shares])


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """The least-squares line a + b x with a, b >= 0; returns (a, b).

    With equal ``x`` the slope is 0. If the unconstrained solution has a negative coefficient, the
    best constrained one has a zero (Lawson and Hanson, 1974, chapter 23).
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
