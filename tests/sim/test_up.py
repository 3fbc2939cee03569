"""End to end: the happy path; nothing is mocked."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from support import PROJECT
from support.sim import NAME, NODES, Sim, failed

pytestmark = pytest.mark.sim

ANSWERS = json.loads((PROJECT / "models/known-answers/answers.json").read_text())


@pytest.mark.usefixtures("fresh")
def test_up(sim: Sim) -> None:
    result = sim.json("up")
    assert result["ok"], result
    assert result["failures"] == {}
    assert failed(result["verify"]) == []
    for node in NODES:
        steps = result["steps"][node]
        assert {"power", "ssh", "base", "ray"} <= set(steps)
        assert {step["status"] for step in steps.values()} == {"done"}
        assert result["changed"][node]


@pytest.mark.usefixtures("serving")
def test_the_model_answers_rightly(sim: Sim) -> None:
    assert ANSWERS
    for pair in ANSWERS:
        assert sim.json("ask", pair["question"])["answer"] == pair["answer"]


@pytest.mark.usefixtures("serving")
def test_up_again_changes_nothing(sim: Sim) -> None:
    result = sim.json("up")
    assert result["ok"]
    assert result["changed"] == {node: [] for node in NODES}
    assert "nothing changed" in sim.run("up").stdout
    assert sim.run("plan").stdout == "compute[0-1],control: nothing differs\n"


@pytest.mark.usefixtures("serving")
def test_verify_writes_a_table_json_and_junit(sim: Sim, tmp_path: Path) -> None:
    file = tmp_path / "verify.xml"
    report = json.loads(sim.run("verify", "--json", "--junit", str(file)).stdout)
    assert report["ok"] and failed(report) == []
    assert {"name", "node", "ok", "expected", "seen"} <= set(report["checks"][0])
    suite = ElementTree.parse(file).getroot()
    assert len(suite.findall("testcase")) == len(report["checks"])
    names = {check["name"] for check in report["checks"]}
    assert {"image", "ray nodes", "ranks", "same answer again"} <= names
    table = sim.run("verify").stdout
    assert ANSWERS and all(pair["question"] in table for pair in ANSWERS)


@pytest.mark.usefixtures("serving")
def test_status(sim: Sim) -> None:
    seen = sim.json("status")
    assert [node["name"] for node in seen["nodes"]] == NODES
    assert {node["power"] for node in seen["nodes"]} == {"on"}
    assert {node["image"] for node in seen["nodes"]} == {seen["image_id"]}
    assert [node["ray"].split()[0] for node in seen["nodes"]] == ["head", "1", "1"]
    assert seen["models"] == [seen["model"]]
    assert "compute1" in sim.run("status").stdout


@pytest.mark.usefixtures("serving")
def test_every_machine_has_namespaces_of_its_own(sim: Sim) -> None:
    for kind in ("pid", "mnt", "uts", "net"):
        seen = {sim.shell(node, "readlink", f"/proc/1/ns/{kind}") for node in NODES}
        own = f"{Path('/proc/self/ns', kind).readlink()}\n"
        assert len(seen | {own}) == len(NODES) + 1, kind


@pytest.mark.usefixtures("serving")
def test_nodes_are_what_the_profile_says(sim: Sim) -> None:
    account = sim.document["users"]["accounts"][0]
    for node in NODES:
        assert sim.shell(node, "hostname").strip() == node
        assert sim.shell(node, "id", "--user", account["name"]).strip() == str(account["uid"])
    line = next(
        x for x in sim.shell("compute0", "cat", "/etc/hosts").splitlines() if "127.0.0.1" in x
    )
    assert "compute-node" in line.split()


@pytest.mark.usefixtures("serving")
def test_secrets_are_nowhere_to_be_read(sim: Sim) -> None:
    keys = Path(sim.env["ORCHESTRATE_STATE"], "clusters", NAME)
    files = [keys / "ray.token", keys / "api.key"]
    assert all(file.stat().st_mode & 0o077 == 0 for file in files)
    secrets = [file.read_text().strip() for file in files]
    assert all(secrets)
    for node in NODES:
        processes = sim.shell(node, "ps", "axww", "-o", "args")
        journal = sim.shell(node, "journalctl", "--no-pager", "--output=cat")
        assert "ray" in processes and "systemd" in journal, node  # there is something to look at
        seen = processes + journal
        assert not any(secret in seen for secret in secrets), node


@pytest.mark.usefixtures("serving")
def test_ray_refuses_who_has_no_token(sim: Sim) -> None:
    port = sim.document["ray"]["port"]
    address = sim.document["control"]["links"]["cluster"]["address"]
    ray = f"RAY_AUTH_MODE=token /opt/venvs/orchestrate/bin/ray status --address {address}:{port}"
    done = sim.run("sim", "shell", "compute1", "--", "setpriv", "--reuid=65534", "--clear-groups",
                   "env", "HOME=/tmp", "sh", "-c", ray, ok=False)  # fmt: skip
    assert re.search(r"auth|token", done.stdout + done.stderr, re.I)


@pytest.mark.usefixtures("serving")
def test_services_listen_on_the_cluster_only(sim: Sim) -> None:
    """On control, whatever is bound to all addresses is Ray's own (it has no setting for it)."""
    listening = sim.shell("control", "ss", "-Hltnp").splitlines()
    assert any('"nginx"' in line for line in listening), listening
    everywhere = [
        line for line in listening if line.split()[3].startswith(("0.0.0.0:", "*:", "[::]:"))
    ]
    others = [x for x in everywhere if not re.search(r'"(ray|raylet|gcs_server|python|default)', x)]
    assert others == []


@pytest.mark.usefixtures("serving")
def test_vllms_own_classes_answer_on_a_node_that_serves(sim: Sim) -> None:
    """As the account of vLLM there; the image is the next one that would be asked."""
    found = sim.json("model", "inspect", "known-answers")
    (node, *_) = (each for each in NODES if each != "control")
    assert found["engine_classes"]["where"] == node, found["engine_not_asked"]
    assert found["origins"]["parameters"] == f"vLLM 0.30.0+cpu ({node})"
    assert not found["refused"]
    assert sim.shell(node, "pgrep", "-f", "node_classes", ok=None) == ""
