"""The loop of `orchestrate watch`: what it tells, when it tries again, what it leaves alone."""

from __future__ import annotations

import fcntl
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.cluster import reconcile
from orchestrator.cluster.power_intent import _one_at_a_time, keep_off, kept_off, want_on
from orchestrator.cluster.reconcile import (
    FIRST_PAUSE,
    GOOD,
    LONGEST_PAUSE,
    Pauses,
    ReconcileEvent,
    Reconciler,
    told,
)
from orchestrator.core import paths
from orchestrator.core.errors import UserError
from orchestrator.node.configure import Outcome


def test_pauses_double_up_to_a_limit_and_end_when_all_is_well() -> None:
    now = 100.0
    pauses = Pauses(clock=lambda: now)
    assert pauses.due(["a", "b"]) == ["a", "b"]
    assert [pauses.failed("a") for _ in range(3)] == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE]
    assert pauses.due(["a", "b"]) == ["b"]
    now += 4 * FIRST_PAUSE
    assert pauses.due(["a", "b"]) == ["a", "b"]
    assert max(pauses.failed("a") for _ in range(20)) == LONGEST_PAUSE
    pauses.well("a")
    assert pauses.due(["a"]) == ["a"] and pauses.failed("a") == FIRST_PAUSE


def test_an_error_is_told_once_and_does_not_end_the_loop() -> None:
    events: list[ReconcileEvent] = []

    def opened() -> None:
        raise UserError("profiles/x.yml:3: networks: is missing", "Give it one.")

    reconciler = Reconciler(opened, events.append)  # type: ignore[arg-type]
    for _ in range(3):
        reconciler.round()
    assert [event.text for event in events] == ["profiles/x.yml:3: networks: is missing"]


def test_what_a_look_found_is_a_line() -> None:
    assert told(Outcome()) == GOOD
    assert told(Outcome(error="no route\nmore")) == "does not answer: no route"


def test_nodes_are_kept_off_until_they_are_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path))
    paths.cluster("one").mkdir(parents=True)
    assert kept_off("one") == frozenset()
    want_on("one", ["a"])
    keep_off("one", ["a", "b"])
    keep_off("one", ["c"])
    assert kept_off("one") == {"a", "b", "c"}
    want_on("one", ["b"])
    assert kept_off("one") == {"a", "c"}
    want_on("one", ["a", "b", "c"])
    assert kept_off("one") == frozenset()


def test_nodes_that_are_switched_at_once_are_all_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path))
    names = [f"node{number}" for number in range(32)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: keep_off("one", [name]), names))
        assert kept_off("one") == set(names)
        list(pool.map(lambda name: want_on("one", [name]), names))
    assert kept_off("one") == frozenset()


def test_what_its_user_switched_off_is_not_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path))
    nodes = [SimpleNamespace(name=name) for name in ("head", "left", "right")]
    cluster: Any = SimpleNamespace(profile=SimpleNamespace(name="small", nodes=nodes))
    keep_off("small", ["left"])
    assert reconcile.wanted(cluster) == ["head", "right"]
    want_on("small", ["left"])
    assert reconcile.wanted(cluster) == ["head", "left", "right"]


def test_who_switches_nodes_excludes_others_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path))
    with (
        _one_at_a_time("small"),
        (paths.cluster("small") / "kept-off.lock").open("w") as other,
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
