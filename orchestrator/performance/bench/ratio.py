"""How far two measured figures differ: a ratio with its interval, and its words. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from orchestrator.performance.results.probe import Spread

#: For the range of so many repeats: what divides it for their standard deviation, and the degrees
#: of freedom of that (Patnaik, 1950). More repeats count as the last, which widens the interval.
RANGES = {
    2: (1.41, 1.0), 3: (1.91, 2.0), 4: (2.24, 2.9), 5: (2.48, 3.8), 6: (2.67, 4.7),
    7: (2.83, 5.5), 8: (2.96, 6.3), 9: (3.08, 7.0), 10: (3.18, 7.7),
}  # fmt: skip
#: Student's t of a 95 % interval, by whole degrees of freedom from 1; the last also for more.
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)
#: The standard error of a median of many values is so many times that of their mean.
OF_A_MEDIAN = math.sqrt(math.pi / 2)
#: From here on a ratio is called by its factor, below by its percentage.
TWICE, TIMES = 2.0, " times"
#: A run with fewer repeats has a wide interval.
ENOUGH = 4


@dataclass(frozen=True)
class Ratio:
    """A figure after, divided by before. 19 of 20 intervals from ``low`` to ``high`` hold the true
    ratio; None: too few repeats to know their spread. ``repeats``: before and after."""

    value: float
    low: float | None
    high: float | None
    repeats: tuple[int, int]

    @property
    def factor(self) -> float:
        """How many times the larger is the smaller."""
        return max(self.value, 1 / self.value) if self.value else math.inf

    def beyond(self, share: float) -> bool:
        """Whether the whole interval is a change of at least this share, in one direction."""
        if self.low is None or self.high is None:
            return False
        return self.low >= 1 + share or self.high <= 1 / (1 + share)

    def words(self, more: str, less: str) -> str:
        """The size, then its interval: ``5.3 times worse (5 to 5.6 times)``."""

        def way(ratio: float) -> str:
            return more if ratio > 1 else less

        said = f"{_size(self.value)} {way(self.value)}"
        if self.low is None or self.high is None:
            return f"{said} ({self.repeats[0]} and {self.repeats[1]} repeats: no interval)"
        few = min(self.repeats) < ENOUGH
        note = f"; few repeats, {self.repeats[0]} and {self.repeats[1]}" if few else ""
        ends = sorted((self.low, self.high), key=lambda ratio: abs(math.log(ratio)))
        if way(self.low) == way(self.high):
            least, most = map(_size, ends)
            if most.endswith(TIMES):
                least = least.removesuffix(TIMES)
            return f"{said} ({least} to {most}{note})"
        both = " to ".join(f"{_size(end)} {way(end)}" for end in (self.low, self.high))
        return f"{said} ({both}{note})"


def ratio(before: Spread, after: Spread) -> Ratio | None:
    """The ratio of two medians; None if one of them is not positive.

    The interval is Student's on the logarithm: repeats spread by shares. Their standard deviation
    comes from both ranges together, so that two repeats each give an interval.
    """
    repeats = (before.n, after.n)
    if min(before.low, after.low) <= 0:
        return None
    value = after.median / before.median
    known = [(math.log(each.high / each.low), *RANGES[min(each.n, max(RANGES))])
             for each in (before, after) if each.n > 1]  # fmt: skip
    freedom = sum(degrees for *_, degrees in known)
    if freedom < 2:
        return Ratio(value, None, None, repeats)
    variance = sum((span / divisor) ** 2 * degrees for span, divisor, degrees in known) / freedom
    errors = ((OF_A_MEDIAN if n > 2 else 1.0) ** 2 / n for n in repeats)
    off = STUDENT[min(int(freedom), len(STUDENT)) - 1] * math.sqrt(variance * sum(errors))
    return Ratio(value, value * math.exp(-off), value * math.exp(off), repeats)


def _size(ratio: float) -> str:
    """A change without its direction: a percentage of before, or a factor."""
    factor = max(ratio, 1 / ratio)
    return f"{factor:.3g}{TIMES}" if factor >= TWICE else f"{abs(ratio - 1):.0%}"
