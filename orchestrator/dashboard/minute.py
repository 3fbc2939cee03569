"""The last minute of a cluster: what nodes did, what was asked of the model, and what limited it.

Times are this machine's: a line counts from when it came. Units: seconds, bytes, tokens.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import pairwise
from typing import Any

from orchestrator.attach.samples import understood
from orchestrator.performance.bench.load import COUNTED, offered
from orchestrator.performance.bench.sampler import GAUGES
from orchestrator.performance.predict.explain import explain
from orchestrator.performance.predict.outlook import Known, outlook
from orchestrator.performance.report.attribute import evidence
from orchestrator.performance.results.bench import Measured, Series, Window, Workload
from orchestrator.performance.results.probe import Probes, Spread

#: Seconds between two samples of a node: a quarter of `bench`'s cost.
PERIOD = 2.0
#: Seconds that count as now: of a sample's age, and for rates that are shown.
FRESH, NOW = 3 * PERIOD + 1, 10.0
MINUTE = 60.0
#: Sensors of a node that are shown.
SENSORS = 12
#: vLLM's metrics that are read beside its gauges: sums over requests, by what they are about.
PER_REQUEST = (
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
    "request_queue_time_seconds",
    "request_generation_tokens",
)
#: What a line that something else printed there may raise.
NO_SAMPLE = (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError)
NAMES = (
    *GAUGES,
    "prompt_tokens_total",
    "generation_tokens_total",
    "request_success_total",
    "num_preemptions_total",
    *(f"{name}_{part}" for name in PER_REQUEST for part in ("sum", "count")),
)


class Minute:
    """Samples of nodes, and of vLLM's metrics, for a minute. ``server``: the node whose sampler
    reads them, if one does."""

    def __init__(self, server: str = "") -> None:
        self.server = server
        self.lines: dict[str, deque[dict[str, Any]]] = {}
        self.metrics: deque[tuple[float, dict[str, float]]] = deque()

    def take(self, node: str, text: str) -> None:
        """A line of a node's sampler."""
        with suppress(*NO_SAMPLE):
            line = json.loads(text, parse_constant=_finite, parse_float=_finite)
            now = time.time()
            kept = self.lines.setdefault(node, deque())
            kept.append({**line, "time": now})
            while kept and kept[0]["time"] < now - MINUTE:
                kept.popleft()
            if (gauges := line.get("gauges")) and node == self.server:
                self.metered({str(name): float(value) for name, value in gauges.items()})

    def metered(self, values: Mapping[str, float]) -> None:
        """vLLM's metrics as they are now."""
        now = time.time()
        found = {name: values.get(name, 0.0) for name in NAMES}
        self.metrics.append((now, {k: v if math.isfinite(v) else 0.0 for k, v in found.items()}))
        while self.metrics[0][0] < now - MINUTE:
            self.metrics.popleft()

    def series(self) -> tuple[Series, ...]:
        return understood({name: tuple(lines) for name, lines in self.lines.items()}, {})

    def grown(self, seconds: float = MINUTE) -> tuple[dict[str, float], float]:
        """How much vLLM's counters grew, and in what time. A restarted one counts from 0."""
        since = time.time() - seconds
        kept = [each for each in tuple(self.metrics) if each[0] >= since]
        grown = dict.fromkeys((name for name in NAMES if name.endswith(COUNTED)), 0.0)
        for (_, before), (_, after) in pairwise(kept):
            for name in grown:
                added = after[name] - before[name]
                grown[name] += added if added >= 0 else after[name]
        return grown, (kept[-1][0] - kept[0][0] if len(kept) > 1 else 0.0)

    def load(self) -> dict[str, Any] | None:
        """What the model does; None if its metrics do not come."""
        kept = tuple(self.metrics)
        if not kept or time.time() - kept[-1][0] > FRESH:
            return None
        gauges = kept[-1][1]
        (now, took), (minute, _) = self.grown(NOW), self.grown()
        rates = [
            max(0.0, b["generation_tokens_total"] - a["generation_tokens_total"]) / max(t - s, 1e-3)
            for (s, a), (t, b) in pairwise(kept)
        ]
        return {
            "running": gauges["num_requests_running"],
            "waiting": gauges["num_requests_waiting"],
            "cache": gauges["kv_cache_usage_perc"],
            "tokens_per_s": now["generation_tokens_total"] / took if took else None,
            "prompt_tokens_per_s": now["prompt_tokens_total"] / took if took else None,
            "requests_per_s": now["request_success_total"] / took if took else None,
            "ttft_s": mean(minute, "time_to_first_token_seconds"),
            "tpot_s": mean(minute, "inter_token_latency_seconds"),
            "tokens": [round(each, 2) for each in rates],
            "at_once": [each["num_requests_running"] for _, each in kept],
        }

    def measured(self) -> Measured | None:
        """The last minute as `bench` would have it; None if no token came."""
        grown, took = self.grown()
        tokens = grown["generation_tokens_total"]
        begun = grown["time_to_first_token_seconds_count"]
        if not took or not tokens:
            return None
        running = [each["num_requests_running"] for _, each in self.metrics]
        at_once = max(1, round(statistics.fmean(running)))
        workload = Workload(
            "the last minute",
            prompt_tokens=max(1, round(grown["prompt_tokens_total"] / max(begun, 1))),
            output_tokens=max(2, round(mean(grown, "request_generation_tokens") or tokens)),
            requests=max(1, round(begun)),
            concurrency=at_once,
        )
        now = time.time()
        first, further = (
            _one(mean(grown, name) or 0.0)
            for name in ("time_to_first_token_seconds", "inter_token_latency_seconds")
        )
        done = grown["request_success_total"]
        return Measured(
            workload, first, first, further, further, _one(tokens / took), _one(done / took),
            None, round(done), 0, (Window(now - MINUTE, now),),
            {name: value for name, value in grown.items() if value > 0},
        )  # fmt: skip


def mean(grown: Mapping[str, float], name: str) -> float | None:
    """The mean of what was counted meanwhile."""
    count = grown[f"{name}_count"]
    return grown[f"{name}_sum"] / count if count else None


def _finite(text: str) -> float:
    """A number; raises ValueError for what is none in JSON."""
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


def _one(value: float) -> Spread:
    return Spread(value, value, value, 1)


def phases(
    found: Measured, series: tuple[Series, ...], known: Known, probes: Probes
) -> Iterator[dict[str, Any]]:
    """Prefill and decode of what was measured, explained as a report does."""
    expected = outlook(known, offered(found.workload))
    seen = evidence(found, series, known.limits, probes)
    for measured, prediction, figure in (
        (found.ttft_s, expected.prefill, expected.ttft_s),
        (found.tpot_s, expected.decode, expected.tpot_s),
    ):
        if not measured.median:
            continue
        told = explain(measured.median, prediction, seen)
        yield {
            "phase": told.phase,
            "measured_s": told.measured_s,
            "low_s": figure.low,
            "high_s": figure.high,
            "parts": {str(name): each for name, each in told.parts.shares().items() if each},
            "unexplained_s": told.unexplained_s,
            "cause": str(told.cause),
            "basis": told.basis,
            "why": told.why,
        }


def by_node(series: tuple[Series, ...]) -> dict[str, dict[str, Any]]:
    """What each node does: processors, memory, accelerators and sensors, network cards."""
    found: dict[str, dict[str, Any]] = {}
    for each in series:
        node = found.setdefault(each.node, {"busy": [], "sensors": [], "cards": {}})
        if not each.values:
            continue
        if each.name == "processors":
            node["busy"] = [round(value) for value in each.values]
        elif each.name == "memory":
            node["memory_bytes"] = each.values[-1]
        elif each.unit == "bytes/s":
            card, _, way = each.name.rpartition(" ")
            recent = [
                v for t, v in zip(each.times, each.values, strict=True) if t > time.time() - NOW
            ]
            rate = statistics.fmean(recent) if recent else None
            node["cards"].setdefault(card, {})[way] = rate
        elif ("GPU" in each.unit or each.unit in ("W", "C")) and len(node["sensors"]) < SENSORS:
            node["sensors"].append({"name": each.name, "unit": each.unit, "value": each.values[-1]})
    return found
