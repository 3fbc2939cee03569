"""From counters during a load to what limits: each finding, and that it stays away otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.attach.bench import kept_speeds, speeds
from orchestrator.attach.doctor import standing, workloads
from orchestrator.attach.explain import findings, story
from orchestrator.attach.facts import (
    Address,
    CardFacts,
    EngineLog,
    EngineProcess,
    MachineFacts,
    RdmaPort,
)
from orchestrator.attach.find import NodeFound
from orchestrator.attach.prove import claims, ground
from orchestrator.attach.verify import Looked
from orchestrator.core.errors import BadInput
from orchestrator.performance.predict.phase import Cause
from orchestrator.performance.prove.claim import Claim
from orchestrator.performance.results.bench import (
    Measured,
    Provenance,
    Run,
    RunState,
    Series,
    Window,
    Workload,
)
from orchestrator.performance.results.probe import Spread
from orchestrator.profile.existing import Attached, AttachedNode

WINDOW = Window(100.0, 110.0)


def profile(*nodes: str, **serving: Any) -> Attached:
    return Attached.model_validate_json(
        json.dumps(
            {
                "name": "it",
                "machines": "existing",
                "endpoint": {"url": "http://x:1"},
                "nodes": [{"name": name, "host": name, "ranks": 1} for name in nodes],
                "serving": {"model": "m", **serving},
            }
        )
    )


def spread(value: float) -> Spread:
    return Spread(value, value, value, 2)


def measured(many: int = 1, rate: float = 10.0, **engine: float) -> Measured:
    name = "single stream" if many == 1 else f"{many} at once"
    time, done = spread(0.1), (WINDOW,)
    return Measured(
        Workload(name, 64, 64, 2, many), time, time, time, time, spread(rate), spread(1.0), None,
        2, 0, done, dict(engine),
    )  # fmt: skip


def series(node: str, name: str, value: float, unit: str = "") -> Series:
    """Within the window it is so; outside it is not."""
    return Series(node, name, unit, (50.0, 102.0, 104.0, 150.0), (0.0, value, value, 9e9))


def run(*loads: Measured, counters: list[Series]) -> Run:
    told = Provenance("it", "", "", "", {}, "m", "", "tensor 1, pipeline 1", "", "existing")
    return Run("1", told, RunState.COMPLETE, measured=loads, series=tuple(counters))


def named(found: Run, of: Attached | None = None, **fast: float) -> dict[str, str]:
    told = {key.replace("_", " "): value for key, value in fast.items()}
    return {each.what: each.line for each in findings(found, of or profile(), told)}


WAITING = [
    series("endpoint", "vLLM num_requests_waiting", 5.0),
    series("endpoint", "vLLM num_requests_running", 8.0),
]


def test_a_full_cache_and_a_short_queue_are_told_apart() -> None:
    full = [*WAITING, series("endpoint", "vLLM kv_cache_usage_perc", 0.97)]
    room = [*WAITING, series("endpoint", "vLLM kv_cache_usage_perc", 0.2)]
    assert list(named(run(measured(16), counters=full))) == ["the KV cache is full"]
    queued = named(run(measured(16), counters=room), profile(args={"max-num-seqs": 8}))
    assert list(queued) == ["requests queue"]
    assert "5.0 requests wait beside 8.0" in queued["requests queue"]
    assert "--max-num-seqs (8)" in queued["requests queue"]
    assert "the KV cache is full" in named(
        run(measured(16, num_preemptions_total=3), counters=room)
    )
    calm = [series("endpoint", "vLLM num_requests_waiting", 0.1)]
    assert named(run(measured(16), counters=calm)) == {}


@pytest.mark.parametrize(("busy", "what"), [(96, "compute all the time"), (20, "wait"), (70, "")])
def test_accelerators_by_how_busy_the_busiest_is(busy: float, what: str) -> None:
    cards = [
        series("a", "NVIDIA 0", busy, "% GPU busy"),
        series("a", "NVIDIA 1", busy / 2, "% GPU busy"),
        series("a", "NVIDIA 0", 99, "% GPU memory busy"),
    ]
    found = named(run(measured(), counters=cards))
    assert [each.removeprefix("the accelerators ") for each in found] == ([what] if what else [])


def test_cards_that_may_wait_for_another_node_are_not_said_to_compute() -> None:
    cards = [series("a", "NVIDIA 0", 96, "% GPU busy")]
    (line,) = named(run(measured(8), counters=cards), profile("a", "b")).values()
    assert "(possible)" in line and "Fewer ranks" in line
    (line,) = named(run(measured(8), counters=cards), profile("a")).values()
    assert "compute all the time (likely)" in line


def test_eager_mode_is_named_where_cards_wait() -> None:
    cards = [series("a", "NVIDIA 0", 20, "% GPU busy")]
    eager = named(run(measured(), counters=cards), profile(args={"enforce-eager": True}))
    assert "(likely)" in str(eager) and "Leave out --enforce-eager" in str(eager)
    many = named(run(measured(8), counters=cards))
    assert many == {}  # with several at once it may be the load


def test_a_link_is_full_in_either_direction_and_only_its_own_speed_counts() -> None:
    moved = [series("a", "eth0 sent", 110e6), series("a", "eth1 sent", 110e6)]
    found = named(run(measured(), counters=moved), a_eth0=125e6, b_eth0=125e6, a_eth1=1250e6)
    assert list(found) == ["the link eth0 of a is full"]
    assert "88% of 1 Gb/s sent" in found["the link eth0 of a is full"]


def test_processors_that_are_full() -> None:
    full = named(run(measured(), counters=[series("a", "processors", 97)]))
    assert list(full) == ["the processors of a are full"]
    assert named(run(measured(), counters=[series("a", "processors", 60)])) == {}


@pytest.mark.parametrize(("rate", "what"), [(75.0, "room for more"), (11.0, "bring nothing")])
def test_what_more_at_once_bring(rate: float, what: str) -> None:
    (line,) = named(run(measured(), measured(8, rate), counters=[])).values()
    assert what in line
    assert named(run(measured(), measured(8, 40.0), counters=[])) == {}


def test_the_heaviest_is_first() -> None:
    both = [*WAITING, series("a", "processors", 97)]
    assert next(iter(named(run(measured(16), counters=both)))) == "the processors of a are full"


def node(
    name: str, ranks: int, speed: int | None, *cards: CardFacts, rdma: str = "", log: str = ""
) -> NodeFound:
    workers = [
        EngineProcess(n, [], "u", [f"VLLM::Worker_TP{n}"], "", None, None, "") for n in range(ranks)
    ]
    link = Address("eth0", "10.0.0.1", speed, 1500, "")
    ports = [RdmaPort("mlx5_0", 1, "InfiniBand", rdma, 400.0, "")] if rdma else []
    facts = MachineFacts(
        0.0, name, "u", "6", "3", 8, 1, [link], ports, list(cards), workers, [],
        log=EngineLog("vllm.log", [log] if log else []),
    )  # fmt: skip
    return NodeFound(AttachedNode(name=name, host=name), facts)


def test_rdma_that_is_there_and_not_taken() -> None:
    """NCCL falls back to sockets without an error."""
    socket, ib = "NCCL INFO Using network Socket", "NCCL INFO Using network IB"
    what = "a: the collectives do not take RDMA"
    for state, log, wanted in (
        ("ACTIVE", socket, [what]),
        ("ACTIVE", ib, []),
        ("ACTIVE", "", []),
        ("DOWN", socket, []),
    ):
        nodes = (node("a", 1, 100000, rdma=state, log=log), node("b", 1, 100000))
        found = standing_of(profile(tensor_parallel=2), *nodes)
        assert [each for each in found if "RDMA" in each] == wanted, (state, log)


def standing_of(of: Attached, *nodes: NodeFound) -> list[str]:
    return [each.what for each in standing(of, Looked(None, "", nodes))]


def test_what_limits_without_a_load() -> None:
    slow, two = "tensor parallelism over a slow link", profile(tensor_parallel=2)
    assert standing_of(two, node("a", 1, 1000), node("b", 1, 1000)) == [slow]
    assert standing_of(two, node("a", 1, 25000), node("b", 1, 25000)) == []
    assert standing_of(two, node("a", 1, 1000, rdma="ACTIVE"), node("b", 1, 1000)) == []
    assert standing_of(two, node("a", 2, 1000), node("b", 0, 1000)) == []
    assert standing_of(two, node("a", 1, None), node("b", 1, None)) == []  # not known
    assert standing_of(profile(), node("a", 1, 1000), node("b", 1, 1000)) == []
    hot = CardFacts("NVIDIA", "x", "01:00.0", "", throttled="thermal limit", link_width=4,
                      link_width_most=16)  # fmt: skip
    found = standing_of(profile(args={"enforce-eager": True}), node("a", 1, 1000, hot))
    assert found == ["a: 01:00.0 is slowed down", "a: 01:00.0 has a narrow slot", "eager mode"]
    assert standing_of(profile(args={"enforce-eager": True}), node("a", 1, 1000)) == []


def test_speeds_are_bytes_by_node_and_card() -> None:
    seen = Looked(None, "", (node("a", 1, 1000), node("b", 1, None)))
    assert speeds(seen) == {"a eth0": 125e6}


def test_kept_speeds_are_none_where_none_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path))
    assert kept_speeds("it") == {}
    kept = tmp_path / "clusters/it/measured/link-speeds.json"
    kept.parent.mkdir(parents=True)
    for text, speeds_there in (('{"a eth0": 5}', {"a eth0": 5.0}), ("[1]", {}), ("{", {})):
        kept.write_text(text)
        assert kept_speeds("it") == speeds_there


@pytest.mark.parametrize(
    ("args", "loads"),
    [
        ({}, [(320, 128), (320, 128)]),
        ({"max-model-len": 4096}, [(512, 128), (512, 128)]),
        ({"max-model-len": 64, "max-num-seqs": 1}, [(32, 31)]),
    ],
)
def test_the_short_load_fits(args: dict[str, int], loads: list[tuple[int, int]]) -> None:
    found = workloads(profile(args=args))
    assert [(each.prompt_tokens, each.output_tokens) for each in found] == loads


def tried(found: Run, *names: str, cause: str | None = None, **fast: float) -> list[Claim]:
    speeds_ = {key.replace("_", " "): value for key, value in fast.items()}
    return claims(found, profile(), speeds_, names, cause)


def test_what_a_finding_says_that_bench_prove_can_change() -> None:
    """The share of the time that it explains; of the queue, the time to the first token."""
    full = [*WAITING, series("a", "eth0 sent", 110e6)]
    link, queue = tried(run(measured(16), counters=full), a_eth0=125e6)
    assert (link.cause, link.phase, link.found.workload.name) == (
        Cause.LINK_BANDWIDTH, "decode", "16 at once",
    )  # fmt: skip
    assert link.seconds == pytest.approx(0.88 * 0.1)
    assert (queue.cause, queue.phase) == (Cause.BATCH_LIMIT, "prefill")
    asked = tried(run(measured(), measured(16), counters=[]), "16 at once", cause="host")
    assert [(each.phase, each.cause, each.seconds) for each in asked] == [
        ("prefill", Cause.HOST, 0.05), ("decode", Cause.HOST, 0.05),
    ]  # fmt: skip
    with pytest.raises(BadInput, match="no workload 'x'"):
        tried(run(measured(16), counters=full), "x")
    with pytest.raises(BadInput, match="no limit that could be changed"):
        tried(run(measured(16), counters=[]))


def test_where_a_cluster_of_others_can_be_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ranks' links, if two nodes have one; and no card that may be somebody else's."""
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path))
    card = CardFacts("NVIDIA", "x", "01:00.0", "")
    two = [node("a", 1, 1000, card), node("b", 1, 1000, card, card)]
    found = ground(profile(args={"max-num-seqs": 4, "max-model-len": 99}), two)
    links = [(end.place.name, end.link, end.tc) for end in found.ends(Cause.LINK_BANDWIDTH)]
    assert links == [("a", "eth0", ("tc",)), ("b", "eth0", ("tc",))]
    assert [each.name for each in found.hosts] == ["a", "b"]
    assert [each.name for each in found.cards] == ["a"]
    assert (found.limit, found.context, found.bytes_per_s) == (4, 99, None)
    silent = NodeFound(AttachedNode(name="c", host="c"), None, error="no answer")
    assert ground(profile(), [two[0], silent]).ends(Cause.LINK_BANDWIDTH) == []
    assert found.hosts[0].by_hand(["true"]).startswith("ssh ")


def test_a_report_answers_with_the_heaviest_finding_and_says_what_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path))
    waits = [series("endpoint", "vLLM num_requests_waiting", 8.0),
             series("endpoint", "vLLM num_requests_running", 4.0)]  # fmt: skip
    found = story(run(measured(8), counters=waits), profile("a"), {})
    limits, change, helps = found.answer.sentences
    assert limits.says.startswith("Requests queue (sure): 8 at once: 8.0 requests wait beside 4.0")
    assert change.says.startswith("Raise --max-num-seqs") and "counters" in change.source
    assert helps.says.startswith("Not known")
    (nothing, *_) = story(run(measured(8), counters=[]), profile("a"), {}).answer.sentences
    assert nothing.says.startswith("Not known. Measured: 100 ms")
