"""A short load on the cluster that serves."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from support.sim import NAME, NODES, Sim, wait_for

pytestmark = [pytest.mark.sim, pytest.mark.usefixtures("serving")]

BRIEF = ("--workload", "brief", "--repeats", "2")


@pytest.mark.usefixtures("probes")  # what explains a run
def test_a_run_is_measured_explained_kept_and_reported(sim: Sim, tmp_path: Path) -> None:
    done = json.loads(sim.run("bench", "run", *BRIEF, "--target", "ttft=60000", "--json").stdout)
    assert done["state"] == "complete" and done["workloads"] == ["brief"]
    shown = sim.json("bench", "show", "last")
    (measured,) = shown["run"]["measured"]
    assert measured["failed"] == 0 and measured["completed"] == 8
    assert measured["goodput_per_s"]["median"] == measured["requests_per_s"]["median"]
    assert measured["engine"]["generation_tokens_total"] >= 8 * 8
    assert {each["node"] for each in shown["run"]["series"]} == set(NODES)
    names = {each["name"] for each in shown["run"]["series"]}
    assert {"processors", "cluster0 sent", "vLLM num_requests_running"} <= names
    assert {(phase["workload"], phase["phase"]) for phase in shown["phases"]} == {
        ("brief", "prefill"),
        ("brief", "decode"),
    }
    for phase in shown["phases"]:
        parts = sum(phase["parts_s"].values())
        assert phase["measured_s"] == pytest.approx(parts + phase["unexplained_s"])
        assert phase["cause"] and phase["why"]
    assert {(each["phase"], each["cause"]) for each in shown["run"]["causes"]} == {
        (each["phase"], each["cause"]) for each in shown["phases"]
    }
    forecasts = shown["forecasts"]
    assert {each["phase"] for each in forecasts["phases"]} == {"first token", "further token"}
    assert forecasts["not_scored"] == []
    (sealed,) = shown["run"]["forecasts"]
    started = min(window["start"] for window in measured["windows"])
    assert datetime.fromisoformat(sealed["time"]).timestamp() <= started
    told = sim.json("bench", "accuracy")
    assert {each["run"] for each in told["phases"]} >= {done["id"]}
    file = tmp_path / "report.html"
    assert str(file) in sim.run("bench", "report", "last", "--out", str(file)).stdout
    assert "brief" in file.read_text()
    (path, _) = sim.run("bench", "report").stdout.rsplit(": ", 1)
    assert "brief" in Path(path).read_text()
    assert done["id"] in sim.run("bench", "ls").stdout


def test_nobody_sees_the_key_while_it_runs(sim: Sim) -> None:
    process = sim.start("bench", "run", "--workload", "brief", "--repeats", "1")
    wait_for(process, "brief")
    key = Path(sim.env["ORCHESTRATE_STATE"], "clusters", NAME, "api.key").read_text().strip()
    seen = []
    while process.poll() is None:
        lines = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True,
                               check=True).stdout  # fmt: skip
        seen.append("bench serve" in lines)
        assert key not in lines
        time.sleep(0.05)
    process.communicate(timeout=60)
    assert any(seen) and process.returncode == 0


@pytest.mark.long
def test_an_interrupted_run_ends_clean_and_goes_on(sim: Sim) -> None:
    """It is interrupted in its second load; the first one is kept, and not measured again."""
    two = ("--workload", "brief", "--workload", "short", "--repeats", "1")
    process = sim.start("bench", "run", *two)
    wait_for(process, "short")
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in said
    (last,) = sim.json("bench", "ls")[-1:]
    assert last["state"] == "interrupted" and last["workloads"] == 1
    for node in NODES:
        assert not re.search("sampler|bench serve", sim.shell(node, "ps", "axww", "-o", "args"))
    first, second = sim.json("bench", "show", last["id"])["run"]["forecasts"]
    assert [each["workload"]["name"] for each in (first, second)] == ["brief", "short"]
    done = sim.run("bench", "run", *two, "--resume", last["id"], ok=False)
    assert "leave out --workload" in done.stderr
    sim.run("bench", "run", "--resume", last["id"])
    (last,) = sim.json("bench", "ls")[-1:]
    assert last["state"] == "complete" and last["workloads"] == 2
    assert sim.json("bench", "show", last["id"])["run"]["forecasts"][0] == first


def test_no_figures_from_a_cluster_that_fails_its_checks(sim: Sim) -> None:
    sim.shell("compute1", "sh", "-c", "echo 10.77.0.99 stranger >>/etc/hosts")
    before = len(sim.json("bench", "ls"))
    try:
        done = sim.run("bench", "run", *BRIEF, ok=False)
        assert "drift of compute1" in done.stderr and "Nothing was measured" in done.stderr
    finally:
        sim.run("up", "--node", "compute1", "--only", "base")
    assert len(sim.json("bench", "ls")) == before


#: Of the cables while they are the bottleneck: a prompt's messages take most of its time then.
SLOW = "2Mbit"


def proved(sim: Sim, load: str, phase: str, cause: str) -> dict[str, Any]:
    """What `bench prove` says of a phase of the last run."""
    words = ("--rounds", "2", "--workload", load, "--phase", phase, "--cause", cause)
    (found,) = sim.json("bench", "prove", *words)["proofs"]
    return dict(found)


@pytest.mark.long
def test_a_throttled_link_is_proved_to_be_the_cause(sim: Sim) -> None:
    """A cause that is none is refuted in host/test_prove: a proof takes 13 loads."""
    sim.run("sim", "link", "--rate", SLOW)
    try:
        sim.run("probe")
        sim.run("bench", "run", *BRIEF, "--no-rates")
        before = sim.run("node", "status").stdout
        proof = proved(sim, "brief", "prefill", "link bandwidth")
        host = proved(sim, "brief", "prefill", "host")
        assert sim.run("node", "status").stdout == before
    finally:
        sim.run("sim", "link", "--reset")
        sim.probed = None
    assert proof["verdict"] == "confirmed", proof
    assert proof["slope_unit"] == "bytes" and len(proof["points"]) == 6
    assert proof["slope"]["low"] > 0 and "a guard process" in proof["put_back"]
    assert host["verdict"] == "cannot be tried here" and "clock" in host["why"]
    assert "prefill: link bandwidth is confirmed" in sim.run("bench", "show", "last").stdout
    page = sim.run("bench", "report", "last", "--out", "-").stdout
    assert "prefill: link bandwidth is confirmed" in page
