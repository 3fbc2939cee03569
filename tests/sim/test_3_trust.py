"""New keys for a running cluster, and who is refused after it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from harness import NAME, NODES, Sim, failed

pytestmark = pytest.mark.sim


def keys(sim: Sim) -> Path:
    return Path(sim.env["ORCHESTRATE_STATE"], "clusters", NAME)


def test_status_tells_who_is_believed_and_until_when(sim: Sim) -> None:
    seen = sim.json("trust", "status")
    assert [each["node"] for each in seen["certificates"]] == [None, *NODES]
    assert all(each["until"] and not each["problem"] for each in seen["certificates"])
    assert seen["rotating"] is False
    assert "certificate of compute1" in sim.run("trust", "status").stdout


def test_ssh_keys_are_rotated_while_the_model_serves(sim: Sim, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(keys(sim), old, ignore=shutil.ignore_patterns("machines", "served", "control"))
    running = sim.shell("compute0", "systemctl", "show", "-PMainPID", "vllm.service")
    before = sim.json("trust", "status")["fingerprints"]
    sim.run("trust", "rotate", "--only", "ssh")
    after = sim.json("trust", "status")
    assert all(after["fingerprints"][name] != before[name] for name in before)
    assert not (keys(sim) / "successor").exists()
    assert len((keys(sim) / "known_hosts").read_text().splitlines()) == 1
    assert sim.shell("compute0", "systemctl", "show", "-PMainPID", "vllm.service") == running
    assert sim.json("verify")["ok"]
    # Nodes forgot the old operator.
    seen = sim.shell("compute1", "cat", "/etc/ssh/user_ca.pub")
    assert seen == (keys(sim) / "user_ca.pub").read_text()
    assert (old / "user_ca.pub").read_text() not in seen


def test_an_interrupted_rotation_locks_nobody_out_and_is_finished(sim: Sim) -> None:
    """The new keys are made and no node knows them: as if it was killed there."""
    process = sim.start("trust", "rotate", "--only", "ssh")
    while not (keys(sim) / "successor").exists():
        assert process.poll() is None, process.communicate()
    process.kill()
    process.communicate(timeout=60)
    seen = sim.json("trust", "status")
    assert seen["rotating"] is True
    assert not any(each["problem"] for each in seen["certificates"])
    sim.run("trust", "rotate", "--only", "ssh")
    assert sim.json("trust", "status")["rotating"] is False
    assert sim.json("verify")["ok"]


def test_a_node_that_does_not_answer_holds_a_rotation_and_is_named(sim: Sim) -> None:
    sim.shell("compute1", "systemctl", "stop", "ssh.service")
    try:
        done = sim.run("trust", "rotate", "--only", "ssh", ok=False)
        assert "compute1" in done.stderr and "Nobody is locked out" in done.stderr
        assert sim.json("trust", "status")["rotating"] is True
    finally:
        sim.shell("compute1", "systemctl", "start", "ssh.service")
    sim.run("trust", "rotate", "--only", "ssh")
    assert sim.json("trust", "status")["rotating"] is False


def test_a_node_that_shows_another_nodes_identity_is_refused_and_named(sim: Sim) -> None:
    """compute1 gets compute0's certificate and key: right authority, wrong name."""
    kept = "/etc/ssh/ssh_host_ed25519_key"
    stolen = {name: sim.shell("compute0", "cat", name) for name in (kept, f"{kept}-cert.pub")}
    sim.shell("compute1", "sh", "-c", f"cp -a {kept} /root/key; cp -a {kept}-cert.pub /root/cert")
    for name, text in stolen.items():
        sim.shell("compute1", "sh", "-c", f"printf %s '{text}' >{name}; chmod 600 {name}")
    sim.shell("compute1", "systemctl", "restart", "ssh.service")
    sim.run("node", "ssh", "compute1", "--", "true", ok=None)  # ends what was kept open
    try:
        close_connections(sim)
        report = sim.json("verify", ok=False)
        wrong = [check for check in failed(report) if check["node"] == "compute1"]
        assert wrong and any("compute1" in check["seen"] for check in wrong), wrong
        assert any("host key is not one" in check["seen"] for check in wrong), wrong
        assert not [check for check in failed(report) if check["node"] == "compute0"]
    finally:
        back = f"mv /root/key {kept}; mv /root/cert {kept}-cert.pub; systemctl restart ssh.service"
        sim.shell("compute1", "sh", "-c", back)
    close_connections(sim)
    assert sim.json("verify")["ok"]


def close_connections(sim: Sim) -> None:
    """A kept connection was opened before; the next one has to look at the key again."""
    from orchestrator.cluster import open_cluster
    from orchestrator.profile import load

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORCHESTRATE_STATE", sim.env["ORCHESTRATE_STATE"])
        cluster = open_cluster(load(sim.profile))
        for node in cluster.profile.nodes:
            cluster.remote(node).close()


def test_tokens_are_rotated_and_all_comes_back(sim: Sim) -> None:
    old = {name: (keys(sim) / name).read_text() for name in ("ray.token", "api.key")}
    done = json.loads(sim.run("trust", "rotate", "--only", "ray", "--only", "api", "--json").stdout)
    assert done["rotated"] == ["ray", "api"] and done["nodes"] == NODES
    assert all((keys(sim) / name).read_text() != text for name, text in old.items())
    assert sim.json("verify")["ok"]
