"""`orchestrate dashboard` of the simulated cluster, in a real browser, while a node loses power."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from support.browser import browser
from support.sim import NODES, Sim, asking

pytestmark = pytest.mark.sim


def samplers(sim: Sim, node: str) -> list[str]:
    shown = sim.shell(node, "ps", "axww", "-o", "args=").splitlines()
    return [line for line in shown if "PERIOD" in line and "python" in line.split()[0]]


@pytest.mark.usefixtures("spendable", "probes")
def test_a_node_that_loses_power_while_one_looks(sim: Sim, tmp_path: Path) -> None:
    process = sim.start("dashboard")
    assert process.stdout is not None
    url = process.stdout.readline().split()[-1]
    assert [samplers(sim, node) for node in NODES] == [[], [], []]  # nobody looks yet
    with (
        browser(tmp_path / "browser") as page,
        asking(sim, "What is the capital of France?") as said,
    ):
        page.open(url)
        page.shows("● serving", "#state")
        for number, node in enumerate(NODES, 1):
            page.shows(node, f".node:nth-child({number})")
            page.shows("● up", f".node:nth-child({number})")
            page.shows("units active", f".node:nth-child({number})")
        assert [len(samplers(sim, node)) for node in NODES] == [1, 1, 1]
        # What it does, and why it takes its time, as a report says it.
        page.shows("measured,", "#limits")
        page.shows("Each further token: ", "#limits")
        page.shows("of ", "#links .row")  # what moves, of the probed rate
        page.shows("checks passed", "#checks")
        assert "✕ failed" not in page.text("#checks")
        assert any("Paris" in answer for answer in said)
        sim.cut_power("compute1")
        page.shows("compute1", "#events")
        gone = page.text(".node:nth-child(3)")
        assert "● up" not in gone, gone
        # The others are shown as they are meanwhile.
        before = page.value("last.time")
        end = time.monotonic() + 60
        while page.value("last.time") < before + 6:
            assert time.monotonic() < end
            time.sleep(0.5)
        for number in (1, 2):
            assert "● up" in page.text(f".node:nth-child({number})")
            age = page.value(f"last.nodes[{number - 1}].heard_s")
            assert age < 7
        assert page.complaints == []
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert [samplers(sim, node) for node in NODES[:2]] == [[], []]


@pytest.mark.usefixtures("down")
def test_without_a_cluster_that_runs_it_says_how_to_start_one(sim: Sim) -> None:
    found = json.loads(sim.run("dashboard", "--json").stdout)
    assert (found["state"], found["text"]) == ("off", "All machines are off.")
    assert found["next"].startswith("orchestrate up")
    assert [node["state"] for node in found["nodes"]] == ["off"] * 3
    assert sim.left() == []
