"""What is probed between whom, and at which sizes. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.profile import Node, Profile

#: Tokens of a step that are passed between ranks at once: a stream, batches, prompts.
TOKENS = (1, 4, 8, 32, 128, 512, 2048)
#: Bytes of one activation, and what is probed where the model's width is not known.
DTYPE_BYTES, HIDDEN = 2, 4096
LARGEST = 16 << 20
#: Pairs of a network at most: a hundred nodes have thousands.
PAIRS = 12


@dataclass(frozen=True)
class Pair:
    """Two nodes with a link each on one network."""

    a: Node
    b: Node
    network: str

    @property
    def where(self) -> str:
        return f"{self.a.name}, {self.b.name} over {self.network}"


def sizes(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Bytes of the messages that a model's ranks exchange: tokens times its width."""
    text = config.get("text_config", config)
    hidden = text.get("hidden_size") if isinstance(text, Mapping) else None
    width = hidden if isinstance(hidden, int) and hidden > 0 else HIDDEN
    found = {tokens * width * DTYPE_BYTES for tokens in TOKENS}
    return tuple(sorted(size for size in found if size <= LARGEST))


def pairs(profile: Profile, nodes: Sequence[Node]) -> tuple[Pair, ...]:
    """Pairs on each network that both are on, spread over the nodes where there are too many."""
    return tuple(
        pair for network in profile.networks for pair in _of_network(network, tuple(nodes))
    )


def left_out(profile: Profile, nodes: Sequence[Node]) -> int:
    """How many pairs `pairs` leaves out."""
    return sum(
        max(0, len(list(_all(network, tuple(nodes)))) - PAIRS) for network in profile.networks
    )


def _of_network(network: str, nodes: tuple[Node, ...]) -> Iterator[Pair]:
    every = list(_all(network, nodes))
    # Evenly over the list, so that most nodes are in one; always with the first, vLLM's.
    step = max(1.0, len(every) / PAIRS)
    yield from (every[int(number * step)] for number in range(min(len(every), PAIRS)))


def _all(network: str, nodes: tuple[Node, ...]) -> Iterator[Pair]:
    on = [node for node in nodes if network in node.links]
    yield from (Pair(a, b, network) for a, b in combinations(on, 2))
