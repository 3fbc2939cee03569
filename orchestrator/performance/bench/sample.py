"""Run samplers on every node, and turn their lines into series on one clock."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from orchestrator.cluster.cluster import Cluster
from orchestrator.cluster.vllm import SERVER_UNIT, WORKER_UNIT
from orchestrator.core.run import streaming
from orchestrator.models.serving import ways
from orchestrator.node.paths import PYTHON
from orchestrator.node.remote import Remote
from orchestrator.performance import metrics
from orchestrator.performance.bench.accelerators import TABLES
from orchestrator.performance.results.bench import Series
from orchestrator.profile import Node

#: The sampler's source text, which is sent to the nodes, with its tables.
SAMPLER = (
    Path(__file__)
    .with_name("sampler.py")
    .read_text(encoding="utf-8")
    .replace("TABLES: Tables = {}", f"TABLES: Tables = {TABLES!r}")
)
#: The sampler's last lines, before which its settings can be changed.
START = '\nif __name__ == "__main__":\n'
#: A node's clock is read so often; the fastest answer counts.
TRIES = 3


@dataclass
class Heard:
    """The samplers' lines so far, by node. ``last``: when each node's newest line came, by this
    machine's monotonic clock."""

    lines: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)

    def take(self, name: str, text: str) -> None:
        with suppress(ValueError):  # a line that was cut off, or that a login script printed
            self.lines[name].append(json.loads(text))
            self.last[name] = time.monotonic()


def sampler(period: float, names: Sequence[str]) -> str:
    """The sampler's source text, for lines so many seconds apart with these of vLLM's metrics."""
    return SAMPLER.replace(START, f"\nPERIOD, GAUGES = {period!r}, {tuple(names)!r}\n{START}")


def sampler_argv(cluster: Cluster, node: Node, text: str = SAMPLER) -> list[str]:
    """The local command that runs a sampler on a node; a server's also reads vLLM's metrics."""
    serves = any(node.name in ways(each.profile, each.layout) for each in cluster.services)
    url = metrics.url(cluster.profile, node) if serves else ""
    argv = [PYTHON, "-I", "-S", "-c", text, url, WORKER_UNIT, SERVER_UNIT]
    return cluster.remote(node).ssh_argv(argv)


@contextmanager
def sampling(cluster: Cluster, nodes: Sequence[Node]) -> Iterator[Heard]:
    """Run samplers on the nodes during the body; their lines arrive as they are written."""
    now = time.monotonic()
    heard = Heard({node.name: [] for node in nodes}, {node.name: now for node in nodes})
    with ExitStack() as running:
        for node in nodes:
            argv = sampler_argv(cluster, node)
            running.enter_context(streaming(argv, partial(heard.take, node.name)))
        yield heard


def clocks(cluster: Cluster, nodes: Sequence[Node]) -> dict[str, float]:
    """Each node's clock minus the control node's, in seconds.

    Both are compared with this machine's clock, at the middle of the fastest of TRIES round trips.
    """
    offsets = {node.name: _offset(cluster.remote(node)) for node in nodes}
    own = offsets.get(cluster.profile.control.name, 0.0)
    return {name: offset - own for name, offset in offsets.items()}


def _offset(remote: Remote) -> float:
    tries = []
    for _ in range(TRIES):
        before = time.time()
        there = float(remote.run(["date", "+%s.%N"]).out)
        after = time.time()
        tries.append((after - before, there - (before + after) / 2))
    return min(tries)[1]


def series(
    lines: Mapping[str, Sequence[Mapping[str, Any]]], clocks_s: Mapping[str, float]
) -> tuple[Series, ...]:
    """The series in the samplers' lines: shares, rates and gauges, on the control node's clock."""
    return tuple(
        each
        for node, samples in lines.items()
        if len(samples) > 1
        for each in _of_node(node, samples, clocks_s.get(node, 0.0))
    )


def _of_node(node: str, samples: Sequence[Mapping[str, Any]], skew: float) -> Iterator[Series]:
    ends = tuple(each["time"] - skew for each in samples[1:])
    for name, unit, values in (*_work(samples), *_cards(samples), *_told(samples)):
        yield Series(node, name, unit, ends, tuple(values))


#: A series' name, unit and values: one for each sample but the first.
Named = tuple[str, str, Iterable[float]]


def _work(samples: Sequence[Mapping[str, Any]]) -> Iterator[Named]:
    """Series of processors and memory."""
    yield "processors", "% busy", [_busy(a, b) for a, b in pairwise(samples)]
    if samples[0]["group"]:
        used = [each["group"]["used"] for each in samples]
        if any(used):
            yield "own processors", "in use", _rates(samples, used)
        cut = [_throttled(a, b) for a, b in pairwise(samples)]
        yield "quota", "% of periods cut short", cut
    stalled = _rates(samples, [each["stalled"] for each in samples])
    yield "waiting for a processor", "% of time", [100 * min(1.0, each) for each in stalled]
    yield "memory", "bytes available", [each["memory"] for each in samples[1:]]


def _cards(samples: Sequence[Mapping[str, Any]]) -> Iterator[Named]:
    """Series of network cards. A card that is absent for a time (a USB4 cable) has rate 0 then."""
    for card in _keys(samples, "net"):
        for number, way in enumerate(("sent", "received")):
            moved = [each["net"][card][number] if card in each["net"] else None for each in samples]
            yield f"{card} {way}", "bytes/s", _rates(samples, moved)


def _told(samples: Sequence[Mapping[str, Any]]) -> Iterator[Named]:
    """Series of vLLM's gauges and the hardware's sensors."""
    for name in _keys(samples, "gauges"):
        yield f"vLLM {name}", "", [each["gauges"].get(name, 0.0) for each in samples[1:]]
    for name in _keys(samples, "hardware"):
        unit, _, place = name.partition(" of ")
        yield place, unit, [each["hardware"].get(name, 0.0) for each in samples[1:]]
    for name in _keys(samples, "counters"):
        unit, _, place = name.partition(" of ")
        rates = _rates(samples, [each["counters"].get(name) for each in samples])
        if unit == "J":
            yield place, "W", rates
        else:  # seconds without work
            yield place, "% GPU busy", [100 * (1 - min(1.0, each)) for each in rates]


def _keys(samples: Sequence[Mapping[str, Any]], kind: str) -> list[str]:
    """All names of a kind that any sample has, in the order of their first appearance."""
    return list(dict.fromkeys(name for each in samples for name in each[kind]))


def _rates(samples: Sequence[Mapping[str, Any]], counted: Sequence[float | None]) -> list[float]:
    """Growth per second between samples; 0 if the counter was missing or restarted."""
    found = []
    for (a, b), (before, after) in zip(pairwise(samples), pairwise(counted), strict=True):
        added = after - before if before is not None and after is not None else 0.0
        found.append(max(0.0, added) / max(b["at"] - a["at"], 1e-6))
    return found


def _busy(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    whole = b["cpu"]["all"] - a["cpu"]["all"]
    return 100 * (b["cpu"]["busy"] - a["cpu"]["busy"]) / whole if whole > 0 else 0.0


def _throttled(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    periods = b["group"]["nr_periods"] - a["group"]["nr_periods"]
    cut = b["group"]["nr_throttled"] - a["group"]["nr_throttled"]
    return 100 * cut / periods if periods > 0 else 0.0
