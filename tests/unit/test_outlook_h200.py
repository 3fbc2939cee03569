"""How far forecasts are off on real cards: loads, links and layouts that were held out.

The bounds are what was found (docs/explanation/performance-model.md), and every miss is listed: one
that becomes right fails too, so that the list stays true.
"""

from __future__ import annotations

import pytest
from support.h200 import KINDS, off

#: Kind -> largest median, ninth tenth, and the share inside the interval at least.
BOUNDS = {
    "formulas alone": (0.10, 0.28, 0.9),
    "another number of requests": (0.10, 0.32, 0.85),
    "the same, without formulas": (0.12, 0.35, 0.85),
    "another link": (0.13, 0.25, 0.9),
    "another layout": (0.08, 0.12, 0.9),
}
#: More than this is a miss.
MISS = 0.25
MISSES = {
    "formulas alone": {
        # Each request's way through the API takes a millisecond or two, which no constant says.
        "A llama-8b 32 layers one: 128 tokens, 32 at once: first token",
        "A mistral-22b 56 layers one: 128 tokens, 32 at once: first token",
        "B mistral-22b 56 layers tensor 2 10000 Mb/s: 128 tokens, 32 at once: first token",
        # The assumed cost of each request in a step: too much for one, too little for the other.
        "A llama-8b 32 layers one: 128 tokens, 32 at once: further token",
        "A mistral-22b 56 layers one: 128 tokens, 32 at once: further token",
        # Four answers of 16 tokens: noise.
        "A llama-8b 32 layers one: 2048 tokens, 1 at once: further token",
    },
    # The same host is up to twice as fast some seconds later (earlier-measurements.md): at 12
    # layers one load was 8.6 and 10.8 ms, and eight at once were faster than one.
    "another number of requests": {
        "C mistral-22b 12 layers tensor 2: 128 tokens, 8 at once: further token",
        "D mistral-22b 12 layers one: 128 tokens, 8 at once: further token",
        "D mistral-22b 12 layers one: 128 tokens, 1 at once: first token",
        # Without a long prompt in the cells, and with a median that lies between two steps.
        "B mistral-22b 56 layers tensor 2 10000 Mb/s: 128 tokens, 8 at once: first token",
        "C mistral-22b 4 layers tensor 2: 128 tokens, 8 at once: first token",
    },
    "the same, without formulas": {
        "C mistral-22b 12 layers tensor 2: 128 tokens, 8 at once: further token",
        "D mistral-22b 12 layers one: 128 tokens, 8 at once: further token",
        "D mistral-22b 12 layers one: 128 tokens, 1 at once: first token",
        "B mistral-22b 56 layers tensor 2 10000 Mb/s: 128 tokens, 8 at once: first token",
        "C mistral-22b 4 layers tensor 2: 128 tokens, 8 at once: first token",
        # 27 % too high.
        "A mistral-22b 56 layers one: 128 tokens, 8 at once: first token",
        # Eight hidden states fill this link, one does not.
        "B mistral-22b 56 layers tensor 2 1000 Mb/s: 128 tokens, 8 at once: further token",
    },
    "another link": {
        # 58 ms a token on the free link, 45 on the slow one: noise of the host.
        "B mistral-22b 56 layers tensor 2 1000 Mb/s: 2048 tokens, 1 at once: further token",
    },
    "another layout": set(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_real_cards(kind: str) -> None:
    found = list(KINDS[kind]())
    median, ninth, _ = off(found)
    most, most_ninth, inside = BOUNDS[kind]
    assert median <= most and ninth <= most_ninth
    assert {each.name for each in found if abs(each.off) > MISS} == MISSES[kind]
    assert sum(each.inside for each in found) >= inside * len(found)
