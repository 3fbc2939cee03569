"""What a measured time was spent on: bottlenecks as they look from outside, and their names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.performance.predict.explain import Evidence, NodeEvidence, explain
from orchestrator.performance.predict.load import Prediction
from orchestrator.performance.predict.phase import Cause, Parts


def predicted(phase: str = "decode", **parts: float) -> Prediction:
    found = Parts(**parts)
    return Prediction(phase, found.seconds, found, found.bound)


#: A small model on two nodes that share a machine: mostly the host's work.
HOST = predicted(
    compute_s=1e-3, link_latency_s=2e-3, link_bandwidth_s=1e-3, scheduling_s=3e-3, host_s=2e-3
)
MEMORY = predicted(memory_s=10e-3, compute_s=2e-3, link_latency_s=3e-3, scheduling_s=2e-3)
LINK = predicted(memory_s=1e-3, link_bandwidth_s=20e-3, link_latency_s=3e-3, scheduling_s=2e-3)
PROMPTS = predicted("request", memory_s=0.05, scheduling_s=0.02, prefill_s=0.5)
QUEUE = predicted("prefill", compute_s=0.02, scheduling_s=0.01, queue_s=0.4)
CALM = (NodeEvidence("a", busy=0.3), NodeEvidence("b", busy=0.3))
BUSY = (NodeEvidence("a", busy=0.99), NodeEvidence("b", busy=0.99))


@pytest.mark.parametrize(
    ("measured_s", "prediction", "evidence", "cause", "basis"),
    [
        # As the model says, where nothing was counted or counters agree.
        (11e-3, HOST, None, Cause.SCHEDULING, "modelled"),
        (16e-3, MEMORY, None, Cause.MEMORY, "modelled"),
        (16e-3, MEMORY, Evidence(BUSY), Cause.MEMORY, "modelled"),
        # A throttled link: probed as it is now; full by its counters; or only seen by idle nodes.
        (28e-3, LINK, None, Cause.LINK_BANDWIDTH, "modelled"),
        (28e-3, MEMORY, Evidence(CALM, {"b eth0": 0.8}), Cause.LINK_BANDWIDTH, "measured"),
        (60e-3, LINK, Evidence(CALM), Cause.LINK_BANDWIDTH, "measured"),
        (60e-3, MEMORY, Evidence(CALM), Cause.LINK_LATENCY, "measured"),
        # One slow node: by a quota, by its speed.
        (
            40e-3,
            HOST,
            Evidence((NodeEvidence("a", busy=0.4), NodeEvidence("b", throttled=0.6, stalled=0.5))),
            Cause.SLOW_NODE,
            "measured",
        ),
        (
            40e-3,
            MEMORY,
            Evidence((NodeEvidence("a", speed=2.1), NodeEvidence("b", speed=0.48))),
            Cause.SLOW_NODE,
            "measured",
        ),
        # A tiny batch limit; waiting does not make a single token slower.
        (0.45, QUEUE, None, Cause.BATCH_LIMIT, "modelled"),
        (
            0.45,
            predicted("prefill", compute_s=0.05),
            Evidence(running=1.0, waiting=6.5, max_running=1),
            Cause.BATCH_LIMIT,
            "measured",
        ),
        (
            16e-3,
            MEMORY,
            Evidence(running=1.0, waiting=6.5, max_running=1),
            Cause.MEMORY,
            "modelled",
        ),
        # Long prompts, also where all processors are busy with them.
        (0.6, PROMPTS, Evidence(BUSY), Cause.LONG_PREFILL, "modelled"),
        (0.6, PROMPTS, Evidence(BUSY, prefill_share=0.9), Cause.LONG_PREFILL, "measured"),
        # A starved host: tasks wait for processors; the only node cut short by a quota.
        (
            40e-3,
            HOST,
            Evidence((NodeEvidence("a", stalled=0.4), NodeEvidence("b", stalled=0.3))),
            Cause.HOST,
            "measured",
        ),
        (40e-3, HOST, Evidence((NodeEvidence("a", throttled=0.4),)), Cause.HOST, "measured"),
        (40e-3, MEMORY, Evidence((NodeEvidence("a", stalled=0.5),)), Cause.HOST, "measured"),
        # Threads that wait, and still the time is as predicted: they took none of it.
        (16e-3, MEMORY, Evidence((NodeEvidence("a", stalled=0.5),)), Cause.MEMORY, "modelled"),
        # Nobody knows.
        (90e-3, MEMORY, None, Cause.UNEXPLAINED, "modelled"),
        (90e-3, MEMORY, Evidence(BUSY), Cause.UNEXPLAINED, "modelled"),
    ],
)
def test_causes(
    measured_s: float,
    prediction: Prediction,
    evidence: Evidence | None,
    cause: Cause,
    basis: str,
) -> None:
    found = explain(measured_s, prediction, evidence)
    assert (found.cause, found.basis) == (cause, basis), found.why
    assert found.why


shares = st.floats(0, 1) | st.none()
nodes = st.builds(
    NodeEvidence,
    node=st.sampled_from(["a", "b", "c"]),
    busy=shares,
    throttled=shares,
    stalled=shares,
    speed=shares,
)
evidence_ = st.builds(
    Evidence,
    nodes=st.lists(nodes, max_size=3).map(tuple),
    links=st.dictionaries(st.text(), st.floats(0, 1), max_size=2) | st.none(),
    running=shares,
    waiting=shares,
    max_running=st.integers(0, 9) | st.none(),
    prefill_share=shares,
)
parts_ = st.builds(Parts, *[st.floats(0, 10)] * 8)


@given(st.floats(1e-6, 100), parts_, evidence_, st.sampled_from(["prefill", "decode", "request"]))
def test_nothing_is_hidden(measured_s: float, parts: Parts, evidence: Evidence, phase: str) -> None:
    """Parts are those predicted, and with the rest they are what was measured."""
    found = explain(measured_s, Prediction(phase, parts.seconds, parts, parts.bound), evidence)
    assert found.parts == parts
    assert found.predicted_s + found.unexplained_s == pytest.approx(measured_s)
    assert found.unexplained_s == pytest.approx(measured_s - parts.seconds)
    assert found.why


def three(**values: tuple[float, float, float]) -> Evidence:
    """Nodes a, b, c with a value each."""
    ((name, each),) = values.items()
    return Evidence(tuple(NodeEvidence(n, **{name: v}) for n, v in zip("abc", each, strict=True)))


@pytest.mark.parametrize("slow", [three(speed=(1, 0.4, 1)), three(throttled=(0, 0.6, 0))])
def test_the_slow_node_is_named(slow: Evidence) -> None:
    found = explain(40e-3, MEMORY, slow)
    assert found.cause is Cause.SLOW_NODE and found.why.startswith("b: ")


def test_one_quick_node_makes_no_slow_ones() -> None:
    """Of three, each has two others: their median lies between them."""
    assert explain(16e-3, MEMORY, three(speed=(1, 1.3, 1))).cause is Cause.MEMORY
