"""End to end, in this order: the happy path, then faults, on one cluster. Nothing is mocked."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest
from harness import NAME, PROJECT, Sim, wait_for

pytestmark = pytest.mark.sim

NODES = ["control", "compute0", "compute1"]
ANSWERS = json.loads((PROJECT / "models/known-answers/answers.json").read_text())


def failed(report: dict) -> list[dict]:
    return [check for check in report["checks"] if not check["ok"]]


# The happy path.


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


def test_the_model_answers_rightly(sim: Sim) -> None:
    for pair in ANSWERS:
        assert sim.json("ask", pair["question"])["answer"] == pair["answer"]


def test_up_again_changes_nothing(sim: Sim) -> None:
    result = sim.json("up")
    assert result["ok"]
    assert all(changed == [] for changed in result["changed"].values()), result["changed"]
    assert "nothing changed" in sim.run("up").stdout
    assert sim.run("plan").stdout == "control, compute0, compute1: nothing differs\n"


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
    assert all(pair["question"] in table for pair in ANSWERS)


def test_status(sim: Sim) -> None:
    seen = sim.json("status")
    assert [node["name"] for node in seen["nodes"]] == NODES
    assert {node["power"] for node in seen["nodes"]} == {"on"}
    assert {node["image"] for node in seen["nodes"]} == {seen["image_id"]}
    assert [node["ray"].split()[0] for node in seen["nodes"]] == ["head", "1", "1"]
    assert seen["models"] == [seen["model"]]
    assert "compute1" in sim.run("status").stdout


def test_every_machine_has_namespaces_of_its_own(sim: Sim) -> None:
    for kind in ("pid", "mnt", "uts", "net"):
        seen = {sim.shell(node, "readlink", f"/proc/1/ns/{kind}") for node in NODES}
        own = f"{Path('/proc/self/ns', kind).readlink()}\n"
        assert len(seen | {own}) == len(NODES) + 1, kind


def test_nodes_are_what_the_profile_says(sim: Sim) -> None:
    account = sim.document["users"]["accounts"][0]
    for node in NODES:
        assert sim.shell(node, "hostname").strip() == node
        assert sim.shell(node, "id", "--user", account["name"]).strip() == str(account["uid"])
    line = next(
        x for x in sim.shell("compute0", "cat", "/etc/hosts").splitlines() if "127.0.0.1" in x
    )
    assert "compute-node" in line.split()


def test_secrets_are_nowhere_to_be_read(sim: Sim) -> None:
    keys = Path(sim.env["ORCHESTRATE_STATE"], "clusters", NAME)
    files = [keys / "ray.token", keys / "api.key"]
    assert all(file.stat().st_mode & 0o077 == 0 for file in files)
    secrets = [file.read_text().strip() for file in files]
    for node in NODES:
        seen = sim.shell(node, "ps", "axww", "-o", "args")
        seen += sim.shell(node, "journalctl", "--no-pager", "--output=cat")
        assert not any(secret in seen for secret in secrets), node


def test_ray_refuses_who_has_no_token(sim: Sim) -> None:
    port = sim.document["ray"]["port"]
    address = sim.document["control"]["links"]["cluster"]["address"]
    ray = f"RAY_AUTH_MODE=token /opt/venvs/orchestrate/bin/ray status --address {address}:{port}"
    done = sim.run("sim", "shell", "compute1", "--", "setpriv", "--reuid=65534", "--clear-groups",
                   "env", "HOME=/tmp", "sh", "-c", ray, ok=False)  # fmt: skip
    assert re.search(r"auth|token", done.stdout + done.stderr, re.I)


def test_services_listen_on_the_cluster_only(sim: Sim) -> None:
    """On control, whatever is bound to all addresses is Ray's own (it has no setting for it)."""
    listening = sim.shell("control", "ss", "-Hltnp").splitlines()
    everywhere = [
        line for line in listening if line.split()[3].startswith(("0.0.0.0:", "*:", "[::]:"))
    ]
    others = [x for x in everywhere if not re.search(r'"(ray|raylet|gcs_server|python|default)', x)]
    assert others == []


# Faults that leave the model running.


def test_an_unknown_machine_is_named(sim: Sim) -> None:
    done = sim.run("sim", "shell", "compute9", ok=False)
    assert done.returncode == 2
    assert "compute9" in done.stderr and "compute" in done.stderr


def test_verify_names_what_drifted_and_up_mends_it(sim: Sim) -> None:
    sim.shell("compute1", "sh", "-c", "echo 10.77.0.99 stranger >>/etc/hosts")
    report = sim.json("verify", ok=False)
    assert {(check["name"], check["node"]) for check in failed(report)} == {("drift", "compute1")}
    assert "/etc/hosts" in failed(report)[0]["seen"]
    assert "-10.77.0.99 stranger" in sim.run("plan", ok=False).stdout
    result = sim.json("up")
    assert result["changed"]["compute1"] == ["file:/etc/hosts"]
    assert "stranger" not in sim.shell("compute1", "cat", "/etc/hosts")


def test_a_port_in_use_is_told(sim: Sim) -> None:
    link, port = (
        sim.document["control"]["links"]["cluster"],
        sim.document["serving"]["endpoint_port"],
    )
    server = f"/opt/venvs/orchestrate/bin/python -m http.server --bind {link['address']} {port}"
    sim.shell("control", "systemctl", "stop", "nginx")
    sim.shell("control", "systemd-run", "--unit=intruder", "--service-type=exec", *server.split())
    wait = f"until ss -Hltn | grep -q {link['address']}:{port}; do :; done"
    sim.shell("control", "timeout", "20", "bash", "-c", wait)
    done = sim.run("up", ok=False)
    assert "nginx.service" in done.stderr and "Address already in use" in done.stderr
    assert f"{link['address']}:{port}" in done.stderr
    sim.shell("control", "systemctl", "stop", "intruder")
    assert sim.json("up")["changed"]["control"] == ["unit:nginx.service"]


def test_not_root_is_told(sim: Sim) -> None:
    """In a user namespace without a mapping: this process's files, but nobody's id."""
    argv = ["unshare", "--user", *sim.argv("sim", "up")]
    done = subprocess.run(
        argv, env=sim.env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "need root" in done.stderr and "sudo" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


# Faults that stop it.


def test_verify_names_a_stopped_worker_and_up_brings_it_back(sim: Sim) -> None:
    sim.shell("compute1", "systemctl", "stop", "ray-worker.service")
    report = sim.json("verify", ok=False)
    wrong = {(check["name"], check["node"]) for check in failed(report)}
    assert ("units", "compute1") in wrong
    nodes = next(check for check in failed(report) if check["name"] == "ray nodes")
    assert "missing: compute1" in nodes["seen"]
    result = sim.json("up")
    assert result["ok"], result
    assert "unit:ray-worker.service" in result["changed"]["compute1"]


def test_down_leaves_nothing_and_says_so_twice(sim: Sim) -> None:
    assert "down" in sim.run("down").stdout
    assert sim.left() == []
    assert "nothing changed" in sim.run("down").stdout
    report = sim.json("verify", ok=False)
    assert not report["ok"]


def test_up_until_ray_ends_when_every_node_has_joined(sim: Sim) -> None:
    result = sim.json("up", "--until", "ray")
    assert result["ok"] and result["verify"] is None, result
    seen = sim.json("status")
    assert [node["ray"].split()[0] for node in seen["nodes"]] == ["head", "1", "1"]
    assert seen["models"] == []
    sim.run("down")


def test_a_host_killed_during_up_does_not_hold_the_others(sim: Sim) -> None:
    process = sim.start("up", "--json")
    holder = Path(sim.env["ORCHESTRATE_STATE"], "clusters", NAME, "changing")
    while str(process.pid) not in holder.read_text():
        assert process.poll() is None, process.communicate()
    told = sim.run("up", ok=False).stderr  # a second one, while the first holds the cluster
    assert f"process {process.pid}" in told
    deadline = Path(
        sim.env["ORCHESTRATE_STATE"], "clusters", NAME, "machines/compute1/process.json"
    )
    while not deadline.exists():
        assert process.poll() is None, process.communicate()
    sim.cut_power("compute1")
    out, err = process.communicate(timeout=600)
    assert process.returncode == 1, err
    result = json.loads(out)
    assert list(result["failures"]) == ["compute1"], result["failures"]
    assert "compute1" in result["failures"]["compute1"]
    for node in ("control", "compute0"):
        assert result["steps"][node]["ray"]["status"] == "done"
    sim.run("down")


def test_ctrl_c_during_up_leaves_nothing(sim: Sim) -> None:
    process = sim.start("up")
    wait_for(process, "compute0", "base")
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert sim.left() == []


def test_leftovers_of_a_killed_run_are_cleaned(sim: Sim) -> None:
    process = sim.start("up")
    wait_for(process, "compute0", "ssh")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    sim.cut_power("compute0")
    assert sim.left() != []
    assert "compute0" in sim.run("sim", "up").stdout
    assert "nothing changed" in sim.run("sim", "up").stdout
    rows = sim.json("sim", "status")["machines"]
    assert [row["running"] for row in rows] == [True] * len(NODES)
    sim.run("sim", "down")
    assert sim.left() == []
