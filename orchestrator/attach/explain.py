"""What limits a cluster that others run, from counters while it was loaded. Pure.

Nothing is predicted here: there are no probes. Each finding says what was seen, how sure it is,
what to change, and what that could bring at most.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.attach.samples import ENDPOINT
from orchestrator.performance.bench import history
from orchestrator.performance.bench.load import engine_times
from orchestrator.performance.predict.phase import Cause
from orchestrator.performance.report.attribute import against_earlier, fastest
from orchestrator.performance.report.story import Story
from orchestrator.performance.results.bench import Measured, Run
from orchestrator.profile.existing import Attached

#: Shares of what there is: so much is a limit, so little is idle.
FULL, IDLE = 0.85, 0.5
#: Mean requests in the queue that count as waiting.
WAITING = 0.5
#: How sure a finding is.
SURE, LIKELY, POSSIBLE = "sure", "likely", "possible"


@dataclass(frozen=True)
class Bottleneck:
    """A limit. ``weight``: the share of time that it can explain, for the order. ``workload``: the
    one that showed it; ``cause``: what `bench prove` changes to try it, in ``phase``."""

    what: str
    sure: str
    seen: str
    change: str
    weight: float
    workload: str = ""
    cause: str = ""
    phase: str = "decode"

    @property
    def line(self) -> str:
        return f"{self.what} ({self.sure}): {self.seen}. {self.change}"

    def document(self) -> dict[str, Any]:
        return vars(self)


@dataclass(frozen=True)
class Counted:
    """Means of a workload's counters, by node and by name."""

    workload: Measured
    by_node: Mapping[str, Mapping[str, float]]

    def gauge(self, name: str) -> float:
        return self.by_node.get(ENDPOINT, {}).get(f"vLLM {name}", 0.0)

    def cards(self) -> list[float]:
        """How busy each accelerator was, as a share."""
        return [
            value / 100
            for node in self.by_node.values()
            for name, value in node.items()
            if name.endswith(" % GPU busy")
        ]


def story(run: Run, profile: Attached, speeds: Mapping[str, float]) -> Story:
    """A run's report: figures, findings, and changes since an earlier run."""
    good = history.earlier(profile.name, run).good
    found = [each.line for each in findings(run, profile, speeds)]
    verdict = (fastest(run), *(found or ["No limit shows in the counters of this load."]))
    return Story(run, verdict, compared=against_earlier(good, run) if good else ())


def findings(run: Run, profile: Attached, speeds: Mapping[str, float]) -> list[Bottleneck]:
    """What limits, the heaviest first. ``speeds``: bytes per second of links, by "NODE CARD"."""
    found: dict[str, Bottleneck] = {}
    for each in run.measured:
        counted = Counted(each, means(run, each))
        for seen in _of(counted, profile, speeds):
            one = replace(seen, workload=each.workload.name)
            if one.what not in found or found[one.what].weight < one.weight:
                found[one.what] = one
    for one in _scaling(run):
        found.setdefault(one.what, one)
    return sorted(found.values(), key=lambda each: -each.weight)


def means(run: Run, found: Measured) -> dict[str, dict[str, float]]:
    """The mean of every series during a workload, by node, then by name; a card's with its unit."""
    by_node: dict[str, dict[str, float]] = {}
    for series in run.series:
        values = [
            value
            for when, value in zip(series.times, series.values, strict=True)
            if any(window.start <= when <= window.end for window in found.windows)
        ]
        if values:
            name = f"{series.name} {series.unit}" if "GPU" in series.unit else series.name
            by_node.setdefault(series.node, {})[name] = statistics.fmean(values)
    return by_node


def _of(counted: Counted, profile: Attached, speeds: Mapping[str, float]) -> Iterator[Bottleneck]:
    yield from _queue(counted, profile)
    yield from _accelerators(counted, profile)
    yield from _links(counted, speeds)
    yield from _processors(counted)


def _queue(counted: Counted, profile: Attached) -> Iterator[Bottleneck]:
    name, waiting = counted.workload.workload.name, counted.gauge("num_requests_waiting")
    if waiting < WAITING:
        return
    running, cache = counted.gauge("num_requests_running"), counted.gauge("kv_cache_usage_perc")
    queue = engine_times(counted.workload.engine).get("queue", 0.0)
    first = counted.workload.ttft_s.median or 1.0
    seen = f"{name}: {waiting:.1f} requests wait beside {running:.1f} that run"
    lost = counted.workload.engine.get("num_preemptions_total", 0.0)
    share = min(1.0, queue / first)
    weight = max(share, waiting / (waiting + running))
    if cache > FULL or lost:
        more = f", {lost:.0f} were put back" if lost else ""
        yield Bottleneck(
            "the KV cache is full",
            SURE,
            f"{seen}; {cache:.0%} of the cache is used{more}",
            "More --gpu-memory-utilization, --kv-cache-dtype fp8, a shorter --max-model-len or "
            f"another card; the queue is {share:.0%} of the time to first token",
            weight,
        )
        return
    limit = profile.serving.args.get("max-num-seqs", "its default")
    yield Bottleneck(
        "requests queue",
        SURE,
        f"{seen}; {cache:.0%} of the KV cache is used",
        f"Raise --max-num-seqs ({limit}): the queue is {share:.0%} of the time to first token",
        weight,
        cause=Cause.BATCH_LIMIT,
        phase="prefill",
    )


def _accelerators(counted: Counted, profile: Attached) -> Iterator[Bottleneck]:
    name, cards = counted.workload.workload.name, counted.cards()
    if not cards:
        return
    busy = max(cards)
    if busy >= FULL and sum(node.ranks > 0 for node in profile.nodes) > 1:
        # Measured on two cards, tensor parallel over TCP: 92 % busy, at half of one card's speed.
        yield Bottleneck(
            "the accelerators compute, or wait in each other's messages, all the time",
            POSSIBLE,
            f"{name}: the busiest is busy {busy:.0%} of the time, and a kernel that waits for "
            "another node's message counts as busy",
            "See what messages cost: 'probe'. Fewer ranks, pipeline parallelism or a faster link; "
            "only then a faster card",
            busy,
        )
    elif busy >= FULL:
        yield Bottleneck(
            "the accelerators compute all the time",
            LIKELY,
            f"{name}: the busiest is busy {busy:.0%} of the time",
            "A faster card, a smaller or quantized model, or a copy on another card",
            busy,
            cause=Cause.COMPUTE,
        )
    elif busy < IDLE and (counted.workload.workload.concurrency or 2) == 1:
        eager = bool(profile.serving.args.get("enforce-eager", False))
        change = (
            "Leave out --enforce-eager: with graphs the host launches a step at once"
            if eager
            else "The host launches too slowly, or ranks wait for messages: a faster processor core"
            if profile.serving.tensor_parallel * profile.serving.pipeline_parallel == 1
            else "Ranks wait for the host or for each other's messages: fewer ranks, a faster link"
        )
        yield Bottleneck(
            "the accelerators wait",
            LIKELY if eager else POSSIBLE,
            f"{name}: the busiest is busy {busy:.0%} of the time",
            f"{change}; at most {1 - busy:.0%} of the time per token",
            1 - busy,
            cause=Cause.HOST,
        )


def _links(counted: Counted, speeds: Mapping[str, float]) -> Iterator[Bottleneck]:
    name = counted.workload.workload.name
    for key, speed in speeds.items():
        node, _, card = key.partition(" ")
        moved = counted.by_node.get(node, {})
        used = {way: moved.get(f"{card} {way}", 0.0) / speed for way in ("sent", "received")}
        for way, share in used.items():
            if share >= FULL * 0.8:
                yield Bottleneck(
                    f"the link {card} of {node} is full",
                    SURE,
                    f"{name}: {share:.0%} of {speed * 8e-9:.3g} Gb/s {way}",
                    "A faster link, pipeline instead of tensor parallel, or a copy on each node",
                    share,
                    cause=Cause.LINK_BANDWIDTH,
                )


def _processors(counted: Counted) -> Iterator[Bottleneck]:
    for node, values in counted.by_node.items():
        busy = values.get("processors", 0.0) / 100
        if busy >= FULL:
            change = "More cores, or fewer other programs there"
            if not counted.cards():
                change += "; no accelerator shows: if the model computes on the processors, "
                change += "that is its limit"
            seen = f"{counted.workload.workload.name}: {busy:.0%} of all cores are busy"
            what = f"the processors of {node} are full"
            yield Bottleneck(what, LIKELY, seen, change, busy * 0.9, cause=Cause.HOST)


def _scaling(run: Run) -> Iterator[Bottleneck]:
    """What more requests at once bring: batches are nearly free as long as memory limits."""
    swept = [each for each in run.measured if each.workload.concurrency]
    single = [each for each in swept if each.workload.concurrency == 1]
    most = max(swept, key=lambda each: each.workload.concurrency or 0, default=None)
    if not single or most is None or most is single[0] or not single[0].tpot_s.median:
        return
    many = most.workload.concurrency or 1
    gain = most.output_tokens_per_s.median / (single[0].output_tokens_per_s.median or 1.0)
    if gain > 0.7 * many:
        yield Bottleneck(
            "there is room for more requests at once",
            SURE,
            f"{many} at once give {gain:.1f} times the tokens of one",
            "Send more at once, or measure with more",
            0.05,
        )
    elif gain < 1.3:
        yield Bottleneck(
            "more requests at once bring nothing",
            SURE,
            f"{many} at once give {gain:.1f} times the tokens of one",
            "What limits one request limits all: see above",
            0.05,
        )
