"""A support bundle of a cluster that serves, and of one with a dead node: whole, and no secret."""

from __future__ import annotations

import json
from pathlib import Path

from support.bundle import received
from support.sim import NAME, NODES, Sim

from orchestrator.node.trust import PAIRS, TOKENS


def secrets(sim: Sim) -> list[str]:
    """Keys and tokens of the cluster, and the nonces of its boots."""
    home = Path(sim.env["ORCHESTRATE_STATE"]) / "clusters" / NAME
    lines = [line for name in (*PAIRS, *TOKENS) for line in (home / name).read_text().splitlines()]
    boots = home / "control/boots.json"
    if boots.exists():
        lines += [each["boot"] for all_ in json.loads(boots.read_text()).values() for each in all_]
    return [line for line in lines if not line.startswith("-----")]


def test_it_has_logs_facts_and_checks_of_all_nodes_and_no_secret(
    serving: Sim, tmp_path: Path
) -> None:
    sim = serving
    found_secrets = secrets(sim)
    # As a program does that logs what it was given.
    for node in NODES:
        script = 'while read line; do logger -t careless "with $line"; done'
        sim.enter(node, "sh", "-c", script, stdin="\n".join(found_secrets) + "\n")
    said = sim.json("support-bundle", "--out", str(tmp_path / "bundle.tar.gz"))
    found = received(Path(said["path"]))
    for node in NODES:
        assert "careless" in found.files[f"nodes/{node}/journal.txt"]
        assert f"nodes/{node}/units.txt" in found.files
    assert "vllm.service" in found.files["nodes/compute0/units.txt"]
    assert "nodes/compute0/units/vllm.service.txt" in found.files
    assert any(name.startswith("nodes/compute1/ray/") for name in found.files)
    assert json.loads(found.files["checks/verify.json"])["checks"]
    assert json.loads(found.files["status.json"])["nodes"]
    for secret in found_secrets:
        assert secret.encode() not in found.data
    assert said["redacted"] >= len(NODES)


def test_a_dead_node_is_named_and_the_others_are_there(running: Sim, tmp_path: Path) -> None:
    running.run("node", "down", "compute1")
    said = running.json("support-bundle", "--out", str(tmp_path / "bundle.tar.gz"))
    assert said["missing"]["nodes/compute1"] == "it is off"
    found = received(Path(said["path"]))
    assert "nodes/compute0/journal.txt" in found.files
    assert not any(name.startswith("nodes/compute1/") for name in found.files)
