"""`plan`, drift, and verbs for part of a cluster; its machines are configured and serve nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.sim import ANYHOW, NAME, NODES, Sim, close_connections

pytestmark = pytest.mark.sim

LINE = "10.77.0.99 stranger"


def test_after_up_nothing_differs(base: Sim) -> None:
    done = base.run("plan", "--only", "base")
    assert done.stdout == "compute[0-1],control: nothing differs\n"
    found = base.json("plan", "--only", "base")
    assert (found["differs"], found["unknown"], found["groups"]) == (False, {}, [])


def test_what_is_not_applied_yet_differs_and_hides_its_secrets(base: Sim) -> None:
    done = base.run("plan", ok=False)
    assert done.returncode == 2
    assert "+++ /etc/systemd/system/ray-worker.service" in done.stdout
    assert "ray.token: create, compute:compute 0600 (secret: not shown)" in done.stdout
    machine = base.json("plan", ok=False)
    token = Path(base.env["ORCHESTRATE_STATE"], "clusters", NAME, "ray.token").read_text()
    assert token.strip() not in done.stdout + str(machine)
    assert machine["groups"][0]["nodes"] == ["control", "compute0", "compute1"]


def test_drift_by_hand_is_shown_named_and_mended_alone(base: Sim) -> None:
    sim = base
    sim.shell("compute1", "sh", "-c", f"echo {LINE} >>/etc/hosts")
    sim.shell("compute1", "sysctl", "-qw", "net.core.somaxconn=7")  # nobody's: not in the profile
    done = sim.run("plan", "--only", "base", ok=False)
    assert done.returncode == 2
    assert f"-{LINE}" in done.stdout
    assert "compute1: 1 would change" in done.stdout
    assert "compute0,control: nothing differs" in done.stdout
    assert sim.run("plan", "--only", "base", "--exclude", "1").returncode == 0
    assert sim.run("plan", "--only", "base", "--node", "compute1", ok=False).returncode == 2

    report = sim.json("verify", "--only", "base", "--exclude", "control", ok=False)
    wrong = [check for check in report["checks"] if not check["ok"]]
    assert [(check["name"], check["node"]) for check in wrong] == [("drift", "compute1")]
    assert "/etc/hosts" in wrong[0]["seen"]
    assert {check["node"] for check in report["checks"]} == {"compute0", "compute1"}
    assert LINE in sim.shell("compute1", "cat", "/etc/hosts")

    result = sim.json("up", "--node", "compute1", "--only", "base")
    assert result["changed"] == {"compute1": ["file:/etc/hosts"]}
    assert set(result["steps"]) == {"cluster", "compute1"}
    assert sim.run("plan", "--only", "base").returncode == 0


def test_up_groups_what_it_came_to(base: Sim) -> None:
    out = base.run("up", "--until", "base").stdout
    assert "compute[0-1],control: nothing changed" in out


def test_a_new_kernel_setting_reaches_every_node_and_is_planned_once(base: Sim) -> None:
    sim = base
    before = sim.profile.read_text()
    for node in NODES:
        value = 7 if node == "compute1" else 4096
        sim.shell(node, "sysctl", "-qw", f"net.core.somaxconn={value}")
    sim.profile.write_text(f"{before}\nsysctls:\n  net.core.somaxconn: 4321\n")
    try:
        done = sim.run("plan", "--only", "base", ok=False)
        assert done.stdout.count("net.core.somaxconn: ") == 2  # compute1's is another one
        assert "7 -> 4321" in done.stdout
        changed = sim.json("up", "--until", "base")["changed"]
        assert set(map(tuple, changed.values())) == {("sysctl:net.core.somaxconn",)}
        assert sim.run("plan", "--only", "base").returncode == 0
        seen = sim.shell("compute0", "cat", "/proc/sys/net/core/somaxconn")
        assert seen == "4321\n"
    finally:
        sim.profile.write_text(before)
    told = sim.run("plan", "--only", "base", ok=False).stdout
    assert "net.core.somaxconn: left the profile: set 4321 back to what it was" in told
    sim.run("up", "--until", "base")
    for node in NODES:
        was = "7\n" if node == "compute1" else "4096\n"
        assert sim.shell(node, "cat", "/proc/sys/net/core/somaxconn") == was


def test_unknown_nodes_are_one_error_with_the_known_names(base: Sim) -> None:
    for verb, code in (("plan", 1), ("up", 2), ("verify", 2)):
        done = base.run(verb, "--node", "compute9,head", ok=False)
        assert done.returncode == code
        assert "there is no node 'compute9', 'head'" in done.stderr
        assert "control, compute0, compute1" in done.stderr


def test_a_node_that_does_not_answer_or_is_off_is_unknown(base: Sim) -> None:
    sim = base
    sim.state = ANYHOW
    sim.shell("compute0", "systemctl", "stop", "ssh.service")
    try:
        sim.cut_power("compute1")
        close_connections(sim)
        done = sim.run("plan", "--only", "base", ok=False)
        assert done.returncode == 1
        assert "control: nothing differs" in done.stdout
        assert "compute0: unknown: " in done.stdout
        assert "compute1: unknown: off; 'up' boots it" in done.stdout
        found = sim.json("plan", "--only", "base", ok=False)
        assert found["nodes"]["compute0"]["state"] == "unknown"
        assert not found["differs"]
        assert sim.run("plan", "--only", "base", "--node", "control").returncode == 0
    finally:
        sim.shell("compute0", "systemctl", "start", "ssh.service")
    sim.run("up", "--until", "base")
    sim.state = "base"
