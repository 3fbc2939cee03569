"""What `dashboard` shows of a booted cluster, and of a node that dies while one looks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from support.sim import NAME, NODES, TIMEOUT, Sim

from orchestrator.core.waiting import as_long_as

pytestmark = pytest.mark.sim

#: Documents, one every 2 s, until what is waited for has to show.
MOST = 90
#: Its programs on a node, by the names of what they sample.
SAMPLERS = ("pgrep", "-f", "[P]ERIOD, GAUGES =")


def shown(process: subprocess.Popen[str], good: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The first document of which that is true."""
    assert process.stdout is not None
    document: dict[str, Any] = {}
    for _, line in zip(range(MOST), process.stdout, strict=False):
        document = json.loads(line)
        if good(document):
            return document
    told = {key: document.get(key) for key in ("state", "text", "nodes", "checks", "sources")}
    raise AssertionError(json.dumps(told, indent=1))


def states(document: dict[str, Any]) -> dict[str, str]:
    assert document["state"] != "problem", document["text"]
    return {node["name"]: node["state"] for node in document["nodes"]}


def test_a_node_that_dies_while_one_looks(spendable: Sim) -> None:
    sim = spendable
    process = sim.start("dashboard", "--json", "--follow")
    up = dict.fromkeys(NODES, "up")

    def whole(document: dict[str, Any]) -> bool:
        if document["state"] != "serving" or states(document) != up:
            return False
        checks = document["checks"]  # there are more as more has been looked at
        return checks["ok"] and len(checks["list"]) > 2 * len(NODES)

    try:
        seen = shown(process, whole)
        assert all(node["ray"] for node in seen["nodes"])
        assert seen["layout"] == "tensor 2, pipeline 1, on 2 of 2 accelerators"
        assert seen["image"].startswith("pxe-sim ")
        assert {node["role"] for node in seen["nodes"]} == {"control", "compute"}
        assert all(sim.shell(node, *SAMPLERS).split() for node in NODES)

        sim.cut_power("compute1")
        seen = shown(process, lambda each: states(each) == up | {"compute1": "off"})
        assert seen["state"] in ("degraded", "not serving")
        failed = [each["node"] for each in seen["checks"]["list"] if not each["ok"]]
        assert "compute1" in failed, seen["checks"]
    finally:
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130 and "Traceback" not in said
    # Over a connection that ends, they end by themselves.
    assert not as_long_as(
        lambda: any(sim.shell(node, *SAMPLERS, ok=None).split() for node in NODES[:2]), 30, 0.5
    )


def test_the_page_is_there_at_once_and_asks_nothing_until_somebody_looks(serving: Sim) -> None:
    process = serving.start("dashboard")
    try:
        assert process.stdout is not None
        name, _, url = process.stdout.readline().strip().partition(": ")
        assert name == NAME and url.startswith("http://127.0.0.1:")
        assert not any(serving.shell(node, *SAMPLERS, ok=None).split() for node in NODES)
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=TIMEOUT)
