"""`orchestrate node` on containers: the control node runs, compute nodes come and go."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time

import pytest
from support.sim import Sim

pytestmark = pytest.mark.sim


@pytest.fixture
def nodes(control: Sim, request: pytest.FixtureRequest) -> Sim:
    """These compute nodes run, beside the control node, and no others."""
    for node in ("compute0", "compute1"):
        if control.runs(node) and node not in request.param:
            control.run("node", "down", node)
        elif not control.runs(node) and node in request.param:
            control.run("node", "up", node, "--wait")
    return control


def run(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("nodes", [names], indirect=True, ids=["-".join(names) or "none"])


def test_no_node_goes_up_before_the_control_node(down: Sim) -> None:
    refused = down.run("node", "up", "0", ok=False)
    assert "the control node (control) is off" in refused.stderr


@run()
def test_up_by_number_then_by_name(nodes: Sim) -> None:
    said = nodes.json("node", "up", "0", "--wait")
    assert [(one["node"], one["changed"], one["error"]) for one in said["nodes"]] == [
        ("compute0", True, "")
    ]
    assert [one["node"] for one in said["waited"]] == ["compute0"]
    assert [step["step"] for step in said["boot"]["compute0"]] == ["power", "sshd"]
    assert nodes.run("node", "up", "compute0").stdout == "compute0: on already; nothing changed\n"


@run("compute0")
def test_status_changes_nothing(nodes: Sim) -> None:
    before = nodes.machine("compute0")
    rows = nodes.json("node", "status")["nodes"]
    assert [(row["node"], row["index"], row["power"]) for row in rows] == [
        ("control", None, "on"), ("compute0", 0, "on"), ("compute1", 1, "off"),
    ]  # fmt: skip
    (row,) = nodes.json("node", "status", "1")["nodes"]
    assert (row["boot"], row["system"]) == ("-", "-")
    assert nodes.machine("compute0") == before


@run("compute0")
def test_ssh_passes_output_and_exit_code_on(nodes: Sim) -> None:
    argv = ["node", "ssh", "0", "--", "sh", "-c", "hostname; echo wrong >&2; exit 42"]
    done = nodes.run(*argv, ok=False)
    assert (done.returncode, done.stdout, done.stderr) == (42, "compute0\n", "wrong\n")


@run("compute0")
def test_ssh_without_a_command_is_a_shell_on_a_terminal(nodes: Sim) -> None:
    ours, theirs = os.openpty()
    argv = nodes.argv("node", "ssh", "0")
    process = subprocess.Popen(argv, env=nodes.env, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.write(ours, b"test -t 0 && exit 5\n")
    said = b""
    with contextlib.suppress(OSError):  # the terminal's end
        while part := os.read(ours, 4096):
            said += part
    os.close(ours)
    assert process.wait(60) == 5, said
    assert b"root@compute0" in said


@run("compute0")
def test_a_node_that_does_not_come_is_told_in_time(nodes: Sim) -> None:
    begun = time.monotonic()
    failed = nodes.run("node", "wait", "--all", "--timeout", "2", ok=False)
    assert time.monotonic() - begun < 60
    assert "compute0: answers after" in failed.stdout
    assert "compute1 (10.77.0.11): no SSH within 2 s" in failed.stderr


@run("compute0")
def test_restart_boots_anew(nodes: Sim) -> None:
    before = nodes.machine("compute0")
    said = nodes.run("node", "restart", "compute0", "1", "--wait").stdout
    assert "compute0: switched off and on\n" in said
    assert "compute1: was off; switched on\n" in said
    assert nodes.machine("compute0") != before


@run("compute0", "compute1")
def test_down_is_idempotent_and_says_so(nodes: Sim) -> None:
    assert nodes.run("node", "down", "--all").stdout == "compute0: off\ncompute1: off\n"
    again = nodes.run("node", "down", "1", "0").stdout
    assert again == (
        "compute0: off already; nothing changed\ncompute1: off already; nothing changed\n"
    )
    refused = nodes.run("node", "down", "control", ok=False)
    assert refused.returncode == 2
    assert "'orchestrate up' and 'orchestrate down' switch it" in refused.stderr
