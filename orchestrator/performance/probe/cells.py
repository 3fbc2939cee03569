"""Which small loads show an engine: as few as cover a profile's limits. Pure.

A step's time depends on how many requests decode, and on how many tokens they have behind them; a
prompt's on its length, and on whether it is short enough for a captured graph: a longer one waits
for the host to launch each operation, twice as long or more. So: short prompts at each batch size,
long ones at the ends, and a prompt on each side of the largest graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.performance.predict.load import Limits
from orchestrator.performance.results.bench import Workload

#: Tokens of an answer: enough that the decode's time is much longer than a step's noise, few enough
#: that a round takes seconds. LONGEST: where prompts take turns before all of them decode.
OUTPUT, LONGEST = 32, 128
#: Tokens of a short prompt; a long one is at least so many times as long, else there is none.
SHORT, LONGER = 128, 4
#: The longest prompt, however long the context is: longer ones are computed in pieces of the same
#: size, so they add nothing but their context.
LONG = 8192
#: The most requests at once, whatever the profile allows: so many have never been served by a
#: cluster of this kind, and a round of them takes long.
MOST = 256


@dataclass(frozen=True)
class SmallLoad:
    """So many requests at once, of equal length, in tokens."""

    prompt: int
    output: int
    concurrency: int


def cells(limits: Limits, workloads: Sequence[Workload]) -> tuple[SmallLoad, ...]:
    """The loads in the order of their use: where time is short, the last ones are left out."""
    context = limits.context or max(_tokens(each) for each in workloads) + LONGEST
    most = min(
        limits.sequences, MOST, max((each.concurrency or 1 for each in workloads), default=1)
    )
    longest = min(LONG, max((each.prompt_tokens for each in workloads), default=SHORT))
    long = max(1, min(longest, context - LONGEST))
    shortest = min((each.prompt_tokens for each in workloads), default=SHORT)
    short = max(1, min(SHORT, shortest, long))
    sizes = _sizes(most)
    found = [(short, 1), (short, sizes[-1])]
    if long >= LONGER * short:
        found += [(long, 1)]
    found += [(short, size) for size in sizes]
    if long >= LONGER * short:
        # A prompt between them: how much of its time does not grow with it.
        graph = limits.captured
        sides = [graph, graph + 1] if short <= graph < long else [round((short * long) ** 0.5)]
        found += [(prompt, 1) for prompt in sides]
        found += [(long, size) for size in dict.fromkeys((min(4, sizes[-1]), sizes[-1]))]
    return tuple(
        SmallLoad(prompt, _output(prompt, size, limits, context), size)
        for prompt, size in dict.fromkeys(found)
    )


def _tokens(workload: Workload) -> int:
    return workload.prompt_tokens + workload.output_tokens


def _sizes(most: int) -> list[int]:
    """1, 2, 4, ... and the largest."""
    found = [1]
    while found[-1] * 2 < most:
        found.append(found[-1] * 2)
    return found if found[-1] == most else [*found, most]


def _output(prompt: int, size: int, limits: Limits, context: int) -> int:
    """So many tokens that all requests decode together for a while: the first one waits in no
    step, the last one until all prompts before it are computed."""
    turns = -(-prompt * size // limits.batched_tokens)
    return max(2, min(OUTPUT + turns, LONGEST, context - prompt))
