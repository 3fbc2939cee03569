"""The order in which an engine takes prompts that were sent together, and its median request."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as some

from orchestrator.performance.predict.load import Limits, OfferedLoad, one_round
from orchestrator.performance.predict.phase import Parts, Work

#: A step takes a millisecond for each token of a prompt, or this without prompts.
PLAIN = 0.01
LIMITS = Limits(batched_tokens=2000)


@dataclass(frozen=True)
class Even:
    """Steps whose time is their tokens."""

    stages: int = 1

    def step(self, work: Work, in_flight: float) -> Parts:
        return Parts(compute_s=work.tokens * 1e-3 if work.prompts else PLAIN)

    def first(self, steps: Parts, last: Work, together: float) -> Parts:
        return steps


@pytest.mark.parametrize(
    ("prompt", "many", "seconds"),
    [
        (1000, 1, 1.0),
        (3000, 1, 3.0),  # in two steps
        (1000, 2, 1.5),  # one after 1 s, one after 2
        (1000, 3, 3.0),  # the other two share a step of 2 s
        (1000, 5, 3.0),
        (1000, 6, 4.0),  # the third after 3 s, the fourth after 5
        (3000, 2, 4.5),
        (100, 8, 0.8),  # all others share a step
    ],
)
def test_the_median_request_waits_for_those_before_it(
    prompt: int, many: int, seconds: float
) -> None:
    found = one_round(Even(), OfferedLoad(prompt, 11, many), LIMITS)
    assert found.first.seconds == pytest.approx(seconds)


def test_prompts_that_follow_come_between_its_tokens() -> None:
    """Of four, the median one has one step of 1 s after its own."""
    found = one_round(Even(), OfferedLoad(1000, 11, 4), LIMITS)
    assert found.further.seconds == pytest.approx((9 * PLAIN + 1.0) / 10)
    assert found.further.prefill_s == pytest.approx(0.1)


def test_a_stage_begins_with_the_next_prompt_when_it_is_free() -> None:
    found = one_round(Even(stages=2), OfferedLoad(1000, 11, 2), LIMITS)
    assert found.first.seconds == pytest.approx((1.0 + 1.5) / 2)


@given(some.integers(1, 3000), some.integers(1, 40), some.integers(1, 300))
def test_a_request_stays_for_all_prompts_and_its_own_tokens(
    prompt: int, many: int, output: int
) -> None:
    """Whatever its place is: else requests would be served faster than they are computed."""
    found = one_round(Even(), OfferedLoad(prompt, output, many), LIMITS)
    assert found.stay_s >= many * prompt * 1e-3 - 1e-9
    assert found.stay_s <= many * prompt * 1e-3 + output * PLAIN + 1e-9
