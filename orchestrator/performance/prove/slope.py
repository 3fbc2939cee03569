"""The slope of a time over what was changed, its interval, and the verdict. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from orchestrator.performance.predict.outlook import FORMULAS_LOW
from orchestrator.performance.results.proof import Judgement, Slope, Turn

#: The chance that an interval lies beside the true slope.
CHANCE = 0.1
#: A measured slope counts as the predicted one down to this share of it.
LEAST = FORMULAS_LOW


def slope(points: Sequence[Turn], x_unchanged: float) -> Slope:
    """The median of the slopes between each load and the unchanged state around it.

    This is Theil's estimator (1950) on the pairs that drift of the machine does not spoil: those
    that were measured right after each other. Its interval is the sign test's (Thompson, 1936): it
    needs no assumption on how noise is distributed. Needs at least one point.
    """
    found = sorted((each.seconds - each.unchanged_s) / (each.x - x_unchanged) for each in points)
    skipped = _skipped(len(found))
    return Slope(
        statistics.median(found), found[skipped], found[len(found) - 1 - skipped], len(found)
    )


def _skipped(count: int) -> int:
    """How many of the smallest, and of the largest, the interval leaves out.

    The true median lies beyond the k smallest with the probability that at most k of ``count`` fair
    coins show heads.
    """
    beyond, skipped = 0.0, -1
    while True:
        beyond += math.comb(count, skipped + 1) / 2**count
        if 2 * beyond > CHANCE:
            return max(skipped, 0)
        skipped += 1


def judge(found: Slope, predicted: float) -> Judgement:
    """The verdict on a cause that predicts this slope, which is positive.

    Formulas are off by half in one of ten cases. So a slope confirms from half of what is predicted
    on, if it is clearly none at all, and refutes if it is clearly less than half. A larger one
    confirms too: the cause limits, and the prediction has too little of it.
    """
    if found.high < LEAST * predicted:
        return Judgement.REFUTED
    if found.value >= LEAST * predicted and found.low > 0:
        return Judgement.CONFIRMED
    return Judgement.UNDECIDED


def judge_without_effect(found: Slope, predicted: float) -> Judgement:
    """The verdict on a cause that predicts no effect here, where another would have ``predicted``:
    less than half of that confirms."""
    if found.high < LEAST * predicted:
        return Judgement.CONFIRMED
    if found.value >= LEAST * predicted and found.low > 0:
        return Judgement.REFUTED
    return Judgement.UNDECIDED
