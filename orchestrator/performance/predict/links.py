"""The cost of messages between ranks: measured, else by a formula.

Ring all-reduce of m bytes over N ranks: 2 (N-1) steps of m/N bytes, so 2 (N-1) a + 2 (N-1)/N m/b
with latency a and bandwidth b of the slowest link (Thakur, Rabenseifner, Gropp, "Optimization of
Collective Communication Operations in MPICH", 2005, section 4; Patarasuk and Yuan, 2009). No
algorithm moves fewer bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from orchestrator.performance.results.probe import Spread


@dataclass(frozen=True)
class LinkRate:
    """A link between two nodes: latency in seconds, and bandwidth in bytes per second."""

    latency_s: float
    bytes_per_s: float


@dataclass(frozen=True)
class Cost:
    """Seconds of messages, by cause: latency, bandwidth, and the communication library's work."""

    latency_s: float = 0.0
    bandwidth_s: float = 0.0
    library_s: float = 0.0

    @property
    def seconds(self) -> float:
        return self.latency_s + self.bandwidth_s + self.library_s

    def times(self, count: float) -> Cost:
        """The cost of ``count`` such messages, one after the other."""
        return Cost(self.latency_s * count, self.bandwidth_s * count, self.library_s * count)

    def plus(self, other: Cost) -> Cost:
        return Cost(
            self.latency_s + other.latency_s,
            self.bandwidth_s + other.bandwidth_s,
            self.library_s + other.library_s,
        )


@dataclass(frozen=True)
class Curve:
    """Measured seconds of one operation between ``ranks`` ranks. ``points``: (bytes, seconds).

    ``link``: the link as it was measured at that time.
    """

    ranks: int
    points: tuple[tuple[float, float], ...]
    link: LinkRate

    def at(self, size: float) -> float:
        """Seconds for ``size`` bytes, by linear interpolation.

        Below the first point: its time. Above the last one: the last line, extended. A larger
        message never takes less time.
        """
        if size <= self.points[0][0] or len(self.points) == 1:
            above = max(size - self.points[0][0], 0.0)
            return self.points[0][1] + above / self.link.bytes_per_s
        pairs = list(pairwise(self.points))
        (x0, y0), (x1, y1) = next((p for p in pairs if size <= p[1][0]), pairs[-1])
        return y0 + (size - x0) * (y1 - y0) / (x1 - x0)


def curve(ranks: int, by_size: Mapping[int, Spread], link: LinkRate) -> Curve | None:
    """A curve through the medians; None without measurements."""
    sizes = sorted(by_size)
    seconds = rising(by_size[size].median for size in sizes)
    points = tuple(zip(map(float, sizes), seconds, strict=True))
    return Curve(ranks, points, link) if points else None


def rising(values: Iterable[float]) -> list[float]:
    """The closest non-decreasing values, by least squares (isotonic regression).

    Neighbours in the wrong order are replaced by their mean (Ayer and others, "An empirical
    distribution function for sampling with incomplete information", 1955).
    """
    means: list[tuple[float, int]] = []
    for value in values:
        mean, count = value, 1
        while means and means[-1][0] > mean:
            before, of = means.pop()
            mean, count = (mean * count + before * of) / (count + of), count + of
        means.append((mean, count))
    return [mean for mean, count in means for _ in range(count)]


def all_reduce(ranks: int, size: float, link: LinkRate, measured: Curve | None) -> Cost:
    return _cost(_ring(ranks, size, link), ranks, size, link, measured)


def all_gather(ranks: int, size: float, link: LinkRate, measured: Curve | None) -> Cost:
    """One all-gather to ``size`` bytes on each rank: the second half of a ring all-reduce."""
    return all_reduce(ranks, size, link, measured).times(0.5)


def send(size: float, link: LinkRate, measured: Curve | None) -> Cost:
    plain = Cost(link.latency_s, size / link.bytes_per_s)
    if measured is None:
        return plain
    then = Cost(measured.link.latency_s, size / measured.link.bytes_per_s)
    return _decomposed(plain, then, measured.at(size))


def _ring(ranks: int, size: float, link: LinkRate) -> Cost:
    steps = 2 * (ranks - 1)
    return Cost(steps * link.latency_s, steps / ranks * size / link.bytes_per_s)


def _cost(now: Cost, ranks: int, size: float, link: LinkRate, measured: Curve | None) -> Cost:
    if measured is None or ranks == 1:
        return now if ranks > 1 else Cost()
    # Measured with another number of ranks: scale both terms as in the ring's formula.
    floor = measured.at(0) * (ranks - 1) / (measured.ranks - 1)
    share = (ranks - 1) / ranks / ((measured.ranks - 1) / measured.ranks)
    whole = floor + (measured.at(size) - measured.at(0)) * share
    return _decomposed(now, _ring(ranks, size, measured.link), whole)


def _decomposed(now: Cost, then: Cost, whole: float) -> Cost:
    """Split a measured time into the link's share and the library's.

    ``whole``: the measured time. ``then``: the formula's cost with the link as it was measured; the
    rest of ``whole`` is the library's. ``now``: the formula's cost with today's link, which
    replaces ``then`` in the result.
    """
    link = then.latency_s + then.bandwidth_s
    if whole < link:
        return Cost(now.latency_s, now.bandwidth_s).times(whole / link)
    return Cost(now.latency_s, now.bandwidth_s, whole - link)
