"""What messages and products cost: by formula, as measured."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.predict import FREE, MISTRAL, seconds, shape_of

from orchestrator.performance.predict.layout import Parallelism
from orchestrator.performance.predict.links import Curve, LinkRate, all_reduce, rising, send
from orchestrator.performance.predict.phase import Cause, Work, step
from orchestrator.performance.predict.rates import Rates

ONE = Parallelism()

# Links


@given(st.integers(2, 64), st.floats(1, 1e8), st.builds(LinkRate, seconds, st.floats(1e5, 1e10)))
def test_a_ring_without_measurements_is_its_formula(
    ranks: int, size: float, link: LinkRate
) -> None:
    cost = all_reduce(ranks, size, link, None)
    steps = 2 * (ranks - 1)
    assert cost.seconds == pytest.approx(
        steps * link.latency_s + steps / ranks * size / link.bytes_per_s
    )


measured = st.builds(
    lambda start, steps: tuple(
        (float(2**index), start * (1 + sum(steps[:index]))) for index in range(len(steps) + 1)
    ),
    seconds,
    st.lists(st.floats(0, 3), min_size=1, max_size=8),
)


@given(measured, st.floats(0, 1000), st.builds(LinkRate, seconds, st.floats(1e5, 1e10)))
def test_measured_collectives_are_kept_as_they_are(
    points: tuple[tuple[float, float], ...], size: float, link: LinkRate
) -> None:
    """The parts of an all-reduce are what was measured, and a larger one never takes less."""
    curve = Curve(2, points, link)
    cost = all_reduce(2, size, link, curve)
    assert cost.seconds == pytest.approx(curve.at(size))
    assert curve.at(size + 1) >= curve.at(size) * (1 - 1e-9)
    assert min(cost.latency_s, cost.bandwidth_s, cost.library_s) >= -1e-12
    faster = replace(link, bytes_per_s=link.bytes_per_s * 2)
    assert all_reduce(2, size, faster, curve).seconds <= cost.seconds * (1 + 1e-9)
    assert send(size, faster, curve).seconds <= send(size, link, curve).seconds * (1 + 1e-9)
    assert all_reduce(4, size, link, curve).seconds >= cost.seconds * (1 - 1e-9)


# Products of few rows

#: By rows: of one, memory alone; of four, half as fast; of 256, arithmetic alone.
PRODUCTS = ((1.0, 8e9), (4.0, 4e9), (256.0, 1e8))
DENSE = {**MISTRAL, "torch_dtype": "bfloat16", "quantization_config": None}


@given(st.floats(1, 1e4), st.floats(1, 1e4))
def test_a_product_of_more_rows_never_takes_less(few: float, more: float) -> None:
    rates = Rates(8e9, {"bfloat16": 1e10}, 0.0, 8 * 10**9, products=PRODUCTS)
    quick, slow = (rates.product_s(1e9, rows) or 0 for rows in sorted((few, more)))
    assert quick * (1 + 1e-9) >= 1e9 / 8e9 and quick <= slow * (1 + 1e-9)
    assert rates.product_s(1e9, 512) == pytest.approx(20)  # twice those of 256
    assert Rates(8e9, {"bfloat16": 1e10}, 0.0, 8 * 10**9).product_s(1e9, 1) is None


def test_a_step_takes_what_products_of_its_rows_took() -> None:
    shape = shape_of(DENSE)
    roof = Rates(8e9, {"bfloat16": 1.6e10}, 0.0, 8 * 10**9, synchronous=True, engine=FREE)
    measured = replace(roof, products=PRODUCTS)
    work = Work(tokens=4, sequences=4, context=0)
    slower = step(shape, ONE, measured, work).seconds / step(shape, ONE, roof, work).seconds
    # Both roofs say 1/4 s a GB for four rows of 2 FLOPs a byte each; it took 1/4 s, too.
    assert slower == pytest.approx(1)
    one = Work(tokens=1, sequences=1, context=0)
    assert step(shape, ONE, measured, one).bound is Cause.MEMORY
    half = replace(roof, products=((1.0, 4e9), (256.0, 1e8)))
    assert step(shape, ONE, half, one).seconds == pytest.approx(
        2 * step(shape, ONE, roof, one).seconds
    )


def test_quantized_weights_are_not_taken_for_those_that_were_measured() -> None:
    shape = shape_of(MISTRAL)
    roof = Rates(8e9, {"float16": 1.6e10}, 0.0, 8 * 10**9)
    work = Work(tokens=4, sequences=4, context=100)
    assert step(shape, ONE, replace(roof, products=PRODUCTS), work) == step(shape, ONE, roof, work)


@given(st.lists(st.floats(0, 1e3), max_size=12))
def test_a_larger_message_never_takes_less_and_the_sum_stays(values: list[float]) -> None:
    found = rising(values)
    assert len(found) == len(values)
    assert all(a <= b + 1e-9 for a, b in pairwise(found))
    assert sum(found) == pytest.approx(sum(values))
    assert rising(found) == pytest.approx(found)


def test_only_what_falls_is_averaged() -> None:
    assert rising([1.7, 2.1, 1.3, 1.5, 3.0]) == pytest.approx([1.65] * 4 + [3.0])


def test_a_slow_link_shows_where_the_library_hid_a_quick_one() -> None:
    """Times that do not grow with size say nothing about the link; a slower one is waited for."""
    quick, slow = LinkRate(1e-5, 1e10), LinkRate(1e-5, 1e6)
    flat = Curve(2, ((1e3, 1e-3), (1e5, 1e-3)), quick)
    now = all_reduce(2, 1e5, slow, flat)
    assert all_reduce(2, 1e5, quick, flat).seconds == pytest.approx(1e-3)
    assert now.bandwidth_s == pytest.approx(0.1) and now.seconds == pytest.approx(0.101, rel=1e-3)


def test_beyond_the_largest_message_that_was_measured_the_last_line_goes_on() -> None:
    curve = Curve(2, ((1e3, 1e-3), (2e3, 2e-3), (4e3, 6e-3)), LinkRate(1e-5, 1e10))
    assert [curve.at(size) for size in (0, 1e3, 1.5e3, 3e3, 6e3)] == pytest.approx(
        [1e-3, 1e-3, 1.5e-3, 4e-3, 10e-3]
    )
