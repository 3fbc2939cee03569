"""Samplers on every node, and what their lines come to: series on one clock."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from orchestrator.bench.results import Series
from orchestrator.cluster import Cluster
from orchestrator.node_paths import VENV
from orchestrator.profile import Node
from orchestrator.run import streaming

#: By node, the lines that its sampler has written so far.
Lines = dict[str, list[dict[str, Any]]]


@contextmanager
def sampling(cluster: Cluster, nodes: Sequence[Node]) -> Iterator[Lines]:
    """Samplers run on the nodes for the body; the lines come as they are written."""
    profile = cluster.profile
    source = Path(__file__).with_name("sampler.py").read_text(encoding="utf-8")
    metrics = f"http://{profile.ray_address(profile.server)}:{profile.serving.port}/metrics"
    lines: Lines = {node.name: [] for node in nodes}

    def take(name: str, text: str) -> None:
        try:
            lines[name].append(json.loads(text))
        except ValueError:
            return  # cut off, or something that a login prints

    with ExitStack() as running:
        for node in nodes:
            words = [metrics] if node.name == profile.server.name else []
            argv = [f"{VENV}/bin/python", "-I", "-S", "-c", source, *words]
            running.enter_context(
                streaming(cluster.remote(node).ssh_argv(argv), partial(take, node.name))
            )
        yield lines


def clocks(cluster: Cluster, nodes: Sequence[Node]) -> dict[str, float]:
    """By node, its clock minus the control node's, in seconds: each against ours at the middle of
    a round trip."""
    offsets = {}
    for node in nodes:
        before = time.time()
        there = float(cluster.remote(node).run(["date", "+%s.%N"]).out)
        offsets[node.name] = there - (before + time.time()) / 2
    own = offsets.get(cluster.profile.control.name, 0.0)
    return {name: offset - own for name, offset in offsets.items()}


def series(lines: Lines, clocks_s: Mapping[str, float]) -> tuple[Series, ...]:
    """What the lines come to: shares, rates and gauges, on the control node's clock."""
    return tuple(
        each
        for node, samples in lines.items()
        if len(samples) > 1
        for each in _of_node(node, samples, clocks_s.get(node, 0.0))
    )


def _of_node(node: str, samples: Sequence[Mapping[str, Any]], skew: float) -> Iterator[Series]:
    times = [each["time"] - skew for each in samples]
    pairs = list(pairwise(samples))
    gaps = [max(b["time"] - a["time"], 1e-6) for a, b in pairs]
    ends = tuple(times[1:])

    def made(name: str, unit: str, values: Iterator[float]) -> Series:
        return Series(node, name, unit, ends, tuple(values))

    yield made("processors", "% busy", (_busy(a, b) for a, b in pairs))
    if samples[0]["group"]:
        used = (
            (b["group"]["used"] - a["group"]["used"]) / gap
            for (a, b), gap in zip(pairs, gaps, strict=True)
        )
        yield made("own processors", "in use", used)
        yield made("quota", "% of periods cut short", (_throttled(a, b) for a, b in pairs))
    yield made(
        "waiting for a processor",
        "% of time",
        (
            100 * min(1.0, (b["stalled"] - a["stalled"]) / gap)
            for (a, b), gap in zip(pairs, gaps, strict=True)
        ),
    )
    for card in samples[0]["net"]:
        for number, way in enumerate(("sent", "received")):
            moved = (
                (b["net"].get(card, a["net"][card])[number] - a["net"][card][number]) / gap
                for (a, b), gap in zip(pairs, gaps, strict=True)
            )
            yield made(f"{card} {way}", "bytes/s", moved)
    yield made("memory", "bytes available", (each["memory"] for each in samples[1:]))
    for name in samples[0]["gauges"]:
        yield made(f"vLLM {name}", "", (each["gauges"].get(name, 0.0) for each in samples[1:]))
    for name in samples[0]["hardware"]:
        yield made(name, "", (each["hardware"].get(name, 0.0) for each in samples[1:]))


def _busy(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    whole = b["cpu"]["all"] - a["cpu"]["all"]
    return 100 * (b["cpu"]["busy"] - a["cpu"]["busy"]) / whole if whole > 0 else 0.0


def _throttled(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    periods = b["group"]["nr_periods"] - a["group"]["nr_periods"]
    cut = b["group"]["nr_throttled"] - a["group"]["nr_throttled"]
    return 100 * cut / periods if periods > 0 else 0.0
