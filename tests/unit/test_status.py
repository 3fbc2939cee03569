"""What `orchestrate status` makes of what was seen: when all is up, and what needs a look."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from orchestrator.cluster.status import UNKNOWN, NodeStatus, Status
from orchestrator.models.serving import Layout
from orchestrator.provision.netboot.causes import BootCause
from orchestrator.provision.netboot.images import ImageChoice
from orchestrator.provision.netboot.look import Seen
from orchestrator.provision.netboot.timeline import BootStep, BootTimeline, Netboot, Refusal

RUNS = {
    "ray-worker.service": "active",
    "chrony.service": "declined (ConditionCapability=CAP_SYS_TIME)",
}

#: Two nodes whose boots left no events.
SEEN = Seen(Netboot({name: BootTimeline(name, ()) for name in "ab"}), {}, {})


def node(name: str, system: str = "running", units: dict[str, str] | None = None) -> NodeStatus:
    return NodeStatus(name, "10.0.0.1", "on", system, "abc", RUNS if units is None else units, "-")


def status(*nodes: NodeStatus, seen: Seen | None = None, expert: bool = False) -> Status:
    return Status(
        profile="small",
        image="pxe",
        image_id="0" * 64,
        layout=Layout(tensor=2, pipeline=1, expert=expert, accelerators=3),
        endpoint="http://10.0.0.1:8000",
        model="model",
        models=[],
        note="",
        nodes=list(nodes),
        choice=ImageChoice(),
        seen=seen or Seen(Netboot({}), {}, {}),
    )


def test_all_is_up_when_every_node_answers_with_its_units() -> None:
    assert status(node("a"), node("b", "degraded")).all_up
    assert not status(node("a"), node("b", UNKNOWN, {})).all_up
    assert not status(node("a"), node("b", units={"ray-worker.service": "failed"})).all_up


def test_a_table_fits_a_terminal_and_says_what_needs_a_word() -> None:
    idle = {"nginx.service": "active", "ray-worker.service": "failed"}
    console = Console(width=100, file=io.StringIO(), record=True)
    for table in status(node("a"), node("b", units=idle), seen=SEEN).tables():
        console.print(table)
    shown = console.export_text()
    assert "chrony.service declined" in shown and "(ConditionCapability=CAP_SYS_TIME)" in shown
    assert "ray-worker.service failed" in shown and "nginx.service" not in shown
    assert "booted another image: abc" in shown
    assert "layout    tensor 2, pipeline 1, on 2 of 3 accelerators" in shown


@pytest.mark.parametrize("expert", [False, True])
def test_expert_parallelism_is_told_in_words_where_it_is_on(expert: bool) -> None:
    shown = io.StringIO()
    for table in status(node("a"), seen=SEEN, expert=expert).tables():
        Console(width=100, file=shown).print(table)
    assert ("pipeline 1, expert parallel, on 2 of 3" in shown.getvalue()) is expert
    assert "True" not in shown.getvalue() and "False" not in shown.getvalue()
    assert status(node("a"), expert=expert).document()["layout"] == {
        "tensor": 2, "pipeline": 1, "data": 1, "expert": expert, "accelerators": 3,
    }  # fmt: skip


def test_what_needs_a_look_is_told() -> None:
    refused = Refusal("02:00:00:00:00:01", "10.0.0.9", "wrong nonce", 3, 1e9 - 60, 1e9)
    boot = BootTimeline("a", (BootStep("script", "start", 0.0, 60.0),), last=("script start",))
    found = Seen(
        Netboot({"a": boot}, {"02:00:00:00:00:02": 1e9}, (refused,)),
        {"a": BootCause("it hangs", "look there")},
        {"02:00:00:00:00:02": "- name: b"},
    )
    told = list(status(node("a"), seen=found).warnings())
    assert told[:2] == [
        ("a is stuck", "it hangs\nlook there"),
        ("", "  script start"),
    ]
    assert told[3] == ("unknown machine", "add it to compute_nodes:\n- name: b")
    kind, text = told[2]
    assert kind == "refused"
    assert text.startswith("10.0.0.9 claiming to be 02:00:00:00:00:01: wrong nonce")
    assert "3 times since" in text
