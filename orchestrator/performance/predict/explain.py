"""What a measured time was spent on: the predicted parts, the cause, and what stays unexplained.

The cause is the largest predicted part, unless something that was counted while it ran says
otherwise: ``Evidence``. Where nothing was counted the verdict says "modelled". What the parts do
not add up to is kept as it is, with its sign, and never spread over them.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.performance.predict.load import Prediction
from orchestrator.performance.predict.phase import Cause, Parts

#: What is longer than predicted by this share of what was measured wants a cause of its own.
NOTABLE = 0.25
#: A node waits for its processors: by this share of quota periods cut short, or so many runnable
#: threads a processor, or this share of time in which a task waited for one (PSI "some").
THROTTLED = 0.05
QUEUED = 1.5
STALLED = 0.2
#: A node is slower than the others: by its speed or its own work's time, against their median.
SLOWER = 1.25
#: A link in use for half of the time takes half of it, since nodes compute and send in turn.
#: Processors are idle below this share.
FULL = 0.5
IDLE = 0.6


@dataclass(frozen=True)
class NodeEvidence:
    """What was counted on a node while the phase ran; None: nobody counted.

    ``busy``: share of its processors' time; ``throttled``: share of periods in which a quota cut it
    short (cgroup's cpu.stat); ``runnable``: threads that could run, for each processor it may use;
    ``stalled``: share of time that a task waited for a processor (/proc/pressure/cpu); ``work_s``:
    its own part of a step, without waiting for others; ``speed``: its measured rate as a share of
    the others' median.
    """

    node: str
    busy: float | None = None
    throttled: float | None = None
    runnable: float | None = None
    stalled: float | None = None
    work_s: float | None = None
    speed: float | None = None


@dataclass(frozen=True)
class Evidence:
    """All that was counted. ``links``: by "NODE INTERFACE", the share of its bandwidth in use.

    ``running``, ``waiting``: requests, means of vLLM's own gauges; ``max_running``: its limit;
    ``prefill_share``: share of the engine's computed time, or tokens, that was prompts.
    """

    nodes: tuple[NodeEvidence, ...] = ()
    links: dict[str, float] | None = None
    running: float | None = None
    waiting: float | None = None
    max_running: int | None = None
    prefill_share: float | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing was counted."""
        return self == Evidence()


@dataclass(frozen=True)
class Explained:
    """A phase: ``predicted_s`` is the sum of ``parts``; ``unexplained_s`` what was measured beyond,
    negative where it was quicker. ``basis``: "measured" where a counter names the cause, else
    "modelled". ``why``: the figures it hangs on."""

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
    """The cause of a phase's time. First what a counter says, in the order of how sure it is; then
    the largest predicted part; where most of the time is not explained by either, that is said."""
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
    """Causes that counters name, the surest first."""
    if prediction.phase != "decode":
        yield from _queue(seen)
    yield from _slow_node(seen)
    yield from _prompts(prediction, seen, notable)
    yield from _starved(prediction, seen, notable)
    yield from _full_link(prediction, seen)
    yield from _idle(prediction, seen, notable)


def _queue(seen: Evidence) -> Iterator[tuple[Cause, str]]:
    """Requests wait although, or because, as many run as may."""
    if seen.running is None or seen.waiting is None or not seen.max_running:
        return
    if seen.waiting >= 0.5 and seen.running >= 0.9 * seen.max_running:
        text = (
            f"{seen.waiting:.1f} requests wait while {seen.running:.1f} of {seen.max_running} run"
        )
        yield Cause.BATCH_LIMIT, text


def _slow_node(seen: Evidence) -> Iterator[tuple[Cause, str]]:
    """One node is behind the others, so that they wait for it."""
    if len(seen.nodes) < 2:
        return
    for value, text in (("work_s", "its part of a step takes"), ("speed", "its speed is")):
        yield from _outlier(seen, value, text)
    cut = [node for node in seen.nodes if (node.throttled or 0) >= THROTTLED]
    if len(cut) == 1:
        share = f"{cut[0].throttled:.0%} of its time slices are cut short by a quota"
        yield Cause.SLOW_NODE, f"{cut[0].node}: {share}, the others' are not"


def _outlier(seen: Evidence, value: str, text: str) -> Iterator[tuple[Cause, str]]:
    for node in seen.nodes:
        own = getattr(node, value)
        others = [getattr(one, value) for one in seen.nodes if one is not node]
        if own is None or None in others or min(own, *others) <= 0:
            continue
        middle = statistics.median(others)
        factor = own / middle if value == "work_s" else middle / own
        if factor >= SLOWER:
            times = factor if value == "work_s" else 1 / factor
            yield Cause.SLOW_NODE, f"{node.node}: {text} {times:.2g} times the others'"


def _starved(prediction: Prediction, seen: Evidence, notable: bool) -> Iterator[tuple[Cause, str]]:
    """The host's programs want processors that they do not get; and that is where time goes."""
    if not notable and prediction.bound not in (Cause.HOST, Cause.SCHEDULING):
        return
    for node in seen.nodes:
        if (node.throttled or 0) >= THROTTLED:
            yield Cause.HOST, f"{node.node}: a quota cuts {node.throttled:.0%} of its time slices"
        if (node.runnable or 0) >= QUEUED:
            yield Cause.HOST, f"{node.node}: {node.runnable:.1f} runnable threads per processor"
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
    """Seconds of links, of a request's own tokens too."""
    return prediction.parts.link_latency_s + prediction.parts.link_bandwidth_s


def _prompts(prediction: Prediction, seen: Evidence, notable: bool) -> Iterator[tuple[Cause, str]]:
    share = seen.prefill_share
    slow = notable or prediction.bound is Cause.LONG_PREFILL
    if share is not None and share >= 0.5 and slow and prediction.phase != "prefill":
        yield Cause.LONG_PREFILL, f"{share:.0%} of the engine's work was prompts"


def _idle(prediction: Prediction, seen: Evidence, notable: bool) -> Iterator[tuple[Cause, str]]:
    """Much longer than predicted, and no processor busy: they wait for messages."""
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
