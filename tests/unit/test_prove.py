"""Proof by intervention, without machines: slopes, verdicts, doses, and the commands that undo."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.report import measured as one_of_report
from support.report import story

from orchestrator.core.errors import BadInput
from orchestrator.core.progress import Board
from orchestrator.performance.predict.phase import Cause
from orchestrator.performance.prove import store, trials
from orchestrator.performance.prove.changes import (
    NotHere,
)
from orchestrator.performance.prove.claim import Claim, claim, claims
from orchestrator.performance.prove.guards import Site, guarded
from orchestrator.performance.prove.knobs import FileKnob
from orchestrator.performance.prove.slope import judge, judge_without_effect, slope
from orchestrator.performance.prove.trials import (
    FACTORS,
    AtOnce,
    End,
    Ground,
    Links,
    intervention,
)
from orchestrator.performance.prove.turns import Loads, prove
from orchestrator.performance.report.story import Phase
from orchestrator.performance.results.bench import Measured, Workload
from orchestrator.performance.results.probe import Spread
from orchestrator.performance.results.proof import Judgement, Slope, Turn

rounds_ = st.integers(2, 5)
seeds = st.integers(0, 2**32)


def points(
    effect: Callable[[float], float], noise: float, drift: float, rounds: int, seed: int
) -> list[Turn]:
    """Loads in turns of a machine that becomes slower by ``drift`` a load; unchanged: 1 second."""
    chance = random.Random(seed)
    clock = 0

    def load(factor: float) -> float:
        nonlocal clock
        clock += 1
        return effect(factor) + drift * clock + chance.uniform(-noise, noise)

    found, before = [], load(1.0)
    for _ in range(rounds):
        for factor in FACTORS:
            dosed = load(factor)
            after = load(1.0)
            found.append(Turn(str(factor), factor, dosed, (before + after) / 2))
            before = after
    return found


@given(st.floats(0.05, 1.0), st.floats(0, 0.2), rounds_, seeds)
def test_a_known_slope_is_found_whatever_the_drift(
    share: float, drift: float, rounds: int, seed: int
) -> None:
    """A dose between two unchanged loads: even drift leaves nothing, noise not more than itself."""
    noise = 0.02 * share
    found = slope(points(lambda f: 1 + share * (f - 1), noise, drift, rounds, seed), 1.0)
    # The smallest dose differs by a factor, the difference by at most twice the noise.
    assert abs(found.value - share) <= 2 * noise + 1e-9
    assert found.low <= found.value <= found.high
    assert found.n == 3 * rounds
    assert judge(found, share) is Judgement.CONFIRMED


@given(st.floats(0.2, 1.0), st.floats(0, 0.4), rounds_, seeds)
def test_a_wrong_cause_is_refuted(said: float, part: float, rounds: int, seed: int) -> None:
    """The change has less than half of the effect that the cause would give."""
    noise = 0.01 * said
    found = slope(points(lambda f: 1 + part * said * (f - 1), noise, 0.05, rounds, seed), 1.0)
    assert judge(found, said) is Judgement.REFUTED


@given(st.floats(0.2, 1.0), rounds_, seeds)
def test_noise_larger_than_the_effect_decides_nothing_wrongly(
    share: float, rounds: int, seed: int
) -> None:
    """A true cause is confirmed or undecided then, and never refuted."""
    found = slope(points(lambda f: 1 + share * (f - 1), 0.1 * share, 0, rounds, seed), 1.0)
    assert judge(found, share) is not Judgement.REFUTED


def test_the_interval_holds_the_slope_as_often_as_it_says() -> None:
    for rounds in (2, 3, 5):
        held = 0
        for seed in range(400):
            found = slope(points(lambda f: f, 0.5, 0.0, rounds, seed), 1.0)
            held += found.low <= 1.0 <= found.high
        assert held / 400 > 0.85, rounds


def test_one_outlier_moves_nothing_much() -> None:
    found = points(lambda f: 1 + 0.5 * (f - 1), 0.001, 0.0, 3, 1)
    wrong = Turn("4.0", 4.0, 99.0, 1.0)
    assert slope([*found, wrong], 1.0).value == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("low", "value", "high", "verdict"),
    [
        (0.9, 1.0, 1.1, Judgement.CONFIRMED),
        (0.6, 0.7, 0.8, Judgement.CONFIRMED),
        (2.9, 3.0, 3.1, Judgement.CONFIRMED),  # stronger than predicted
        (0.0, 0.1, 0.2, Judgement.REFUTED),
        (-0.2, 0.0, 0.1, Judgement.REFUTED),
        (0.3, 0.4, 0.49, Judgement.REFUTED),
        (-0.5, 0.8, 2.0, Judgement.UNDECIDED),  # perhaps none at all
        (0.1, 0.3, 0.9, Judgement.UNDECIDED),
    ],
)
def test_verdicts(low: float, value: float, high: float, verdict: Judgement) -> None:
    found = Slope(value, low, high, 9)
    assert judge(found, 1.0) is verdict
    swapped = {Judgement.CONFIRMED: Judgement.REFUTED, Judgement.REFUTED: Judgement.CONFIRMED}
    assert judge_without_effect(found, 1.0) is swapped.get(verdict, verdict)


def measured(concurrency: int | None = 4, seconds: float = 1.0) -> Measured:
    time = Spread(seconds, seconds, seconds, 2)
    load = Workload("it", 64, 16, 8, concurrency)
    return Measured(load, time, time, time, time, time, Spread(2.0, 2.0, 2.0, 2), None, 8, 0, ())


def phase(cause: str, counted: bool = False, **parts: float) -> Phase:
    told = {name.replace("_", " "): each for name, each in parts.items()}
    beyond = 1.0 - sum(told.values())
    return Phase("it", "decode", 1.0, told, beyond, cause, "Why.", counted=counted)


@pytest.mark.parametrize(
    ("named", "asked", "seconds"),
    [
        (phase("link bandwidth", link_bandwidth=0.6, host=0.1), None, 0.6),
        # A counter explains the rest too.
        (phase("link bandwidth", counted=True, link_bandwidth=0.2, host=0.1), None, 0.9),
        # Another cause would have to be as large as the largest.
        (phase("link bandwidth", link_bandwidth=0.6, host=0.1), Cause.HOST, 0.6),
        (phase("unexplained", host=0.1), Cause.HOST, 0.9),
        (phase("host", host=1.4), None, 1.4),
    ],
)
def test_what_a_cause_says(named: Phase, asked: Cause | None, seconds: float) -> None:
    found = claim(measured(), named, asked)
    assert found.seconds == pytest.approx(seconds)
    assert found.cause == (asked or named.cause)


def test_each_cause_is_tried_once_unless_workloads_are_named() -> None:
    told = story()
    (first, second) = told.phases
    run = told.run
    run = type(run)(**vars(run) | {"measured": (one("load 1"), one("other"))})
    again = type(first)(**vars(first) | {"workload": "other"})
    found = claims(run, (first, second, again), ())
    assert [(each.phase, each.found.workload.name) for each in found] == [
        ("decode", "load 1"), ("prefill", "load 1"),
    ]  # fmt: skip
    named = claims(run, (first, second, again), ["other"], "compute")
    assert [(each.phase, each.cause) for each in named] == [("decode", Cause.COMPUTE)]
    with pytest.raises(BadInput, match="no workload 'othr'"):
        claims(run, (first,), ["othr"])
    with pytest.raises(BadInput, match="no cause is named"):
        claims(run, (), ())


def one(name: str) -> Measured:
    found = one_of_report(1, 1)
    load = type(found.workload)(**vars(found.workload) | {"name": name})
    return type(found)(**vars(found) | {"workload": load})


def of(cause: Cause, found: Measured | None = None, seconds: float = 0.5) -> Claim:
    return Claim(found or measured(), "prefill", cause, seconds, {}, "")


def ground(**other: object) -> Ground:
    values: dict[str, object] = {
        "hosts": (), "cards": (), "ends": lambda _: (), "bytes_per_s": 1e6, "latency_s": 1e-4,
        "synchronous": True, "limit": 1, "context": 256,
    }  # fmt: skip
    return Ground(**values | other)  # type: ignore[arg-type]


def test_requests_beyond_the_limit_wait_for_others_to_end() -> None:
    """Little's law: two requests end in a second, so each more waits for half a second more."""
    with guarded() as guards:
        trial = AtOnce(of(Cause.BATCH_LIMIT), 1).available(guards)
    assert trial.predicted == 0.5
    assert [(each.x, each.workload.requests) for each in trial.doses] == [(1, 2), (2, 4), (7, 14)]
    assert not any(each.changes for each in trial.doses)


@pytest.mark.parametrize("named", [Cause.UNEXPLAINED, Cause.SLOW_NODE])
def test_what_nothing_can_be_changed_for(named: Cause) -> None:
    with pytest.raises(NotHere, match=r"no cause|slow node is not known"):
        intervention(of(named), ground())


CANNOT = {
    Cause.LINK_BANDWIDTH: "ranks are on one node",
    Cause.HOST: r"would try: a quota .*; the processors' highest clock\).*Needs root there",
    Cause.MEMORY: r"would try: the card's memory clock \(NVIDIA\)",
    Cause.BATCH_LIMIT: "at most 4 at once, and the limit is 8: none waits",
}


@pytest.mark.parametrize("cause", CANNOT)
def test_what_cannot_be_tried_says_why_and_loads_nothing(cause: Cause) -> None:
    def load(_: Workload) -> Measured:
        raise AssertionError("loaded")

    with guarded() as guards:
        bench = Loads(Board(quiet=True), guards, load, 2)
        proof = prove("1", of(cause), ground(limit=8, synchronous=False), "", bench)
    assert proof.verdict is Judgement.NOT_TRIED
    with pytest.raises(AssertionError, match=CANNOT[cause]):
        raise AssertionError(proof.why)
    assert "cannot be tried here" in proof.line


def queueing(limit: int, each_s: float) -> Callable[[Workload], Measured]:
    """A server that has room for ``limit`` requests, each of which takes so long."""

    def load(workload: Workload) -> Measured:
        count = workload.concurrency or 1
        return measured(count, max(1.0, count / limit) * each_s)

    return load


@pytest.mark.parametrize(("server", "verdict"), [(1, Judgement.CONFIRMED), (64, Judgement.REFUTED)])
def test_a_load_from_the_client_alone(server: int, verdict: Judgement) -> None:
    """Requests wait where the limit is as said, and do not where it is far away."""
    load = queueing(server, 0.5)
    found = load(Workload("it", 64, 16, 8, 4))
    with guarded() as guards:
        bench = Loads(Board(quiet=True), guards, load, 2)
        proof = prove("1", of(Cause.BATCH_LIMIT, found), ground(limit=1), "", bench)
    assert proof.verdict is verdict, proof.why
    assert proof.predicted == 0.5 and len(proof.points) == 6
    assert "0.5" in proof.line and str(proof.verdict) in proof.line


def test_a_machine_that_becomes_slower_by_itself_changes_nothing() -> None:
    """Each load takes a tenth longer than the first one did, whatever is changed."""
    loads = itertools.count()

    def load(workload: Workload) -> Measured:
        return measured(workload.concurrency, (workload.concurrency or 1) * 0.5 + 0.2 * next(loads))

    found = queueing(1, 0.5)(Workload("it", 64, 16, 8, 4))
    with guarded() as guards:
        bench = Loads(Board(quiet=True), guards, load, 3)
        proof = prove("1", of(Cause.BATCH_LIMIT, found), ground(limit=1), "", bench)
    assert proof.verdict is Judgement.CONFIRMED
    assert proof.slope is not None
    assert (proof.slope.low, proof.slope.high) == pytest.approx((0.5, 0.5))


def test_a_cluster_that_changed_since_the_run_is_not_judged() -> None:
    with guarded() as guards:
        bench = Loads(Board(quiet=True), guards, lambda _: measured(4, 9.0), 2)
        proof = prove("1", of(Cause.BATCH_LIMIT), ground(limit=1), "", bench)
    assert proof.verdict is Judgement.NOT_TRIED
    assert "1000 ms then, 9000 ms now" in proof.why


@pytest.mark.parametrize("hiccups", [1, 2])
def test_a_hiccup_is_no_change_of_the_cluster(hiccups: int) -> None:
    slow = iter([9.0] * hiccups)
    server = queueing(1, 0.5)

    def load(workload: Workload) -> Measured:
        seconds = next(slow, None)
        return measured(workload.concurrency, seconds) if seconds else server(workload)

    found = server(Workload("it", 64, 16, 8, 4))
    with guarded() as guards:
        bench = Loads(Board(quiet=True), guards, load, 2)
        proof = prove("1", of(Cause.BATCH_LIMIT, found), ground(limit=1), "", bench)
    assert proof.verdict is Judgement.CONFIRMED, proof.why


HERE = Site("here", list, ("python3", "-I", "-S"))


def test_doses_of_a_link_and_what_they_predict() -> None:
    """Half a second of a megabyte per second: half a megabyte is moved."""
    end = End(HERE, "nothing-of-this-name")
    found = of(Cause.LINK_BANDWIDTH)
    with guarded() as guards:
        trial = Links(found, [end], 1e6).available(guards)
    assert trial.predicted == pytest.approx(0.5e6) and trial.unit == "bytes"
    assert [each.x * 1e6 for each in trial.doses] == pytest.approx(FACTORS)
    assert [each.text for each in trial.doses] == ["4 Mb/s", "2.667 Mb/s", "2 Mb/s"]


@dataclass
class Nodes:
    """Two nodes whose processors have clocks in files; a load takes as long as the slower one."""

    home: Path

    def places(self) -> list[Site]:
        def at(name: str) -> Site:
            words = ["sh", "-c", f'cd {self.home / name} && exec "$@"', "sh"]
            return Site(name, lambda argv: [*words, *argv], ("python3", "-I", "-S"))

        return [at("slow"), at("other")]

    def load(self, workload: Workload) -> Measured:
        clocks = {name: int((self.home / name / "cpu0").read_text()) for name in ("slow", "other")}
        return measured(1, max(3000 / clocks["slow"], 0.75 * 3000 / clocks["other"]))


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nodes:
    for name in ("slow", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cpu0").write_text("3000")
    monkeypatch.setattr(trials, "KNOBS", (FileKnob("the clock", "cpu*", (Cause.HOST,)),))
    return Nodes(tmp_path)


@pytest.mark.parametrize(
    ("named", "verdict"), [("slow", Judgement.CONFIRMED), ("other", Judgement.REFUTED)]
)
def test_a_slow_node_matters_and_another_does_not(
    nodes: Nodes, named: str, verdict: Judgement
) -> None:
    found = of(Cause.SLOW_NODE, nodes.load(Workload("it", 1, 1, 1, 1)), 0.9)
    with guarded() as guards:
        loads = Loads(Board(quiet=True), guards, nodes.load, 2)
        proof = prove("1", found, ground(hosts=nodes.places()), named, loads)
    assert proof.verdict is verdict, proof.why
    assert "on slow" in proof.why and "on other" in proof.why
    assert [(nodes.home / name / "cpu0").read_text().strip() for name in ("slow", "other")] == [
        "3000", "3000",
    ]  # fmt: skip


def test_the_hosts_seconds_are_found_by_its_clock(nodes: Nodes) -> None:
    found = of(Cause.HOST, nodes.load(Workload("it", 1, 1, 1, 1)), 1.0)
    with guarded() as guards:
        loads = Loads(Board(quiet=True), guards, nodes.load, 2)
        proof = prove("1", found, ground(hosts=nodes.places()), "", loads)
    assert proof.verdict is Judgement.CONFIRMED
    assert proof.slope is not None and proof.slope.value == pytest.approx(1.0)
    assert "a guard process on the node" in proof.put_back


def test_proofs_are_kept_beside_their_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path))
    with guarded() as guards:
        bench = Loads(Board(quiet=True), guards, queueing(1, 0.5), 2)
        load = queueing(1, 0.5)(Workload("it", 64, 16, 8, 4))
        proofs = [prove("7", of(Cause.BATCH_LIMIT, load), ground(), "", bench) for _ in range(2)]
    store.store("c", proofs)
    assert store.load("c", "7") == proofs[1:]
    untried = replace(proofs[1], verdict=Judgement.NOT_TRIED)
    store.store("c", [untried, replace(untried, cause="host")])
    assert store.load("c", "7") == [proofs[1], replace(untried, cause="host")]
    assert store.load("c", "8") == []
    store.file("c", "7").write_text("{}")
    with pytest.raises(BadInput, match="does not hold proofs"):
        store.load("c", "7")
