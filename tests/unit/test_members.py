"""Nodes that left the profile: their keys, the wish that they stay off, their machines."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.cluster import members
from orchestrator.cluster.power_intent import forget_others, keep_off, kept_off
from orchestrator.core import paths
from orchestrator.node.configure import Outcome
from orchestrator.node.plan import DIFFERS, SAME, Plan, rendered
from orchestrator.profile import Profile
from orchestrator.provision.machines import nspawn
from orchestrator.provision.machines.processes import Process


def test_who_left_is_told_until_all_keys_are_new(loaded: Callable[..., Profile]) -> None:
    profile = loaded(driver="manual")
    names = [node.name for node in profile.nodes]
    members.give(profile.name, names)
    assert members.left(profile) == ()
    assert members.told(members.left(profile)) == ""
    members.give(profile.name, ["gone1", "gone0"])
    members.give(profile.name, names)
    assert members.left(profile) == ("gone0", "gone1")
    assert members.told(members.left(profile)) == (
        "not in the profile any more, but with the cluster's keys: gone[0-1]; switch it off,"
        " then run: orchestrate trust rotate"
    )
    members.renewed(profile)
    assert members.left(profile) == ()
    assert members.given(profile.name) == set(names)


def test_a_plan_tells_it_and_still_differs_only_where_a_node_does() -> None:
    plan = Plan({"a": Outcome(unchanged=1)}, left="not in the profile any more: b")
    assert "not in the profile any more: b" in [line.plain for line in rendered(plan)]
    assert plan.document()["left"] == "not in the profile any more: b"
    assert plan.code == SAME != DIFFERS


def test_one_that_comes_back_has_not_been_switched_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path))
    paths.cluster("one").mkdir(parents=True)
    keep_off("one", ["stays", "gone"])
    forget_others("one", ["stays", "another"])
    assert kept_off("one") == {"stays"}
    forget_others("one", ["another"])
    assert kept_off("one") == frozenset()


def test_the_simulated_machine_of_a_node_that_left_ends(loaded: Callable[..., Profile]) -> None:
    profile = loaded(driver="manual")
    driver = nspawn.cluster(profile)
    stays = profile.nodes[0].name
    places = {name: driver.home / name for name in (stays, "gone")}
    for place in places.values():
        place.mkdir(parents=True)
        Process(place / "process.json").start(["sleep", "600"], log=place / "log")
    pids = {name: Process(place / "process.json").pid() for name, place in places.items()}
    try:
        driver._end_left()
        assert not places["gone"].exists()
        assert (
            not Path(f"/proc/{pids['gone']}/cmdline").exists()
            or not Path(f"/proc/{pids['gone']}/cmdline").read_bytes()
        )
        assert Process(places[stays] / "process.json").pid() == pids[stays]
        driver._end_left()
    finally:
        pid = json.loads((places[stays] / "process.json").read_text())["pid"]
        subprocess.run(["kill", str(pid)], check=False)
