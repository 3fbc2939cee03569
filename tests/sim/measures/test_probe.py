"""Probes of the cluster that serves: what they find, and what they make of cables that are slow,
silent or busy."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.link import as_throttled
from support.sim import NAME, NODES, Sim, wait_for

from orchestrator.performance.results.probe import Spread

pytestmark = [pytest.mark.sim, pytest.mark.usefixtures("serving")]

PAIR = ("--only", "link", "--node", "compute0,compute1")


def test_probes_measure_every_node_link_the_collective_and_the_model(sim: Sim, probes: Any) -> None:
    found = probes
    assert found["failed"] == []
    assert [device["node"] for device in found["devices"]] == NODES[1:]
    assert all(device["threads"] == 1 for device in found["devices"])  # as the profile gives vLLM
    assert all(abs(device["clock_skew_s"]) < 30 for device in found["devices"])  # one clock
    assert {link["network"] for link in found["links"]} == {"cluster"} and len(found["links"]) == 3
    cards = {card for link in found["links"] for card in link["interfaces"]}
    assert cards == {"cluster0"}
    (collective,) = found["collectives"]
    assert collective["backend"] == "gloo" and collective["interfaces"] == ["cluster0"] * 2
    assert min(each["median"] for each in collective["all_reduce_s"].values()) > 0
    assert set(collective["send_s"]) == set(found["links"][0]["by_size_s"])
    assert [each["node"] for each in found["storage"]] == NODES[1:]
    assert found["before"]["requests"] == 0 and set(found["before"]["busy"]) == set(NODES)
    assert found["versions"]["vllm"] and found["versions"]["torch"]
    assert not [line for line in found["anomalies"] if "used" in line], found["anomalies"]
    assert json.loads(Path(found["file"]).read_text())["devices"] == found["devices"]
    assert "tensor 2 (the profile)" in sim.run("plan", "--serving").stdout


def test_a_throttled_cable_is_seen_shown_and_set_free(sim: Sim) -> None:
    sim.run("sim", "link", "--rate", "50Mbit", "--node", "compute1")
    try:
        (row,) = [
            each for each in sim.json("node", "status")["nodes"] if each["throttled_bits_per_s"]
        ]
        assert (row["node"], row["throttled_bits_per_s"]) == ("compute1", {"cluster": 50_000_000})
        (link,) = sim.json("probe", *PAIR)["links"]
        rate = link["bytes_per_s"]
        assert as_throttled(Spread(**rate), 50e6), rate
    finally:
        sim.run("sim", "link", "--reset")
    left = [each["throttled_bits_per_s"] for each in sim.json("node", "status")["nodes"]]
    assert left == [{}] * len(NODES)


@contextmanager
def closed(sim: Sim, rule: str) -> Iterator[None]:
    """A rule for packets that come to compute1."""
    chain = "'{ type filter hook input priority 0; }'"
    table = f"nft add table ip closed; nft add chain ip closed in {chain}"
    sim.shell("compute1", "sh", "-c", f"{table}; nft add rule ip closed in {rule}")
    try:
        yield
    finally:
        sim.shell("compute1", "nft", "delete", "table", "ip", "closed")


def test_a_probe_that_hangs_is_ended_and_said(sim: Sim) -> None:
    """Packets are lost without a word."""
    with closed(sim, "ip saddr 10.77.0.10 tcp dport 20000-29999 drop"):
        found = sim.json("probe", *PAIR, ok=False)
    (failed,) = found["failed"]
    assert (failed["probe"], failed["where"]) == ("link", "compute0, compute1 over cluster")
    assert "no answer within 20 s" in failed["reason"]
    assert found["links"] == [] and "parts" in found["file"]


def test_a_node_without_ssh_is_said_and_the_others_are_probed(sim: Sim) -> None:
    with closed(sim, "tcp dport 22 reject with tcp reset"):
        found = sim.json("probe", "--only", "link", ok=False)
    (failed,) = found["failed"]
    assert (failed["probe"], failed["where"]) == ("look", "compute1")
    assert [{link["a"], link["b"]} for link in found["links"]] == [{"control", "compute0"}]


@pytest.mark.usefixtures("probes")
def test_the_engine_that_serves_is_measured_once(sim: Sim) -> None:
    found = sim.json("probe", "--only", "engine", "--seconds", "60")
    assert (found["weights"], found["known"], found["tensor"]) == ("own", False, 2)
    assert found["nodes"] == ["compute0", "compute1"] and found["image_id"]
    assert found["kv_tokens"] and found["link_bytes_per_s"] > 1e6
    for each in found["cells"]:
        assert each["ttft_s"]["n"] >= 3 and 0 < each["tpot_s"]["low"] <= each["tpot_s"]["high"]
    again = sim.json("probe", "--only", "engine")
    assert again["known"] and again["time"] == found["time"]


def test_an_interrupted_probe_leaves_nothing_on_nodes(sim: Sim) -> None:
    before = set(measured(sim))
    process = sim.start("probe", "--only", "device")
    wait_for(process, "compute1", "device", "...")
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in said
    for node in NODES:
        # The guards have ended, or are about to: they wait for the program's own end.
        sim.shell(node, "sh", "-c", GONE)
    assert set(measured(sim)) == before


#: Ends when no guarded program is left; it is not one itself.
GONE = (
    "for i in $(seq 100); do pgrep -f '[S]UBREAPER' >/dev/null || exit 0; sleep 0.1; done; exit 1"
)


def measured(sim: Sim) -> list[Path]:
    home = Path(sim.env["ORCHESTRATE_STATE"], "clusters", NAME, "measured/probes")
    return sorted(home.glob("**/*.json"))


#: Asks vLLM again and again, on its own node; says on stderr when the first answer was there.
ASK = """
import json, re, sys, urllib.request
key = re.search('VLLM_API_KEY="(.*)"', open("/etc/orchestrate/vllm.env").read())[1]
body = {"model": "known-answers", "prompt": "a", "max_tokens": 200, "ignore_eos": True}
head = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
while True:
    url = "http://10.77.0.10:8000/v1/completions"
    urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), head)).read()
    print("answered", file=sys.stderr, flush=True)
"""


def test_no_probes_beside_requests_unless_forced(sim: Sim) -> None:
    python = "/opt/venvs/orchestrate/bin/python"
    asking = sim.start("sim", "shell", "compute0", "--", python, "-c", ASK)
    try:
        wait_for(asking, "answered")
        # Between two requests there is none for a moment: then a probe is made, and said to be.
        for _ in range(3):
            done = sim.run("probe", "--only", "device", "--node", "0", ok=None)
            if done.returncode != 0:
                break
        assert done.returncode != 0 and "the model is answering 1 requests" in done.stderr
        assert sim.json("probe", *PAIR, "--force")["links"]
    finally:
        os.killpg(asking.pid, signal.SIGKILL)
