"""A plan: what differs in words, grouped, without secrets; its exit codes and its JSON."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.errors import UserError
from orchestrator.node.configure import Outcome
from orchestrator.node.differences import Difference, found, unified
from orchestrator.node.plan import (
    DIFFERS,
    SAME,
    UNKNOWN,
    Plan,
    alike,
    outcomes_told,
    rendered,
)
from orchestrator.node.resources import (
    Directory,
    File,
    NetworkLink,
    Resource,
    Step,
    Sysctl,
    Unit,
    User,
)
from orchestrator.node.state import NodeState

SECRET = "hunter2"
HOSTS = Difference("file:/etc/hosts", ("content",), ("content",), "--- a\n+++ b\n@@\n-x\n+y")


def entry(name: str, found: dict[str, Any], **more: Any) -> dict[str, Any]:
    now = {key: value for key, value in found.items() if value is not None}
    return {"id": name, "changes": list(found), "found": now} | more


def differences(resource: Resource, report: dict[str, Any]) -> Difference:
    kinds = {Sysctl: "sysctls", NetworkLink: "links", User: "users", Unit: "units",
             Directory: "directories", File: "files"}  # fmt: skip
    state = NodeState("node", **{kinds[type(resource)]: (resource,)})  # type: ignore[arg-type]
    (difference,) = found(state, [report])
    return difference


def text(plan: Plan) -> str:
    return "\n".join(line.plain for line in rendered(plan))


def of(**nodes: tuple[Difference, ...] | str) -> Plan:
    outcomes = {
        name: Outcome(error=what)
        if isinstance(what, str)
        else Outcome(differences=what, unchanged=9)
        for name, what in nodes.items()
    }
    return Plan(outcomes)


# What differs, in words.


def test_each_kind_says_what_is_and_what_should_be() -> None:
    step = Step.BASE
    cases: list[tuple[Resource, dict[str, Any], str]] = [
        (Sysctl(step, "net.core.somaxconn", "9"), {"value": "4096"}, "4096 -> 9"),
        (NetworkLink(step, "x0", ("10.0.0.2/24",), "/f", "c"), {"address": ""},
         "no address -> 10.0.0.2/24"),
        (NetworkLink(step, "x0", ("10.0.0.2/24",), "/f", "c"), {"up": "down"}, "down -> up"),
        (
            NetworkLink(step, "x0", (), "/f", "c"),
            {"absent": None},
            "there is no such interface (yet)",
        ),
        (User(step, "ann", 1001), {"create": None}, "create, uid 1001"),
        (User(step, "ann", 1001), {"uid": 1000, "shell": "/bin/sh"},
         "uid 1000 -> 1001; shell /bin/sh -> /bin/bash"),
        (Directory(step, "/d", mode="0700"), {"mode": "0755"}, "mode 0755 -> 0700"),
        (File(step, "/f", "x", owner="ann", group="ann"), {"owner": "root:root"},
         "owner root:root -> ann:ann"),
        (Unit(step, "a.service"), {"restart": "active"}, "restart (now active)"),
    ]  # fmt: skip
    for resource, changes, told in cases:
        assert "; ".join(differences(resource, entry("a:b", changes)).details) == told


def test_a_text_is_a_unified_difference_and_a_secret_only_a_word() -> None:
    file = File(Step.BASE, "/etc/x", "one\ntwo\n")
    difference = differences(file, entry("file:/etc/x", {"content": None}, current="one\n"))
    assert difference.diff.splitlines() == [
        "--- /etc/x (now)", "+++ /etc/x", "@@ -1 +1,2 @@", " one", "+two",
    ]  # fmt: skip
    secret = File(Step.BASE, "/etc/key", SECRET, secret=True)
    for change in ("create", "content"):
        # Even if an agent said more than it should.
        difference = differences(
            secret, entry("file:/etc/key", {change: None}, current=SECRET + "old")
        )
        plan = of(node=(difference,))
        assert "secret: not shown" in text(plan)
        assert SECRET not in text(plan) + json.dumps(plan.document()) + difference.line


def test_what_is_no_text_is_told_not_shown_as_empty() -> None:
    now = {"content": "not text, or too long to show"}
    difference = differences(File(Step.BASE, "/f", "x"), entry("file:/f", now, current=None))
    assert difference.diff == ""
    assert difference.details == ("content (now not text, or too long to show)",)


@given(st.text("ab \n\r\x0c", max_size=12), st.text("ab \n\r\x0c", max_size=12))
def test_a_unified_difference_of_any_texts_says_both(old: str, new: str) -> None:
    lines = unified("f", old, new).split("\n")[2:]
    if old == new:
        assert lines == []
    for mark, whole in (("-", old), ("+", new)):
        kept = [line for line in lines if line[:1] in (" ", mark, "\\")]
        assert sum(line[:1] == mark for line in kept) <= whole.count("\n") + 1


@pytest.mark.skipif(shutil.which("patch") is None, reason="needs patch")
def test_patch_understands_it(tmp_path: Path) -> None:
    for number, (old, new) in enumerate(
        [("a\nb\n", "a\nc\n"), ("a", "a\n"), ("a\n", "a"), ("", "x\n")]
    ):
        file = tmp_path / str(number)
        file.write_text(old)
        argv = ["patch", "--silent", "--posix", str(file)]
        subprocess.run(argv, input=unified("f", old, new) + "\n", text=True, check=True)
        assert file.read_text() == new


# Groups, exit codes.


def test_a_difference_of_many_nodes_is_shown_once() -> None:
    other = Difference("unit:nginx.service", ("restart",), ("restart (now active)",))
    nodes = {f"compute{number}": (HOSTS,) for number in range(64)}
    plan = of(control=(HOSTS, other), **nodes)
    assert [(len(block.nodes), len(block.differences)) for block in plan.blocks()] == [
        (65, 1),
        (1, 1),
    ]
    shown = text(plan)
    assert shown.count("/etc/hosts") == 1
    assert "compute[0-63],control (65 nodes)" in shown
    assert "compute[0-63]: 1 would change, 9 unchanged" in shown
    assert "control: 2 would change" in shown
    assert plan.document()["groups"][0]["nodes"] == ["control", *nodes]


def test_what_is_the_nodes_own_is_a_block_of_its_own() -> None:
    own = {
        name: Difference("file:/etc/x", ("content",), (), f"+{name}") for name in ("n0", "n1", "n2")
    }
    plan = of(**{name: (HOSTS, difference) for name, difference in own.items()})
    assert [block.nodes for block in plan.blocks()] == [
        ("n0", "n1", "n2"),
        ("n0",),
        ("n1",),
        ("n2",),
    ]
    assert list(plan.summary()) == ["n[0-2]: 2 would change, 9 unchanged"]


def test_kinds_are_grouped_with_titles() -> None:
    user = Difference("user:ann", ("create",), ("create, uid 1",))
    lines = text(of(node=(user, HOSTS))).splitlines()
    assert [lines[0], lines[1], lines[2], lines[8], lines[9]] == [
        "node", "  files", "    /etc/hosts", "  users", "    ann: create, uid 1",
    ]  # fmt: skip


def test_exit_codes() -> None:
    assert of(a=(), b=()).code == SAME == 0
    assert of(a=(), b=(HOSTS,)).code == DIFFERS == 2
    assert of(a=(), b="no route to host").code == UNKNOWN == 1
    assert of(a=(HOSTS,), b="no route to host").code == DIFFERS


def test_nodes_that_cannot_be_asked_are_unknown_not_differing() -> None:
    dead = {
        f"n{number}": f"n{number} (10.0.0.{number}): SSH does not answer" for number in range(4)
    }
    outcomes = {name: Outcome(error=error) for name, error in dead.items()}
    plan = Plan(
        {**outcomes, "x": Outcome(error="it is off"), "y": Outcome(unchanged=3)}, off=("x",)
    )
    assert list(plan.summary()) == [
        "y: nothing differs",
        "n[0-3]: unknown: n0 (10.0.0.0): SSH does not answer",
        "x: unknown: off; 'up' boots it",
    ]
    document = plan.document()
    assert (document["differs"], document["unknown"]["x"]) == (False, "off")
    assert document["nodes"]["n1"]["state"] == "unknown"
    assert document["nodes"]["y"]["state"] == "same"


def test_a_new_file_is_cut_for_people_only() -> None:
    long = File(Step.BASE, "/long", "".join(f"line {number}\n" for number in range(100)))
    difference = differences(long, entry("file:/long", {"create": None}))
    plan = of(node=(difference,))
    assert "line 19" in text(plan) and "line 20" not in text(plan)
    assert "80 more lines" in text(plan)
    assert "line 99" in json.dumps(plan.document())


def test_what_a_terminal_would_obey_is_visible() -> None:
    hostile = Difference("file:/f", ("content",), ("content",), "@@\n-\x1b]0;title\x07")
    assert "\x1b" not in text(of(node=(hostile,)))


def test_messages_that_differ_by_the_node_only_are_alike() -> None:
    assert alike("n1 (10.0.0.1): no SSH", "n1") == alike("n2 (10.0.0.2): no SSH", "n2")
    assert alike("n1: a", "n1") != alike("n1: b", "n1")
    assert alike("n10: a", "n1") == "n10: a"


def test_what_up_came_to_is_grouped() -> None:
    changed = {"control": [], **{f"c{number}": ["a", "b"] for number in range(5)}}
    failures = {name: UserError(f"{name}: no SSH", "look") for name in ("c3", "c4")}
    assert outcomes_told(changed, failures) == (
        ["control: nothing changed", "c[0-2]: 2 changed"],
        ["c[3-4]: c3: no SSH\n  look"],
    )
