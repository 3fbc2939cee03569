"""The forecast of one load on one layout: figures with intervals, and where each comes from.

The widths come from held-out measurements (docs/explanation/performance-model.md, "Intervals").
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

from orchestrator.core.errors import UserError
from orchestrator.performance.predict.engine import Engine
from orchestrator.performance.predict.layout import Parallelism
from orchestrator.performance.predict.links import LinkRate
from orchestrator.performance.predict.load import (
    Limits,
    LoadPrediction,
    OfferedLoad,
    Prediction,
    under_load,
)
from orchestrator.performance.predict.measured import fitted, inverted
from orchestrator.performance.predict.phase import Cause
from orchestrator.performance.predict.rates import Rates
from orchestrator.performance.predict.shape import ModelShape
from orchestrator.performance.predict.steps import Formulas, Nothing, Steps
from orchestrator.performance.results.engine import EngineCell, EngineRates, EngineWeights
from orchestrator.performance.results.probe import Spread

#: Nine of ten measured values lie within these factors. Formulas alone: between.
FORMULAS_LOW, FORMULAS_HIGH = 0.6, 1.8
#: At a cell, and at one that was measured less than three times; for each factor of two to the
#: nearest one; for the whole of what only formulas say.
AT_A_CELL, ONCE, FOR_TWICE, MODELLED_OFF = 0.1, 0.6, 0.08, 0.5
#: Without formulas between them, cells count as so much farther apart.
ALONE = 1.5
#: The first token is a few steps of the host, which repeats are narrower than another load is; it
#: depends on how requests that are sent together arrive, and whether later ones meet again.
FIRST, TOGETHER = 0.3, 0.8
#: Further tokens beside others' prompts.
AMONG = 0.25
#: Two measurements of one link differ by as much.
SAME_LINK = 0.1
#: So many factors of two are far, and repeats that differ by so much are noisy.
FAR, NOISY = 2.0, 0.25
#: What measures the engine.
PROBE = "orchestrate probe --only engine"


class Origin(StrEnum):
    """Where a figure comes from."""

    HERE = "measured here"
    ELSEWHERE = "measured elsewhere"
    MODELLED = "modelled"


@dataclass(frozen=True)
class Figure:
    """A forecast figure. Nine of ten measured ones are to lie from ``low`` to ``high``."""

    value: float
    low: float
    high: float
    origin: Origin


def timed(figure: Figure) -> str:
    """A time with its interval, in one unit."""
    times = (figure.value, figure.low, figure.high)
    if figure.high >= 1:
        return f"{ranged(*times)} s"
    return f"{ranged(*(each * 1e3 for each in times))} ms"


def ranged(value: float, low: float, high: float) -> str:
    """A figure with its interval."""
    return f"{value:.3g} ({low:.3g} to {high:.3g})"


@dataclass(frozen=True)
class Known:
    """What a forecast is made from. ``engine``: the engine, measured with this layout; ``shape``
    and ``rates``: for formulas. Either may be missing. ``then``: the rates of the layout that the
    engine was measured with, where they are not ``rates``."""

    layout: Parallelism
    limits: Limits
    shape: ModelShape | None = None
    rates: Rates | None = None
    engine: EngineRates | None = None
    then: Rates | None = None

    @cached_property
    def source(self) -> MadeFrom:
        """What all forecasts from this are made from; it takes most of a forecast's time. Raises
        UserError if there is nothing to make them of."""
        return source_of(self)


@dataclass(frozen=True)
class Outlook:
    """A load's forecast. ``ttft_s``: the time to the first token; ``tpot_s``: per further token;
    ``prefill``, ``decode``: their parts. ``narrower``: what measurement would narrow it.
    ``origins``: where each part of a token's time comes from, by cause. ``whole``: the load
    model's own result."""

    load: OfferedLoad
    ttft_s: Figure
    tpot_s: Figure
    output_tokens_per_s: Figure
    prefill: Prediction
    decode: Prediction
    saturated: bool
    narrower: tuple[str, ...]
    origins: dict[str, Origin]
    whole: LoadPrediction


@dataclass(frozen=True)
class MadeFrom:
    """What the steps are made from. ``then``: the formulas of what was measured; ``now``: of what
    is asked for, with the same constants."""

    steps: Steps
    origin: Origin
    then: Formulas | None = None
    now: Formulas | None = None


def outlook(known: Known, load: OfferedLoad) -> Outlook:
    """Forecast a load. Raises UserError where nothing was measured that it could be made from."""
    source = known.source

    def forecast(steps: Steps) -> LoadPrediction:
        return under_load(steps, known.layout.data, load, known.limits)

    found = forecast(source.steps)
    ttft_moved = tpot_moved = 0.0
    if source.then and source.now and source.then != source.now:
        then, now = forecast(source.then), forecast(source.now)
        ttft_moved = abs(now.prefill.seconds - then.prefill.seconds)
        tpot_moved = abs(now.decode.seconds - then.decode.seconds)
    # At a rate the requests that run at once decide, not the most that may.
    met = load if load.rate_per_s is None else replace(load, concurrency=max(found.running, 1.0))
    ttft_s = _figure(known, source, met, "ttft_s", found.prefill.seconds, ttft_moved)
    tpot_s = _figure(known, source, met, "tpot_s", found.decode.seconds, tpot_moved)
    return Outlook(
        load,
        ttft_s,
        tpot_s,
        _throughput(found, load, ttft_s, tpot_s),
        found.prefill,
        found.decode,
        found.saturated,
        tuple(_narrower(known, source, met)),
        dict(_origins(found.decode, source)),
        found,
    )


def _throughput(found: LoadPrediction, load: OfferedLoad, ttft: Figure, tpot: Figure) -> Figure:
    """Tokens a second, with the interval that follows from the times'. At a rate that can be
    served, as many come out as are asked for, give or take how requests arrive."""
    tokens, whole_s, further = (
        found.output_tokens_per_s,
        found.request.seconds,
        load.output_tokens - 1,
    )
    if load.rate_per_s is not None and not found.saturated:
        return Figure(tokens, tokens * (1 - AT_A_CELL), tokens * (1 + AT_A_CELL), tpot.origin)
    slower = (ttft.high - ttft.value) + further * (tpot.high - tpot.value)
    faster = (ttft.value - ttft.low) + further * (tpot.value - tpot.low)
    low, high = whole_s / (whole_s + slower), whole_s / max(whole_s - faster, 1e-3 * whole_s)
    return Figure(tokens, tokens * low, tokens * high, tpot.origin)


def source_of(known: Known) -> MadeFrom:
    """The steps to forecast from. Raises UserError if there is nothing to make them of."""
    formulas = (
        Formulas(known.shape, known.layout, known.rates) if known.shape and known.rates else None
    )
    engine = known.engine
    if engine is None or not engine.cells:
        if formulas is None:
            raise UserError(
                "nothing was measured that a forecast could be made from", f"Run: {PROBE}"
            )
        return MadeFrom(formulas, Origin.MODELLED)
    layout = Parallelism(engine.tensor, engine.pipeline, engine.data)
    if formulas is None or (known.then is None and layout != known.layout):
        if layout != known.layout and formulas is None:
            text = f"the engine was measured as {layout}, not as {known.layout}"
            raise UserError(
                text, "Give the model's sizes: --config FILE, and run: orchestrate probe"
            )
        if layout != known.layout:
            assert formulas is not None
            return MadeFrom(formulas, Origin.MODELLED)
        return MadeFrom(inverted(engine, Nothing(layout.pipeline), known.limits), Origin.HERE)
    rates = _as_measured(known.then or formulas.rates, engine)
    then = Formulas(formulas.shape, layout, rates)
    constants = fitted(engine, then, known.limits)
    own = _with_host(constants, formulas.rates.engine.step_s, rates.engine.step_s)
    then = replace(then, rates=replace(rates, engine=constants))
    now = replace(formulas, rates=replace(formulas.rates, engine=own))
    steps = inverted(engine, then, known.limits)
    if then == now:
        return MadeFrom(steps, Origin.HERE, then, now)
    return MadeFrom(replace(steps, base=now, then=then), Origin.ELSEWHERE, then, now)


def _with_host(constants: Engine, now_s: float, then_s: float) -> Engine:
    """The constants on a host that was made faster or slower than the measured one."""
    factor = now_s / then_s if then_s else 1.0
    return replace(
        constants,
        step_s=constants.step_s * factor,
        per_sequence_s=constants.per_sequence_s * factor,
        request_s=constants.request_s * factor,
    )


def _as_measured(rates: Rates, engine: EngineRates) -> Rates:
    """The rates with the link that was there when the engine was measured, if it was another."""
    seen, latency_s = engine.link_bytes_per_s, engine.link_latency_s
    if rates.link is None or not seen:
        return rates
    if abs(math.log(seen / rates.link.bytes_per_s)) <= SAME_LINK:
        return rates
    return replace(rates, link=LinkRate(latency_s or rates.link.latency_s, seen))


def _figure(
    known: Known, source: MadeFrom, load: OfferedLoad, name: str, value: float, moved_s: float
) -> Figure:
    """A time with its interval. ``moved_s``: how much of it formulas alone say."""
    if source.origin is Origin.MODELLED or known.engine is None:
        return Figure(value, value * FORMULAS_LOW, value * FORMULAS_HIGH, source.origin)
    near, doublings = _nearest(known.engine, load)
    spread: Spread = getattr(near, name)
    noise = max(AT_A_CELL if spread.n >= 3 else ONCE, spread.relative)
    moved = min(moved_s / value, 1.0) if value else 0.0
    alone = 1.0 if source.then else ALONE
    first, others = name == "ttft_s", load.concurrency > known.layout.data
    beside = (TOGETHER if first else AMONG) if others else 0.0
    off = math.hypot(
        noise, FOR_TWICE * alone * doublings, MODELLED_OFF * moved, FIRST if first else 0.0, beside
    )
    return Figure(value, value / (1 + off), value * (1 + off), source.origin)


def _nearest(engine: EngineRates, load: OfferedLoad) -> tuple[EngineCell, float]:
    """The nearest measured load, and how many factors of two it is away."""

    def away(cell: EngineCell) -> float:
        requests = math.log2(max(load.concurrency, 1.0) / max(cell.concurrency, 1))
        return math.hypot(requests, math.log2(load.prompt_tokens / cell.prompt_tokens))

    near = min(engine.cells, key=away)
    return near, away(near)


def _narrower(known: Known, source: MadeFrom, load: OfferedLoad) -> Iterator[str]:
    engine = known.engine
    if source.origin is Origin.MODELLED or engine is None:
        yield f"the engine was not measured with this layout. Run: {PROBE}"
        return
    if source.origin is Origin.ELSEWHERE:
        layout = Parallelism(engine.tensor, engine.pipeline, engine.data)
        if layout != known.layout:
            yield f"the engine was measured as {layout}: serve as {known.layout}, then run: {PROBE}"
        else:
            yield f"the engine was measured with other links or cards. Run: {PROBE}"
    near, doublings = _nearest(engine, load)
    if doublings > FAR:
        nearest = f"{near.concurrency} at once, prompts of {near.prompt_tokens}"
        yield (
            f"the nearest measured load is {nearest}: name this one in the profile's"
            f" bench.workloads, then run: {PROBE}"
        )
    if (noise := max(near.ttft_s.relative, near.tpot_s.relative)) > NOISY:
        yield f"repeats differ by {noise:.0%}: with no other work there, run: {PROBE}"
    if engine.layers is not None and engine.layers != engine.of_layers:
        yield f"only {engine.layers} of {engine.of_layers} layers were measured"
    if engine.weights is EngineWeights.DUMMY and known.shape and known.shape.experts:
        yield "dummy weights choose experts evenly: measure with the model's own"


def _origins(decode: Prediction, source: MadeFrom) -> Iterator[tuple[str, Origin]]:
    """A token's parts. The split of a measured step is the formulas'; its sum is measured."""
    then = source.then.rates.link if source.then else None
    now = source.now.rates.link if source.now else None
    for cause, seconds in decode.parts.shares().items():
        if not seconds:
            continue
        link = cause in (Cause.LINK_LATENCY, Cause.LINK_BANDWIDTH)
        yield str(cause), Origin.MODELLED if link and now != then else source.origin
