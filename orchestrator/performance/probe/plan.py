"""The plan of probes between nodes: pairs, order, message sizes. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from orchestrator.models.reading.facts import facts
from orchestrator.performance.predict.phase import all_reduces
from orchestrator.performance.predict.shape import read

#: Tokens per step whose message sizes are probed: one request, batches, prompts.
TOKENS = (1, 4, 8, 32, 128, 512, 2048)
#: Bytes of one activation, and the width to use if the model's is unknown.
DTYPE_BYTES, HIDDEN = 2, 4096
LARGEST = 16 << 20
#: Bytes of weights that a rank reads between two messages, if the model's shape is unknown.
BETWEEN = 8 << 20
#: The most turns, of about 4 s each: two minutes, also for a hundred nodes.
TURNS = 30
#: Pairs per turn, if there are too many for one pair per turn.
AT_ONCE = 16


@dataclass(frozen=True)
class Pair:
    """Two nodes that both have a link on one network."""

    a: str
    b: str
    network: str

    @property
    def where(self) -> str:
        return f"{self.a}, {self.b} over {self.network}"


def sizes(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The message sizes in bytes that a model's ranks exchange: tokens times width."""
    width = facts(config).whole("hidden_size") or HIDDEN
    found = {tokens * width * DTYPE_BYTES for tokens in TOKENS}
    return tuple(sorted(size for size in found if size <= LARGEST))


def between(config: Mapping[str, Any], ranks: int) -> int:
    """Bytes of weights that a rank reads between two all-reduces."""
    shape, _ = read(config)
    if shape is None:
        return BETWEEN
    return round(shape.bytes_read(1, ranks) / all_reduces(shape))


def turns(members: Mapping[str, Sequence[str]]) -> list[tuple[Pair, ...]]:
    """The pairs of each turn. ``members``: the nodes on each network.

    One pair per turn, so that nothing disturbs it, if TURNS suffice. Otherwise several pairs that
    share no node, and only some of all pairs, but with every node in one of them.
    """
    rounds = [list(_rounds(network, nodes)) for network, nodes in members.items()]
    found = [pair for each in zip_longest(*rounds, fillvalue=()) for part in each for pair in part]
    if len(found) <= TURNS:
        return [(pair,) for pair in found]
    mixed = [part for each in zip_longest(*rounds, fillvalue=()) for part in each]
    several = (
        part[start : start + AT_ONCE] for part in mixed for start in range(0, len(part), AT_ONCE)
    )
    return [part for part, _ in zip(several, range(TURNS), strict=False)]


def left_out(members: Mapping[str, Sequence[str]]) -> int:
    """The number of pairs that `turns` leaves out."""
    every = sum(len(nodes) * (len(nodes) - 1) // 2 for nodes in members.values())
    return every - sum(map(len, turns(members)))


def _rounds(network: str, nodes: Sequence[str]) -> Iterator[tuple[Pair, ...]]:
    """All pairs on a network, in rounds without a node twice.

    It is a round-robin tournament's schedule: one node keeps its seat, the others move on by one.
    """
    seats: list[str | None] = [*nodes]
    if len(seats) % 2:
        seats.append(None)
    for _ in range(len(seats) - 1):
        opposite = zip(seats, reversed(seats), strict=True)
        facing = [pair for pair, _ in zip(opposite, range(len(seats) // 2), strict=False)]
        yield tuple(Pair(a, b, network) for a, b in facing if a and b)
        seats = [seats[0], seats[-1], *seats[1:-1]]
