"""A model with fewer layers, and what it says of the whole one. Pure.

Layers may be of several kinds: a few dense ones before those with experts, every sixth with full
attention. A cut keeps the first ones and whole periods of the rest, so that each kind keeps its
share.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.core.errors import BadInput
from orchestrator.models.reading.facts import Config, facts
from orchestrator.models.reading.layers import depth, layers
from orchestrator.models.reading.shorter import is_by_layer, names_layers
from orchestrator.performance.results.engine import EngineCell
from orchestrator.performance.results.probe import Spread

#: The share of the layers that may come first, before the rest repeats.
MOST_FIRST = 0.25


@dataclass(frozen=True)
class Pattern:
    """So many layers of their own come first, then the same ``period`` again and again."""

    layers: int
    first: int = 0
    period: int = 1

    def nearest(self, wanted: float) -> int:
        """The depth nearest to ``wanted`` that has whole periods, one at least."""
        return self.first + self.period * max(1, round((wanted - self.first) / self.period))

    def depths(self) -> tuple[int, int] | None:
        """A quarter and a half of the layers, about; None where no two depths are smaller."""
        low, high = self.nearest(self.layers / 4), self.nearest(self.layers / 2)
        if high == low:
            high += self.period
        return (low, high) if high < self.layers else None


def pattern(config: Config) -> Pattern | None:
    """How a model's layers repeat; None where config.json does not say how many there are."""
    found = facts(config)
    count = depth(found)
    if not count:
        return None
    ways = [_repeats(kinds) for kinds in (*_kinds(found.part, count), layers(found, [])) if kinds]
    return Pattern(
        count,
        max((first for first, _ in ways), default=0),
        math.lcm(*(period for _, period in ways)),
    )


def _kinds(text: Config, count: int) -> Iterator[Sequence[Any]]:
    """Each layer's kind, in every way in which config.json lists it."""
    for key, value in text.items():
        if is_by_layer(key, value, count):
            yield value
        elif names_layers(key, value, count):
            yield [each in value for each in range(count)]


def _repeats(kinds: Sequence[Any]) -> tuple[int, int]:
    """How many come first, and the period of the rest: the smallest ones."""
    count = len(kinds)
    for period in range(1, count):
        for first in range(int(count * MOST_FIRST) + 1):
            if all(kinds[n] == kinds[n - period] for n in range(first + period, count)):
                return (first, period) if first + period < count else (0, count)
    return 0, count


def checked(depths: Sequence[int], found: Pattern) -> tuple[int, int]:
    """Two depths that were asked for. Raises BadInput where they are none, or break the pattern."""
    if len(set(depths)) != 2 or not all(1 <= each <= found.layers for each in depths):
        raise BadInput(f"--layers wants two numbers, each from 1 to {found.layers}, like 14,28")
    low, high = sorted(depths)
    for each in (low, high):
        if each < found.layers and each != found.nearest(each):
            raise BadInput(
                f"--layers: {each} layers break the model's pattern: {found.first} of their own, "
                f"then periods of {found.period}",
                f"The nearest that keep it: {found.nearest(each)}.",
            )
    return low, high


def extrapolated(
    low: Sequence[EngineCell], high: Sequence[EngineCell], depths: tuple[int, int], layers: int
) -> tuple[EngineCell, ...]:
    """Each cell on the straight line through two depths, as wide as the noise of both makes it."""
    ahead = (layers - depths[1]) / (depths[1] - depths[0])
    found = []
    for cell in high:
        other = next((each for each in low if _load(each) == _load(cell)), None)
        if other is None:
            continue
        step = None
        if other.step_s and cell.step_s:
            step = _line(other.step_s, cell.step_s, ahead)
        ttft, tpot = (
            _line(other.ttft_s, cell.ttft_s, ahead),
            _line(other.tpot_s, cell.tpot_s, ahead),
        )
        share = _whole(cell, cell.ttft_s, cell.tpot_s) / _whole(cell, ttft, tpot)
        rate = cell.output_tokens_per_s
        found.append(
            replace(
                cell,
                ttft_s=ttft,
                tpot_s=tpot,
                step_s=step,
                output_tokens_per_s=Spread(
                    rate.median * share, rate.low * share, rate.high * share, rate.n
                ),
            )
        )
    return tuple(found)


def _load(cell: EngineCell) -> tuple[int, int, int]:
    return cell.prompt_tokens, cell.output_tokens, cell.concurrency


def _whole(cell: EngineCell, ttft: Spread, tpot: Spread) -> float:
    return max(1e-9, ttft.median + (cell.output_tokens - 1) * tpot.median)


def _line(low: Spread, high: Spread, ahead: float) -> Spread:
    """The value ``ahead`` times the depths' distance further. More layers never take less time."""

    def at(near: float, far: float) -> float:
        return max(near, near + (near - far) * ahead)

    return Spread(
        at(high.median, low.median),
        at(high.low, low.high),
        at(high.high, low.low),
        min(low.n, high.n),
    )
