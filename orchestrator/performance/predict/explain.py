"""Explain a measured time: its predicted parts, the main cause, and the unexplained rest.

The cause is the largest predicted part, unless counters that were read meanwhile (``Evidence``)
show another one. Without counters the verdict's basis is "modelled". The unexplained rest is shown
as it is, with its sign, and never distributed over the parts.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.performance.predict.load import Prediction
from orchestrator.performance.predict.phase import Cause, Parts

#: If a time exceeds its prediction by this share of the measured time, that needs a cause.
NOTABLE = 0.25
#: A node lacks processors above one of these: share of throttled quota periods, share of time in
#: which a task waited for a processor (PSI "some").
THROTTLED = 0.05
STALLED = 0.2
#: A node counts as slower if the others' median speed is this factor above its own.
SLOWER = 1.25
#: Shares of use: a link above FULL limits the speed, since nodes compute and send in turn;
#: processors below IDLE count as idle.
FULL = 0.5
IDLE = 0.6


@dataclass(frozen=True)
class NodeEvidence:
    """Counters of a node during the phase; None: not counted.

    ``busy``: share of its processors' time; ``throttled``: share of quota periods in which it was
    throttled (cgroup's cpu.stat); ``stalled``: share of time in which a task waited for a processor
    (/proc/pressure/cpu); ``speed``: its measured rate as a share of the others' median.
    """

    node: str
    busy: float | None = None
    throttled: float | None = None
    stalled: float | None = None
    speed: float | None = None


@dataclass(frozen=True)
class Evidence:
    """All counters of a phase. ``links``: by "NODE INTERFACE", the share of its bandwidth in use.

    ``running``, ``waiting``: means of vLLM's gauges of requests; ``max_running``: vLLM's limit;
    ``prefill_share``: the share of prompts in the engine's computing time.
    """

    nodes: tuple[NodeEvidence, ...] = ()
    links: dict[str, float] | None = None
    running: float | None = None
    waiting: float | None = None
    max_running: int | None = None
    prefill_share: float | None = None

    @property
    def empty(self) -> bool:
        return self == Evidence()


@dataclass(frozen=True)
class Explained:
    """A phase with its cause. ``predicted_s``: the sum of ``parts``; ``unexplained_s``: measured
    minus predicted. ``basis``: "measured" if a counter shows the cause, else "modelled". ``why``:
    the figures that decided."""

    phase: str
    measured_s: float
    predicted_s: float
    parts: Parts
    cause: Cause
    basis: str
    why: str
    unexplained_s: float


def explain(
    measured_s: float, prediction: Prediction, evidence: Evidence | None = None
) -> Explained:
    """Find the cause of a phase's time.

    Counters come first, the most reliable first, then the largest predicted part. If neither
    explains most of the time, the cause is "unexplained".
    """
    seen = evidence or Evidence()
    beyond = measured_s - prediction.seconds
    notable = beyond > NOTABLE * measured_s
    counted = next(_counted(prediction, seen, notable), None)
    cause, why = counted or _modelled(measured_s, prediction, beyond)
    return Explained(
        phase=prediction.phase,
        measured_s=measured_s,
        predicted_s=prediction.seconds,
        parts=prediction.parts,
        cause=cause,
        basis="measured" if counted else "modelled",
        why=why,
        unexplained_s=beyond,
    )


def _counted(prediction: Prediction, seen: Evidence, notable: bool) -> Iterator[tuple[Cause, str]]:
    """The causes that counters show, the most reliable first."""
    if prediction.phase != "decode":
        yield from _queue(seen)
    yield from _slow_node(seen)
    yield from _prompts(prediction, seen, notable)
    yield from _starved(prediction, seen, notable)
    yield from _full_link(prediction, seen)
    yield from _idle(prediction, seen, notable)


def _queue(seen: Evidence) -> Iterator[tuple[Cause, str]]:
    """Requests wait because the maximum number of requests is running."""
    if seen.running is None or seen.waiting is None or not seen.max_running:
        return
    if seen.waiting >= 0.5 and seen.running >= 0.9 * seen.max_running:
        text = (
            f"{seen.waiting:.1f} requests wait while {seen.running:.1f} of {seen.max_running} run"
        )
        yield Cause.BATCH_LIMIT, text


def _slow_node(seen: Evidence) -> Iterator[tuple[Cause, str]]:
    """One node is slower than the others, so that they wait for it."""
    if len(seen.nodes) < 2:
        return
    for node in seen.nodes:
        others = [one.speed for one in seen.nodes if one is not node and one.speed]
        if not node.speed or len(others) < len(seen.nodes) - 1:
            continue
        share = node.speed / statistics.median(others)
        if share <= 1 / SLOWER:
            yield Cause.SLOW_NODE, f"{node.node}: its speed is {share:.2g} times the others'"
    cut = [node for node in seen.nodes if (node.throttled or 0) >= THROTTLED]
    if len(cut) == 1:
        slices = f"{cut[0].throttled:.0%} of its time slices are cut short by a quota"
        yield Cause.SLOW_NODE, f"{cut[0].node}: {slices}, the others' are not"


def _starved(prediction: Prediction, seen: Evidence, notable: bool) -> Iterator[tuple[Cause, str]]:
    """A node's programs wait for processors, and the time is spent on the host."""
    if not notable and prediction.bound not in (Cause.HOST, Cause.SCHEDULING):
        return
    for node in seen.nodes:
        if (node.throttled or 0) >= THROTTLED:
            yield Cause.HOST, f"{node.node}: a quota cuts {node.throttled:.0%} of its time slices"
        if (node.stalled or 0) >= STALLED:
            yield (
                Cause.HOST,
                f"{node.node}: tasks wait for a processor {node.stalled:.0%} of the time",
            )


def _full_link(prediction: Prediction, seen: Evidence) -> Iterator[tuple[Cause, str]]:
    full = {name: share for name, share in (seen.links or {}).items() if share >= FULL}
    if full and _messages(prediction):
        name = max(full, key=lambda one: full[one])
        yield Cause.LINK_BANDWIDTH, f"{name}: {full[name]:.0%} of its bandwidth is in use"


def _messages(prediction: Prediction) -> float:
    return prediction.parts.link_latency_s + prediction.parts.link_bandwidth_s


def _prompts(prediction: Prediction, seen: Evidence, notable: bool) -> Iterator[tuple[Cause, str]]:
    share = seen.prefill_share
    slow = notable or prediction.bound is Cause.LONG_PREFILL
    if share is not None and share >= 0.5 and slow and prediction.phase != "prefill":
        yield Cause.LONG_PREFILL, f"{share:.0%} of the engine's work was prompts"


def _idle(prediction: Prediction, seen: Evidence, notable: bool) -> Iterator[tuple[Cause, str]]:
    """The time is much longer than predicted, and no processor is busy: nodes wait for messages."""
    busy = [node.busy for node in seen.nodes if node.busy is not None]
    if not notable or len(busy) < 2 or max(busy) > IDLE or not _messages(prediction):
        return
    more = prediction.parts.link_bandwidth_s > prediction.parts.link_latency_s
    cause = Cause.LINK_BANDWIDTH if more else Cause.LINK_LATENCY
    text = f"all processors are at most {max(busy):.0%} busy: nodes wait for messages"
    yield cause, text


def _modelled(measured_s: float, prediction: Prediction, beyond: float) -> tuple[Cause, str]:
    largest = prediction.parts.shares()[prediction.bound]
    if beyond > max(largest, 0.5 * measured_s):
        return Cause.UNEXPLAINED, f"no predicted part explains {beyond / measured_s:.0%} of it"
    share = largest / prediction.seconds if prediction.seconds else 0.0
    return prediction.bound, f"{share:.0%} of the predicted time"
