"""How a difference is called: its size and its interval, with as few repeats as there are."""

from __future__ import annotations

import math
import random

import pytest

from orchestrator.performance.bench.history import changes
from orchestrator.performance.bench.ratio import Ratio, ratio
from orchestrator.performance.results.probe import Spread, spread


def said(before: list[float], after: list[float]) -> str:
    found = ratio(spread(before), spread(after))
    assert found
    return found.words("more", "less")


@pytest.mark.parametrize("repeats", [1, 2, 3, 4, 10])
def test_five_times_is_five_times_whatever_the_repeats(repeats: int) -> None:
    before = [100.0 + number for number in range(repeats)]
    text = said(before, [each / 5 for each in before])
    assert text.startswith("5 times less")
    assert ("few repeats" in text) == (repeats in (2, 3)) and "significant" not in text
    assert ("no interval" in text) == (repeats == 1)


def test_repeats_that_lie_far_apart_make_the_interval_wide_and_not_the_size_small() -> None:
    text = said([100, 300], [20, 60])
    assert text.startswith("5 times less (") and " times less to " in text
    assert text.endswith("more; few repeats, 2 and 2)")


def test_a_small_change_is_a_percentage_with_both_ends() -> None:
    assert said([98, 100, 101, 103], [99, 103, 104, 106]) == "3% more (3% less to 9% more)"


def test_one_repeat_beside_two_has_no_interval_but_beside_three_it_has() -> None:
    assert "2 and 1 repeats: no interval" in said([1, 1.1], [2])
    assert "(" in said([1, 1.05, 1.1], [2]) and "no interval" not in said([1, 1.05, 1.1], [2])


def test_a_figure_of_zero_has_no_ratio() -> None:
    assert ratio(Spread(0, 0, 0, 3), Spread(1, 1, 1, 3)) is None


def test_a_change_is_sure_from_a_share_on_if_its_whole_interval_is() -> None:
    assert Ratio(1.5, 1.1, 2.0, (3, 3)).beyond(0.05) and Ratio(0.5, 0.4, 0.6, (3, 3)).beyond(0.05)
    assert not Ratio(1.5, 1.04, 2.0, (3, 3)).beyond(0.05)
    assert not Ratio(5.0, None, None, (1, 1)).beyond(0.05)


@pytest.mark.parametrize("repeats", [2, 3, 4, 8])
def test_nineteen_of_twenty_intervals_hold_the_true_ratio(repeats: int) -> None:
    """Also where the truth is known: drawn with a spread of a tenth, always the same draws."""
    draw, held, tries = random.Random(repeats), 0, 2000
    for _ in range(tries):
        one, two = ([math.exp(draw.gauss(0, 0.1)) for _ in range(repeats)] for _ in range(2))
        found = ratio(spread(one), spread([3 * each for each in two]))
        assert found and found.low and found.high
        held += found.low <= 3 <= found.high
    assert 0.93 <= held / tries <= 0.995


def test_a_comparison_gives_the_ratio_and_its_interval_to_programs() -> None:
    from dataclasses import asdict, replace

    from support.report import measured, story

    run = story().run
    load = measured(1, 1)
    fast = replace(load, output_tokens_per_s=spread([10.0, 10.1, 10.2]))
    (change,) = [
        each for each in changes(replace(run, measured=(load,)), replace(run, measured=(fast,)))
        if each.figure == "tokens a second"
    ]  # fmt: skip
    found = asdict(change)["ratio"]
    assert change.significant and change.worse
    assert 0 < found["low"] < found["value"] < found["high"] < 0.3
