"""Samplers on the nodes of a cluster that others run, and vLLM's gauges, while it is loaded."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

from orchestrator.attach import endpoint as endpoints
from orchestrator.attach.reach import NodeShell
from orchestrator.core.run import streaming
from orchestrator.performance import metrics
from orchestrator.performance.bench.sample import SAMPLER, Heard, series
from orchestrator.performance.bench.sampler import GAUGES, PERIOD
from orchestrator.performance.results.bench import Series
from orchestrator.profile.existing import Attached, AttachedNode

#: What the endpoint's own series are listed under.
ENDPOINT = "endpoint"
#: The longest line of a sampler: a node may send anything.
MOST_LINE = 1 << 16
#: Most lines of a node: half a day.
MOST_LINES = 1 << 17


class Watched(Heard):
    """What was heard, and the endpoint's gauges, each with the time of its look."""

    def __init__(self, names: list[str]) -> None:
        now = time.monotonic()
        super().__init__({name: [] for name in names}, dict.fromkeys(names, now))
        self.gauges: list[tuple[float, dict[str, float]]] = []

    def take(self, name: str, text: str) -> None:
        if len(text) <= MOST_LINE and len(self.lines[name]) < MOST_LINES:
            super().take(name, text)

    def series(self, clocks_s: Mapping[str, float]) -> tuple[Series, ...]:
        """All of it; lines that are not a sampler's are left out."""
        times = tuple(when for when, _ in self.gauges)
        told = [
            Series(
                ENDPOINT, f"vLLM {name}", "", times, tuple(g.get(name, 0.0) for _, g in self.gauges)
            )
            for name in GAUGES
            if self.gauges
        ]
        return (*understood(self.lines, clocks_s), *told)


def understood(
    lines: Mapping[str, Sequence[Mapping[str, Any]]], clocks_s: Mapping[str, float]
) -> tuple[Series, ...]:
    """The series of those nodes whose lines are a sampler's: a node may send anything."""
    found: list[Series] = []
    for name, said in lines.items():
        whole = [each for each in said if isinstance(each, dict) and "cpu" in each]
        with suppress(LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
            found += series({name: whole}, clocks_s)
    return tuple(found)


def sampler_argv(node: AttachedNode, text: str = SAMPLER) -> list[str]:
    """The local command that runs a sampler on a node."""
    # The machine's own /proc and /sys: a container shows no more of them.
    return NodeShell(node).python("-S", "-c", text, "", inside=False)


@contextmanager
def watching(profile: Attached, nodes: Sequence[AttachedNode]) -> Iterator[Watched]:
    """Samplers on these nodes, and looks at the metrics, for the body. They end with it."""
    watched = Watched([node.name for node in nodes])
    over = threading.Event()

    def look() -> None:
        with endpoints.client_of(profile) as client:
            while not over.wait(PERIOD):
                values = metrics.values(endpoints.metrics_page(client))
                if values:
                    watched.gauges.append((time.time(), {n: values.get(n, 0.0) for n in GAUGES}))

    looking = threading.Thread(target=look, daemon=True)
    with ExitStack() as running:
        for node in nodes:
            argv = sampler_argv(node)
            running.enter_context(streaming(argv, partial(watched.take, node.name)))
        looking.start()
        try:
            yield watched
        finally:
            over.set()
            looking.join(endpoints.ANSWER)
