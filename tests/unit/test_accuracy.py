"""Statistics of forecasts against measurements."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from orchestrator.performance.report.score import (
    Load,
    Scored,
    Unscored,
    groups,
    kind,
    totals,
    worst,
)
from orchestrator.performance.report.tables import (
    KEYS,
    group_row,
    phase_row,
    reasons,
)
from orchestrator.performance.results.bench import Workload

PLAIN = Scored(
    "r", "w", "first token", Load.ONE, "tensor 1, pipeline 1", "modelled", 1.1, 1.0, 0.5, 1.5
)


def off(share: float, **other: object) -> Scored:
    """A forecast that is off by so much."""
    return replace(PLAIN, forecast_s=1 + share, **other)  # type: ignore[arg-type]


def test_the_figures_of_ten() -> None:
    shares = (0.01, -0.02, 0.03, -0.04, 0.05, -0.06, 0.07, -0.08, 0.2, -0.9)
    (found,) = groups(map(off, shares))
    assert found.keys == ("first token", "one request", "tensor 1, pipeline 1", "modelled")
    assert (found.number, found.off, found.off_90) == pytest.approx((10, 0.055, 0.2))
    assert found.good == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("load", "share", "good"),
    [(Load.ONE, 0.149, True), (Load.ONE, -0.16, False), (Load.MANY, 0.249, True),
     (Load.MANY, -0.26, False), (Load.RATE, -0.249, True), (Load.RATE, 0.26, False)],
)  # fmt: skip
def test_a_load_may_be_off_by_more_than_one_request(load: Load, share: float, good: bool) -> None:
    assert off(share, load=load).good is good


def test_kinds_are_kept_apart_and_added_up() -> None:
    found = [
        PLAIN,
        replace(PLAIN, phase="further token"),
        replace(PLAIN, load=Load.MANY),
        replace(PLAIN, load=Load.RATE),
        replace(PLAIN, layout="tensor 2, pipeline 1"),
        replace(PLAIN, origin="measured here"),
    ]
    assert [each.number for each in groups(found)] == [1] * 6
    assert [(each.keys, each.number) for each in totals(found)] == [
        (("one request",), 4), (("under load",), 2),
    ]  # fmt: skip
    assert groups([]) == [] == totals([])


@pytest.mark.parametrize(
    ("low", "high", "inside"),
    [(0.9, 1.1, True), (1.0, 1.2, True), (1.01, 1.2, False), (0.5, 0.99, False),
     (1.0, 1.0, None), (None, None, None)],
)  # fmt: skip
def test_an_interval_without_width_is_none(
    low: float | None, high: float | None, inside: bool | None
) -> None:
    """Without noise a forecast does not say how far off it may be: it neither hits nor misses."""
    one = replace(PLAIN, low_s=low, high_s=high)
    assert one.inside is inside
    (found,) = groups([one])
    assert (found.with_interval, found.inside) == (inside is not None, inside)
    row = group_row(found, KEYS)
    assert (row["inside the interval"] == "") is (inside is None)
    assert (phase_row(one)["interval"] == "none") is (inside is None)


def test_the_share_inside_is_of_those_that_had_an_interval() -> None:
    bare = replace(PLAIN, low_s=1.0, high_s=1.0)
    missed = replace(PLAIN, low_s=1.2, high_s=1.3)
    (found,) = groups([PLAIN, missed, bare, bare])
    assert (found.number, found.with_interval, found.inside) == (4, 2, 0.5)
    assert group_row(found, KEYS)["inside the interval"] == "50% of 2"


def test_the_worst_come_first_by_name() -> None:
    found = worst([off(share, workload=f"{share}") for share in (0.1, -0.7, 0.3, 0, 2, 0.05)])
    assert [each.workload for each in found] == ["2", "-0.7", "0.3", "0.1", "0.05"]
    assert found[0].name == "r, 2, first token"


def test_what_kind_a_load_is() -> None:
    one = Workload("w", 8, 8, 4, 1)
    assert kind(one) is Load.ONE
    assert kind(replace(one, concurrency=2)) is Load.MANY
    assert kind(replace(one, concurrency=None, rate=2.0)) is Load.RATE


def test_reasons_are_one_line_for_each_run_and_reason() -> None:
    named = [Unscored("r", f"w{number}", "it failed") for number in range(5)]
    assert reasons([*named, Unscored("s", "", "no run")]) == [
        "r: w0, w1, w2 and 2 more: it failed", "s: no run",
    ]  # fmt: skip


@given(st.lists(st.floats(-0.99, 50), min_size=1, max_size=30))
def test_nine_of_ten_are_within_and_no_smaller_figure_says_so(shares: list[float]) -> None:
    (found,) = groups(map(off, shares))
    away = [abs(off(each).off) for each in shares]
    assert sum(each <= found.off_90 for each in away) >= 0.9 * len(away)
    assert sum(each < found.off_90 for each in away) < 0.9 * len(away)
    assert min(away) <= found.off <= found.off_90 or len(away) < 3


def test_scored_is_a_small_form_too() -> None:
    """Results of the repository that are no runs have the same fields."""
    kind = TypeAdapter(Scored)
    one = kind.validate_python(
        {"run": "a", "workload": "b", "phase": "first token", "load": "a rate", "layout": "c",
         "origin": "modelled", "forecast_s": 1.1, "measured_s": 1.0, "made": "after"}
    )  # fmt: skip
    assert kind.validate_json(kind.dump_json(one)) == one
    assert (one.inside, one.good) == (None, True)
