"""Life after power loss, with nobody at the keyboard but `orchestrate watch`.

The model is asked all the while; what it does not answer has to come back by itself.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from queue import Queue
from threading import Thread

import pytest
from support.sim import NODES, Sim, asking, cut, failed, wait_for

from orchestrator.cluster.desired import HEAD_UNIT
from orchestrator.cluster.reconcile import GOOD
from orchestrator.node.paths import LASTING, RAY_TABLES

pytestmark = pytest.mark.sim

QUESTION = "What is the capital of France?"
#: Seconds for Ray and the model to be back: a start of vLLM on two cores, more than once.
BACK = 420.0
#: Seconds of a network that is cut: longer than ssh's patience.
CUT = 30.0


@pytest.fixture
def watch(serving: Sim) -> Iterator[Callable[..., dict[str, str]]]:
    """The events of a watch that runs beside the test; when it ends, the cluster serves again."""
    sim = serving
    process = sim.start("watch", "--json", "--interval", "1")
    said: Queue[str] = Queue()

    def hear() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            said.put(line)

    hearing = Thread(target=hear)
    hearing.start()

    def event(node: str, kind: str, text: str = "") -> dict[str, str]:
        """The next event of a node of that kind that says ``text``; Empty where none comes."""
        while True:
            found: dict[str, str] = json.loads(said.get(timeout=BACK))
            if (found["node"], found["kind"]) == (node, kind) and text in found["text"]:
                return found

    try:
        yield event
    finally:
        process.terminate()
        process.wait(timeout=60)
        hearing.join()


def lost(watch: Callable[..., dict[str, str]], node: str) -> None:
    """Wait until the node's loss is seen: it is off, or does not answer, whichever shows first."""
    while watch(node, "seen")["text"] == GOOD:
        pass


def answers_again(sim: Sim) -> None:
    """Wait until the model answers; then it has to answer rightly."""
    end = time.monotonic() + BACK
    while (done := sim.run("ask", QUESTION, ok=None)).returncode != 0:
        assert time.monotonic() < end, done.stderr + log(sim)
        time.sleep(1)
    assert "Paris" in done.stdout


def engine(sim: Sim) -> str:
    """Which process vLLM is: another one after a start."""
    return sim.shell(
        "compute0", "systemctl", "show", "vllm.service", "--property=MainPID,NRestarts"
    )


def log(sim: Sim) -> str:
    return sim.shell("compute0", "journalctl", "-u", "vllm.service", "-n", "40", ok=None)


def test_a_node_that_lost_power_comes_back_and_the_model_with_it(
    sim: Sim, watch: Callable[..., dict[str, str]]
) -> None:
    """A load that runs meanwhile ends: its figures are marked, and kept apart."""
    load = sim.start("bench", "run", "--workload", "decode-heavy", "--repeats", "8")
    wait_for(load, "decode-heavy")
    sim.cut_power("compute1")
    lost(watch, "compute1")
    _, said = load.communicate(timeout=120)
    assert load.returncode == 1 and "this run is marked: compute1 was lost at " in said
    assert sim.json("bench", "ls")[-1]["state"] == "marked"
    watch("compute1", "done")
    answers_again(sim)


def test_the_control_node_restarts_and_inference_goes_on(
    sim: Sim, watch: Callable[..., dict[str, str]]
) -> None:
    before = engine(sim)
    with asking(sim, QUESTION) as said:
        sim.cut_power("control")
        lost(watch, "control")
        when_away = len(said)
        watch("control", "done")
    assert len(said) > when_away + 1
    assert all("Paris" in each for each in said), said  # and there are some: see above
    answers_again(sim)
    result = sim.json("up", ok=None)  # waits until the head has joined itself
    assert result["ok"], result["failures"] or failed(result["verify"])
    assert engine(sim) == before


@pytest.mark.usefixtures("watch")
def test_services_of_the_control_node_restart_and_inference_goes_on(sim: Sim) -> None:
    before = engine(sim)
    for unit in ("ray-head", "orchestrate-boot", "dnsmasq", "nginx", "orchestrate-files"):
        sim.shell("control", "systemctl", "kill", "--signal=KILL", unit)
    answers_again(sim)
    assert engine(sim) == before


def test_all_nodes_come_back_from_a_power_cut_in_any_order(
    sim: Sim, watch: Callable[..., dict[str, str]]
) -> None:
    for node in reversed(NODES):
        sim.cut_power(node)
    for node in NODES:
        watch(node, "done")
    watch("model", "seen", GOOD)
    answers_again(sim)


@pytest.mark.long
def test_a_cable_that_was_out_during_inference(
    sim: Sim, watch: Callable[..., dict[str, str]]
) -> None:
    with cut("compute1"):
        lost(watch, "compute1")
        time.sleep(CUT)  # what is tested is a time
    watch("compute1", "seen", GOOD)
    answers_again(sim)


@pytest.mark.long
def test_what_was_switched_off_stays_off(sim: Sim, watch: Callable[..., dict[str, str]]) -> None:
    sim.run("node", "down", "compute1")
    # The head's tables are lost, too: compute0 has to leave a head that does not know it.
    send = f"systemctl kill {HEAD_UNIT} --signal"
    lose = f"{send}=STOP && rm -r {LASTING}/{RAY_TABLES}/* && {send}=KILL"
    sim.shell("control", "sh", "-c", lose)
    sim.shell("compute0", "sh", "-c", "echo 10.77.0.99 stranger >>/etc/hosts")
    # The watch is at work meanwhile, and leaves compute1 alone.
    end = time.monotonic() + BACK
    while "stranger" in sim.shell("compute0", "cat", "/etc/hosts"):
        assert time.monotonic() < end
        time.sleep(1)
    rows = {row["name"]: row for row in sim.json("status")["nodes"]}
    assert rows["compute1"]["power"] == "off" and rows["compute0"]["power"] == "on"
    sim.run("node", "up", "compute1", "--wait")
    watch("compute1", "done")
    answers_again(sim)
