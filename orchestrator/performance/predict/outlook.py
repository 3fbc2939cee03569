"""The forecast of one load on one layout: figures with intervals, and where each comes from."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from orchestrator.core.errors import UserError
from orchestrator.performance.predict.layout import Parallelism
from orchestrator.performance.predict.load import Limits, OfferedLoad, Prediction, forecast
from orchestrator.performance.predict.rates import Rates
from orchestrator.performance.predict.shape import ModelShape
from orchestrator.performance.results.engine import EngineRates

#: How far a figure from formulas alone may be off, as a share, in nine of ten cases.
FORMULAS_OFF = 0.5


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
    and ``rates``: for formulas. Either may be missing."""

    layout: Parallelism
    limits: Limits
    shape: ModelShape | None = None
    rates: Rates | None = None
    engine: EngineRates | None = None


@dataclass(frozen=True)
class Outlook:
    """A load's forecast. ``ttft_s``: the time to the first token; ``tpot_s``: per further token;
    ``prefill``, ``decode``: their parts. ``narrower``: what measurement would narrow it."""

    load: OfferedLoad
    ttft_s: Figure
    tpot_s: Figure
    output_tokens_per_s: Figure
    prefill: Prediction
    decode: Prediction
    saturated: bool = False
    narrower: tuple[str, ...] = ()


def outlook(known: Known, load: OfferedLoad) -> Outlook:
    """Forecast a load. Raises UserError where nothing was measured that it could be made from."""
    if known.shape is None or known.rates is None:
        raise UserError("nothing was measured that a forecast could be made from")
    found = forecast(known.shape, known.layout, known.rates, load, known.limits)
    return Outlook(
        load,
        _modelled(found.prefill.seconds),
        _modelled(found.decode.seconds),
        _modelled(found.output_tokens_per_s),
        found.prefill,
        found.decode,
        found.saturated,
    )


def _modelled(value: float) -> Figure:
    return Figure(value, value * (1 - FORMULAS_OFF), value * (1 + FORMULAS_OFF), Origin.MODELLED)
