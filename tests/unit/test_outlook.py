"""Forecasts from the engine's own cells: given back, interpolated, carried to other clusters."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.predict import (
    FREE,
    GBE,
    MISTRAL,
    USB4,
    a770,
    engine_rates,
    exactly,
    rates_,
    shape_of,
)

from orchestrator.core.errors import UserError
from orchestrator.performance.predict.engine import Engine
from orchestrator.performance.predict.layout import Parallelism
from orchestrator.performance.predict.load import Limits, LoadPrediction, OfferedLoad, under_load
from orchestrator.performance.predict.measured import bent
from orchestrator.performance.predict.outlook import Known, Origin, outlook, source_of
from orchestrator.performance.predict.phase import Cause
from orchestrator.performance.predict.rates import Rates, what_if
from orchestrator.performance.predict.steps import Formulas
from orchestrator.performance.results.engine import EngineCell, EngineRates
from orchestrator.performance.results.probe import Spread

ONE, TWO = Parallelism(), Parallelism(2)
LIMITS = Limits(sequences=64)
SHAPE = shape_of(MISTRAL)
#: The loads that the engine's probe takes: short prompts at several batches, long ones at the ends.
LOADS = [
    *(OfferedLoad(128, 32, many) for many in (1, 2, 8, 32)),
    OfferedLoad(512, 32, 1),
    *(OfferedLoad(2048, 64, many) for many in (1, 4, 32)),
]


def cell(load: OfferedLoad, ttft_s: float, tpot_s: float, *, off: float = 0.0) -> EngineCell:
    def around(value: float) -> Spread:
        return Spread(value, value * (1 - off / 2), value * (1 + off / 2), 3)

    many = int(load.concurrency)
    return EngineCell(
        load.prompt_tokens, load.output_tokens, many, around(ttft_s), around(tpot_s), exactly(1.0)
    )


def seen_with(rates: Rates, layout: Parallelism = ONE, slower: float = 1.0) -> EngineRates:
    """An engine that is as these formulas say, or slower by a factor."""

    def measured(load: OfferedLoad) -> LoadPrediction:
        return under_load(Formulas(SHAPE, layout, rates), layout.data, load, LIMITS)

    found = [(load, measured(load)) for load in LOADS]
    return engine_rates(
        (cell(a, slower * b.prefill.seconds, slower * b.decode.seconds) for a, b in found), layout
    )


HOST = Engine(step_s=2e-3, per_sequence_s=2e-4, request_s=5e-3)
CARD = a770(1, operation_s=1e-5, engine=HOST)
PAIR = a770(2, GBE, operation_s=1e-5, engine=HOST)


# Given back


@pytest.mark.parametrize("shape", [SHAPE, None])
@settings(max_examples=10, deadline=None)
@given(rates_, st.floats(0.5, 10), st.sampled_from([ONE, TWO, Parallelism(1, 2)]))
def test_what_was_measured_is_given_back(
    shape: object, rates: Rates, slower: float, layout: Parallelism
) -> None:
    """Whatever the engine's costs are, with and without formulas beside them."""
    rates = rates if layout.ranks > 1 else replace(rates, link=None, tensor_nodes=1, borders=0)
    seen = seen_with(rates, layout, slower)
    other = replace(rates, engine=Engine())
    known = Known(layout, LIMITS, SHAPE, other, seen)
    known = known if shape else replace(known, shape=None, rates=None)
    for each in seen.cells:
        load = OfferedLoad(each.prompt_tokens, each.output_tokens, each.concurrency)
        found = outlook(known, load)
        assert found.ttft_s.value == pytest.approx(each.ttft_s.median, rel=0.02)
        # A token's steps are what is left of others' prompts: more than half of it, to be exact.
        if found.decode.parts.prefill_s < 0.5 * found.decode.seconds:
            assert found.tpot_s.value == pytest.approx(each.tpot_s.median, rel=0.02)
        assert found.tpot_s.origin is Origin.HERE


def test_between_cells_lies_between() -> None:
    few, many = OfferedLoad(128, 32, 2), OfferedLoad(128, 32, 8)
    seen = engine_rates([cell(few, 0.1, 0.010), cell(many, 0.3, 0.040)])
    found = outlook(Known(ONE, LIMITS, engine=seen), replace(few, concurrency=5))
    # Others' prompts come between: two requests have half of one, more have none.
    assert found.tpot_s.value == pytest.approx(0.025, rel=0.03)
    assert 0.1 < found.ttft_s.value < 0.3


def test_requests_that_do_not_wait_for_each_other_make_no_prompt_quicker() -> None:
    """Four at once, each of which met a step with one other prompt: all their prompts in one step
    would take longer than one of them does."""
    brief, alone, four = OfferedLoad(128, 32), OfferedLoad(1024, 32), OfferedLoad(1024, 32, 4)
    seen = engine_rates([cell(brief, 0.02, 0.01), cell(alone, 0.1, 0.01), cell(four, 0.12, 0.012)])
    known = Known(ONE, LIMITS, engine=seen)
    assert outlook(known, four).ttft_s.value == pytest.approx(0.12)
    assert outlook(known, replace(alone, prompt_tokens=2048)).ttft_s.value >= 0.1


def test_beyond_the_cells_a_step_is_never_below_the_device() -> None:
    """One request was quick; of sixty-four, the card alone takes longer."""
    slow_card = replace(CARD, flops_per_s={"float16": 1e12})
    seen = engine_rates([cell(OfferedLoad(128, 32, 1), 6.0, 0.03)])
    found = outlook(Known(ONE, LIMITS, SHAPE, slow_card, seen), OfferedLoad(128, 32, 64))
    assert found.decode.parts.device_s >= 0.9 * 64 * SHAPE.flops(1, 0, 1) / 1e12
    alone = outlook(Known(ONE, LIMITS, engine=seen), OfferedLoad(128, 32, 64))
    assert alone.tpot_s.value == pytest.approx(0.03)  # no formula: nothing more is known


def test_without_formulas_a_step_is_the_engines() -> None:
    seen = seen_with(CARD)
    found = outlook(Known(ONE, LIMITS, engine=seen), OfferedLoad(128, 32, 1))
    assert found.decode.bound is Cause.ENGINE
    assert set(found.origins) == {"engine"} and found.origins["engine"] is Origin.HERE


def test_a_rate_follows_from_measured_steps() -> None:
    known = Known(ONE, LIMITS, engine=seen_with(CARD))
    slow = outlook(known, OfferedLoad(128, 32, 64, rate_per_s=0.5))
    flood = outlook(known, OfferedLoad(128, 32, 64, rate_per_s=1e4))
    assert slow.output_tokens_per_s.value == pytest.approx(0.5 * 32)
    assert slow.output_tokens_per_s.high == pytest.approx(1.1 * 0.5 * 32)
    assert not slow.saturated and flood.saturated


# Carried to what was not measured


def test_another_link_changes_the_links_part_alone() -> None:
    seen = seen_with(PAIR, TWO)
    usb4 = replace(PAIR, link=USB4)
    load = OfferedLoad(2048, 64, 1)
    found = outlook(Known(TWO, LIMITS, SHAPE, usb4, seen, then=PAIR), load)
    right = under_load(Formulas(SHAPE, TWO, usb4), 1, load, LIMITS)
    assert found.ttft_s.value == pytest.approx(right.prefill.seconds, rel=0.03)
    assert found.ttft_s.origin is Origin.ELSEWHERE
    assert found.origins["link bandwidth"] is Origin.MODELLED
    assert found.origins["memory"] is Origin.ELSEWHERE
    assert any("other links" in each for each in found.narrower)


def test_a_link_that_changed_since_the_probe_is_seen() -> None:
    """The engine was measured over USB4; the newest probe is of a throttled link."""
    quick = replace(PAIR, link=USB4)
    seen = replace(
        seen_with(quick, TWO), link_bytes_per_s=USB4.bytes_per_s, link_latency_s=USB4.latency_s
    )
    found = outlook(Known(TWO, LIMITS, SHAPE, PAIR, seen), OfferedLoad(2048, 64, 1))
    right = under_load(Formulas(SHAPE, TWO, PAIR), 1, OfferedLoad(2048, 64, 1), LIMITS)
    assert found.ttft_s.value == pytest.approx(right.prefill.seconds, rel=0.03)
    assert found.origins["link bandwidth"] is Origin.MODELLED


def test_another_layout_keeps_the_host_that_was_measured() -> None:
    seen = seen_with(CARD)
    load = OfferedLoad(128, 32, 1)
    found = outlook(Known(TWO, LIMITS, SHAPE, PAIR, seen, then=CARD), load)
    right = under_load(Formulas(SHAPE, TWO, PAIR), 1, load, LIMITS)
    assert found.tpot_s.value == pytest.approx(right.decode.seconds, rel=0.03)
    assert any("serve as tensor 2" in each for each in found.narrower)
    with pytest.raises(UserError, match="measured as one device, not as tensor 2"):
        outlook(Known(TWO, LIMITS, engine=seen), load)


def test_a_layout_without_rates_of_the_measured_one_is_formulas() -> None:
    found = outlook(Known(TWO, LIMITS, SHAPE, PAIR, seen_with(CARD)), OfferedLoad(128, 32, 1))
    assert found.tpot_s.origin is Origin.MODELLED
    assert "orchestrate probe --only engine" in found.narrower[0]


def test_nothing_at_all_is_said() -> None:
    with pytest.raises(UserError, match="nothing was measured"):
        outlook(Known(ONE, LIMITS), OfferedLoad(128, 32, 1))
    with pytest.raises(UserError):
        source_of(Known(ONE, LIMITS, SHAPE, None, engine_rates(())))


# Intervals


def test_an_interval_grows_with_noise_distance_and_what_is_modelled() -> None:
    load = OfferedLoad(128, 32, 1)

    def width(known: Known, asked: OfferedLoad = load) -> float:
        found = outlook(known, asked).tpot_s
        assert found.low < found.value < found.high
        return found.high / found.low

    seen = seen_with(PAIR, TWO)
    here = Known(TWO, LIMITS, SHAPE, PAIR, seen)
    noisy = replace(seen, cells=tuple(_noisier(each, 0.5) for each in seen.cells))
    assert width(replace(here, engine=noisy)) > width(here)
    assert width(here, replace(load, concurrency=60)) > width(here)
    slower = what_if(PAIR, link_bytes_per_s=1e6)
    assert width(replace(here, rates=slower, then=PAIR)) > width(here)
    alone = Known(TWO, LIMITS, SHAPE, replace(PAIR, engine=FREE))
    assert width(alone) > width(here)


def test_what_would_narrow_it_is_said() -> None:
    seen = seen_with(CARD)
    here = Known(ONE, LIMITS, SHAPE, CARD, seen)
    load = OfferedLoad(128, 32, 1)
    assert outlook(here, load).narrower == ()
    (far,) = outlook(here, replace(load, prompt_tokens=16)).narrower
    assert "1 at once, prompts of 128" in far and "bench.workloads" in far
    noisy = replace(seen, cells=tuple(_noisier(each, 0.5) for each in seen.cells))
    (unsteady,) = outlook(replace(here, engine=noisy), load).narrower
    assert unsteady.startswith("repeats differ by 50%")
    cut = replace(seen, layers=12, of_layers=56)
    assert outlook(replace(here, engine=cut), load).narrower == (
        "only 12 of 56 layers were measured",
    )


def _noisier(each: EngineCell, off: float) -> EngineCell:
    load = OfferedLoad(each.prompt_tokens, each.output_tokens, each.concurrency)
    return cell(load, each.ttft_s.median, each.tpot_s.median, off=off)


def test_tokens_a_second_have_the_interval_of_the_times() -> None:
    found = outlook(Known(ONE, LIMITS, engine=seen_with(CARD)), OfferedLoad(128, 32, 8))
    tokens = found.output_tokens_per_s
    assert tokens.low < tokens.value < tokens.high
    assert tokens.high / tokens.value < 1.5


def test_a_prompts_step_is_the_hosts_until_the_card_takes_longer() -> None:
    """Llama 3.1 8B on an H200 with graphs up to 128 tokens (real_cards/2026-11-30-links.json)."""
    points = ((64.0, 13.5e-3), (128.0, 14e-3), (129.0, 21e-3), (1536.0, 38.9e-3))
    assert bent(points, 96) == pytest.approx(13.6e-3, abs=0.2e-3)
    assert bent(points, 160) == pytest.approx(21e-3, rel=0.01)
    assert bent(points, 640) == pytest.approx(23.1e-3, rel=0.05)  # a line says 27.5
    assert bent(points, 3072) == pytest.approx(2 * 38.9e-3, rel=0.05)
    assert bent(points, 1) == pytest.approx(13.5e-3, rel=0.05)
    assert all(bent(points, x) == pytest.approx(y) for x, y in points)


@given(
    st.lists(st.tuples(st.integers(1, 9000), st.floats(1e-6, 1)), min_size=1, max_size=6),
    st.floats(0, 20000),
)
def test_steps_between_measured_ones_lie_between_them(
    found: list[tuple[int, float]], x: float
) -> None:
    points = tuple(sorted({float(tokens): seconds for tokens, seconds in found}.items()))
    value = bent(points, x)
    assert value >= 0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 <= x <= x1:
            assert min(y0, y1) * 0.999 <= value <= max(y0, y1) * 1.001
    if x > points[-1][0] and len(points) > 1:
        assert value >= points[-1][1] * 0.999
