"""New keys for a running cluster, and who is refused after it."""

from __future__ import annotations

import json
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
from support.sim import NAME, NODES, Sim, close_connections, failed, opened, wait_for

from orchestrator.cluster.certificates import certify
from orchestrator.node import trust

pytestmark = [pytest.mark.sim, pytest.mark.usefixtures("serving")]


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
    assert before and set(after["fingerprints"]) == set(before)
    assert all(after["fingerprints"][name] != before[name] for name in before)
    assert not (keys(sim) / "successor").exists()
    assert len((keys(sim) / "known_hosts").read_text().splitlines()) == 1
    assert sim.shell("compute0", "systemctl", "show", "-PMainPID", "vllm.service") == running
    assert sim.json("verify")["ok"]
    # Nodes forgot the old operator.
    seen = sim.shell("compute1", "cat", "/etc/ssh/user_ca.pub")
    assert seen == (keys(sim) / "user_ca.pub").read_text()
    assert (old / "user_ca.pub").read_text() not in seen


#: Words of the progress of a rotation, in their order.
STEPS = (
    ("new authorities", "..."),
    ("compute1", "base", "..."),
    ("compute1", "certificate", "..."),
    ("switch to the new authorities", "..."),
    ("switch to the new authorities", "done"),
)


def test_a_rotation_killed_at_each_step_locks_nobody_out_and_is_finished(sim: Sim) -> None:
    """Each one takes up what the one before left."""
    before = sim.json("trust", "status")["fingerprints"]
    for words in STEPS:
        process = sim.start("trust", "rotate", "--only", "ssh")
        wait_for(process, *words)
        process.kill()
        process.communicate(timeout=60)
        seen = sim.json("trust", "status")
        assert [each["problem"] for each in seen["certificates"]] == [None] * (1 + len(NODES)), (
            words
        )
    # The last one ended before nodes had forgotten the old keys: that is told as a difference.
    plan = sim.json("plan", "--only", "base", ok=False)
    assert "/etc/ssh/user_ca.pub" in json.dumps(plan)
    sim.run("trust", "rotate", "--only", "ssh")
    after = sim.json("trust", "status")
    assert after["rotating"] is False
    assert before and set(after["fingerprints"]) == set(before)
    assert not set(after["fingerprints"].values()) & set(before.values())
    assert sim.shell("compute1", "cat", "/etc/ssh/user_ca.pub") == (
        (keys(sim) / "user_ca.pub").read_text()
    )
    sim.run("plan", "--only", "base")


@pytest.mark.parametrize("verb", [("up", "--only", "base"), ("watch", "--once")])
def test_a_host_certificate_is_renewed_before_it_ends(sim: Sim, verb: tuple[str, ...]) -> None:
    assert ending(sim) == []
    with opened(sim) as cluster, pytest.MonkeyPatch.context() as patch:
        patch.setattr(trust, "HOST_LIFETIME", timedelta(days=100))
        node = cluster.profile.compute_nodes[1]
        with cluster.driver.network():
            certify(cluster, node, cluster.trust)
    assert ending(sim) == ["compute1"]
    assert "in 99 days; 'up' renews it" in sim.run("trust", "status").stdout
    sim.run(*verb)
    assert ending(sim) == []


def ending(sim: Sim) -> list[str]:
    """Nodes whose certificates `trust status` warns of."""
    seen = sim.json("trust", "status")["certificates"]
    return [each["node"] for each in seen if each["ends_soon"]]


def test_trust_renew_gives_everybody_a_new_certificate(sim: Sim) -> None:
    before = sim.json("trust", "status")
    assert sim.json("trust", "renew")["nodes"] == NODES
    after = sim.json("trust", "status")
    assert after["fingerprints"] == before["fingerprints"]
    for old, new in zip(before["certificates"], after["certificates"], strict=True):
        assert new["until"] > old["until"], new["node"]


def test_a_node_that_does_not_answer_holds_a_rotation_and_is_named(sim: Sim) -> None:
    sim.shell("compute1", "systemctl", "stop", "ssh.service")
    try:
        done = sim.run("trust", "rotate", "--only", "ssh", ok=False)
        assert "compute1" in done.stderr and "All updated nodes accept" in done.stderr
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
    try:
        close_connections(sim)
        report = sim.json("verify", "--node", "compute0,compute1", ok=False)
        wrong = [check for check in failed(report) if check["node"] == "compute1"]
        assert wrong and any("compute1" in check["seen"] for check in wrong), wrong
        assert any("did not certify this host key" in check["seen"] for check in wrong), wrong
        assert not [check for check in failed(report) if check["node"] == "compute0"]
    finally:
        back = f"mv /root/key {kept}; mv /root/cert {kept}-cert.pub; systemctl restart ssh.service"
        sim.shell("compute1", "sh", "-c", back)
    close_connections(sim)
    assert sim.json("verify", "--node", "compute0,compute1")["ok"]


def test_tokens_are_rotated_and_all_comes_back(sim: Sim) -> None:
    old = {name: (keys(sim) / name).read_text() for name in ("ray.token", "api.key")}
    done = json.loads(sim.run("trust", "rotate", "--only", "ray", "--only", "api", "--json").stdout)
    assert done["rotated"] == ["ray", "api"] and done["nodes"] == NODES
    assert all((keys(sim) / name).read_text() != text for name, text in old.items())
    assert sim.json("verify")["ok"]
