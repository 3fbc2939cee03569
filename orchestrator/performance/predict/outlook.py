"""The forecast of one load on one layout: figures with intervals, and where each comes from.

The widths come from held-out measurements (docs/explanation/performance-model.md, "Intervals").
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum

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
from orchestrator.performance.results.engine import EngineCell, EngineRates, Weights
from orchestrator.performance.results.probe import Spread

#: Nine of ten measured values lie within these factors. Formulas alone: between.
FORMULAS_LOW, FORMULAS_HIGH = 0.6, 1.8
#: At a cell, and at one that was measured less than three times; for each factor of two to the
#: nearest one; for the whole of what only formulas say.
AT_A_CELL, ONCE, FOR_TWICE, MODELLED_OFF = 0.1, 0.3, 0.08, 0.5
#: Without formulas between them, cells count as so much farther apart.
ALONE = 1.5
#: The first token of requests that are sent together depends on how they arrive.
TOGETHER = 0.15
#: Two measurements of one link differ by as much.
SAME_LINK = 0.1
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
    saturated: bool = False
    narrower: tuple[str, ...] = ()
    origins: dict[str, Origin] = field(default_factory=dict)
    whole: LoadPrediction | None = None


@dataclass(frozen=True)
class Source:
    """What the steps are made from. ``changed``: formulas say what differs from the measured
    cluster; ``base``: the measured cluster's own formulas."""

    steps: Steps
    origin: Origin
    base: Formulas | None = None


def outlook(known: Known, load: OfferedLoad) -> Outlook:
    """Forecast a load. Raises UserError where nothing was measured that it could be made from."""
    source = source_of(known)
    copies, allowed = known.layout.data, known.limits
    found = under_load(source.steps, copies, load, allowed)
    then = under_load(source.base, copies, load, allowed) if source.base else None
    now = (
        found if then is None else under_load(_formulas(known, source.base), copies, load, allowed)
    )

    def figure(value: float, moved: float, single: bool, of: str) -> Figure:
        share = min(moved / value, 1.0) if value else 0.0
        return _figure(known, source.origin, load, (value, share, single, of))

    def moved(of: str) -> float:
        return abs(getattr(now, of).seconds - getattr(then, of).seconds) if then else 0.0

    alone = load.concurrency <= copies and load.rate_per_s is None
    ttft_s = figure(found.prefill.seconds, moved("prefill"), alone, "ttft_s")
    tpot_s = figure(found.decode.seconds, moved("decode"), True, "tpot_s")
    whole_s = found.request.seconds
    slower = (ttft_s.high - ttft_s.value) + (load.output_tokens - 1) * (tpot_s.high - tpot_s.value)
    faster = (ttft_s.value - ttft_s.low) + (load.output_tokens - 1) * (tpot_s.value - tpot_s.low)
    tokens = found.output_tokens_per_s
    low, high = (
        tokens * whole_s / (whole_s + slower),
        tokens * whole_s / max(whole_s - faster, 1e-9),
    )
    if load.rate_per_s is not None and not found.saturated:
        high = tokens  # no more comes out than is asked for
    return Outlook(
        load,
        ttft_s,
        tpot_s,
        Figure(tokens, low, high, source.origin),
        found.prefill,
        found.decode,
        found.saturated,
        tuple(_narrower(known, source)),
        dict(_origins(found.decode, known, source)),
        found,
    )


def source_of(known: Known) -> Source:
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
        return Source(formulas, Origin.MODELLED)
    layout = Parallelism(engine.tensor, engine.pipeline, engine.data)
    if formulas is None or (known.then is None and layout != known.layout):
        if layout != known.layout and formulas is None:
            text = f"the engine was measured as {layout}, not as {known.layout}"
            raise UserError(
                text, "Give the model's sizes: --config FILE, and run: orchestrate probe"
            )
        if layout != known.layout:
            assert formulas is not None
            return Source(formulas, Origin.MODELLED)
        return Source(inverted(engine, Nothing(layout.pipeline), known.limits), Origin.HERE)
    rates = _as_measured(known.then or formulas.rates, engine)
    then = Formulas(formulas.shape, layout, rates)
    constants = fitted(engine, then, known.limits)
    own = _with_host(constants, formulas.rates.engine.step_s, rates.engine.step_s)
    then = replace(then, rates=replace(rates, engine=constants))
    now = replace(formulas, rates=replace(formulas.rates, engine=own))
    steps = inverted(engine, then, known.limits)
    if then == now:
        return Source(steps, Origin.HERE, then)
    return Source(replace(steps, base=now, then=then), Origin.ELSEWHERE, then)


def _with_host(constants: Engine, now_s: float, then_s: float) -> Engine:
    """The constants on a host that was made faster or slower than the measured one."""
    factor = now_s / then_s if then_s else 1.0
    return replace(
        constants,
        step_s=constants.step_s * factor,
        per_sequence_s=constants.per_sequence_s * factor,
        request_s=constants.request_s * factor,
    )


def _formulas(known: Known, base: Formulas | None) -> Steps:
    """The formulas of what is asked for, with the constants of the measured cluster."""
    assert base and known.shape and known.rates
    rates = replace(known.rates, engine=base.rates.engine)
    return Formulas(known.shape, known.layout, rates)


def _as_measured(rates: Rates, engine: EngineRates) -> Rates:
    """The rates with the link that was there when the engine was measured, if it was another."""
    seen, latency_s = engine.link_bytes_per_s, engine.link_latency_s
    if rates.link is None or not seen:
        return rates
    if abs(math.log(seen / rates.link.bytes_per_s)) <= SAME_LINK:
        return rates
    return replace(rates, link=LinkRate(latency_s or rates.link.latency_s, seen))


def _figure(
    known: Known, origin: Origin, load: OfferedLoad, of: tuple[float, float, bool, str]
) -> Figure:
    value, moved, single, name = of
    if origin is Origin.MODELLED or known.engine is None:
        return Figure(value, value * FORMULAS_LOW, value * FORMULAS_HIGH, origin)
    near, doublings = _nearest(known.engine, load)
    spread: Spread = getattr(near, name)
    noise = max(AT_A_CELL if spread.n >= 3 else ONCE, spread.relative)
    alone = 1.0 if known.shape and known.rates else ALONE
    off = math.hypot(noise, FOR_TWICE * alone * doublings, MODELLED_OFF * moved)
    off = math.hypot(off, 0.0 if single else TOGETHER)
    return Figure(value, value / (1 + off), value * (1 + off), origin)


def _nearest(engine: EngineRates, load: OfferedLoad) -> tuple[EngineCell, float]:
    """The nearest measured load, and how many factors of two it is away."""

    def away(cell: EngineCell) -> float:
        requests = math.log2(max(load.concurrency, 1.0) / max(cell.concurrency, 1))
        return math.hypot(requests, math.log2(load.prompt_tokens / cell.prompt_tokens))

    near = min(engine.cells, key=away)
    return near, away(near)


def _narrower(known: Known, source: Source) -> Iterator[str]:
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
    if engine.layers is not None and engine.layers != engine.of_layers:
        yield f"only {engine.layers} of {engine.of_layers} layers were measured"
    if engine.weights is Weights.DUMMY and source.base and source.base.shape.experts:
        yield "dummy weights choose experts evenly: measure with the model's own"


def _origins(decode: Prediction, known: Known, source: Source) -> Iterator[tuple[str, Origin]]:
    """A token's parts. The split of a measured step is the formulas'; its sum is measured."""
    then = source.base.rates.link if source.base else None
    now = known.rates.link if known.rates else None
    for cause, seconds in decode.parts.shares().items():
        if not seconds:
            continue
        link = cause in (Cause.LINK_LATENCY, Cause.LINK_BANDWIDTH)
        yield str(cause), Origin.MODELLED if link and now != then else source.origin
