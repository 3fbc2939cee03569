"""``orchestrate plan --serving``: layouts ranked from stored probes, before anything is started."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from pydantic import TypeAdapter
from support.predict import (
    MISTRAL,
    collective,
    device,
    engine_rates,
    exactly,
    link,
    probes,
)
from support.profiles import PROFILE, make_checkout

from orchestrator.cli.plan import plan
from orchestrator.core import paths
from orchestrator.core.errors import UserError
from orchestrator.models.flags import EXECUTOR
from orchestrator.models.profiles import load
from orchestrator.performance.predict.forecast import asked, rank_all
from orchestrator.performance.predict.layout import Parallelism
from orchestrator.performance.predict.links import LinkRate
from orchestrator.performance.predict.load import limits
from orchestrator.performance.predict.rates import rates, what_if
from orchestrator.performance.results.engine import EngineCell, EngineRates
from orchestrator.performance.results.probe import Probes
from orchestrator.profile.model import Profile

ARGS = "args: {dtype: half, max-model-len: 4096, max-num-seqs: 8, gpu-memory-utilization: 0.85}"
BOTH = PROFILE.replace("args: {dtype: half}", ARGS)
CARD = {
    "device": "xpu",
    "matrix_flops_per_s": {"float16": exactly(60e12)},
    "memory_total_bytes": 16 * 2**30,
    "operation_s": exactly(8e-6),
}
CARDS = (device("left", 410e9, **CARD), device("right", 410e9, **CARD))
GBE = probes(devices=CARDS, links=(link("left", "right", 100e-6, 117.5e6),))
FAST = probes(devices=CARDS, links=(link("left", "right", 30e-6, 294e6),))

Plan = Callable[..., Result]


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    """Two nodes with a card each, and a model that fills most of one."""
    monkeypatch.setenv("ORCHESTRATE_CHECKOUT", str(tmp_path))
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("ORCHESTRATE_PROFILE", "small")
    return load(make_checkout(tmp_path, BOTH, MISTRAL))


@pytest.fixture
def planned(profile: Profile, tmp_path: Path) -> Plan:
    def run(*words: str, measured: Probes | None = GBE) -> Result:
        if measured is not None:
            folder = paths.measured(profile.name) / "probes"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "1.json").write_bytes(TypeAdapter(Probes).dump_json(measured))
        return CliRunner().invoke(plan, ["--serving", *words])

    return run


def test_without_probes_it_says_what_to_run(planned: Plan) -> None:
    result = planned(measured=None)
    assert isinstance(result.exception, UserError)
    assert result.exception.message == "no measurements of small yet"
    assert (
        result.exception.hint
        == "Run: orchestrate probe. Or say what the nodes have: --device NAME_OR_FILE"
    )


def test_a_slow_link_is_warned_of(planned: Plan) -> None:
    result = planned()
    assert result.exit_code == 0, result.output
    assert "tensor 2 (the profile)" in result.stdout
    assert "Does clustering help? one request: no" in result.stdout
    assert "with a 2.5 GbE link" in result.stdout
    assert "assumed, not measured: step_s" in result.stdout
    assert "slower than one device" in result.stderr
    assert "using the ring formula" in " ".join(result.stderr.split())


def test_a_quick_link_is_not(planned: Plan, tmp_path: Path) -> None:
    file = tmp_path / "probes.json"
    file.write_bytes(TypeAdapter(Probes).dump_json(FAST))
    result = planned("--probes", str(file), "--load", "64,64,4", measured=None)
    assert result.exit_code == 0, result.output
    assert "one request: yes" in result.stdout
    assert "slower than one device" not in result.stderr


def test_as_json(planned: Plan) -> None:
    document = json.loads(planned("--json").stdout)
    # One card holds the weights, and the cache of two requests instead of eight.
    names = [row["name"] for row in document["ranked"]]
    assert names == ["pipeline 2", "tensor 2", "one device", "2 copies"]
    assert [row["fit"]["fits"] for row in document["ranked"]] == [True, True, False, False]
    alone = document["ranked"][2]
    assert alone["fit"]["runs"]
    assert alone["fit"]["text"].startswith(
        "does not fit: weights 11.3 GiB of 13.6 GiB, room for 2 requests"
    )
    assert document["chosen"] == {"tensor": 2, "pipeline": 1, "data": 1}
    assert set(alone["loaded"]["request"]["parts"]) >= {"memory_s", "link_latency_s", "queue_s"}
    assert (
        document["counterfactuals"]["with half the latency"]
        > (document["counterfactuals"]["as it is"])
    )


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--load", "1,2"), "three whole numbers"),
        (("--load", "0,2,3"), "three whole numbers"),
        (("--only", "ray"), "cannot be combined"),
    ],
)
def test_wrong_words(planned: Plan, words: tuple[str, ...], text: str) -> None:
    result = planned(*words)
    assert result.exit_code == 1
    assert text in result.output


def test_options_of_a_prediction_belong_to_it() -> None:
    result = CliRunner().invoke(plan, ["--profile", "sim", "--load", "1,2,3"])
    assert result.exit_code == 1
    assert "require --serving" in result.output


def test_a_file_that_holds_no_probes(planned: Plan, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text('{"profile": "small"}')
    result = planned("--probes", str(file), measured=None)
    assert isinstance(result.exception, UserError)
    assert f"{file}: does not hold probes: " in result.exception.message


def test_layouts_that_were_not_measured_enough_for_are_left_out(planned: Plan) -> None:
    result = planned("--json", measured=probes(profile="other", devices=CARDS, links=()))
    document = json.loads(result.stdout)
    assert [row["name"] for row in document["ranked"]] == ["one device", "2 copies"]
    assert document["answer"] == "Does clustering help? Only one device can be predicted."
    text = "\n".join(document["warnings"])
    assert "not predicted: tensor 2: no link between left, right was measured on lan" in text
    assert "the probes belong to the profile other, not to small" in text


def test_a_model_that_is_not_known_to_config(profile: Profile) -> None:
    with pytest.raises(UserError) as raised:
        rank_all(asked(profile, {"model_type": "mystery"}, Parallelism(), GBE))
    assert "nothing can be predicted" in raised.value.message


# Rates from probes


def test_the_slowest_device_and_link_count(profile: Profile) -> None:
    slow = device("right", 100e9, **CARD)
    found = rates(probes(devices=(CARDS[0], slow)), profile, Parallelism(2))
    assert found.memory_bytes_per_s == 100e9
    assert not found.synchronous
    assert found.link == LinkRate(50e-6, 100e6)
    assert (
        rates(probes(devices=(CARDS[0], slow)), profile, Parallelism()).memory_bytes_per_s == 410e9
    )


def test_the_network_that_ray_talks_over_counts(profile: Profile) -> None:
    other = link("left", "right", 1e-6, 1e9, network="usb4")
    both = probes(links=(other, link("right", "left", 50e-6, 100e6)))
    assert rates(both, profile, Parallelism(2)).link == LinkRate(50e-6, 100e6)


def test_measured_collectives_count_before_formulas(profile: Profile) -> None:
    times = {8: 300e-6, 65536: 2e-3}
    found = rates(
        probes(collectives=(collective(("left", "right"), times),)), profile, Parallelism(2)
    )
    assert found.all_reduce is not None
    assert found.all_reduce.at(8) == 300e-6
    assert not found.notes
    only = probes(links=(), collectives=(collective(("left", "right"), times),))
    alone = rates(only, profile, Parallelism(2))
    assert alone.link is not None
    assert alone.link.latency_s == pytest.approx(150e-6)
    assert any("no link was measured" in note for note in alone.notes)
    assert what_if(alone, latency_factor=0.5).link == LinkRate(75e-6, alone.link.bytes_per_s)


def test_what_was_not_measured_is_said(profile: Profile) -> None:
    with pytest.raises(UserError) as raised:
        rates(probes(devices=()), profile, Parallelism())
    assert raised.value.hint == "Run: orchestrate probe"
    with pytest.raises(UserError) as raised:
        rates(probes(links=()), profile, Parallelism(2))
    assert "no link between left, right was measured on lan" in raised.value.message
    found = rates(probes(devices=(device("left"),)), profile, Parallelism(2))
    assert any("not measured: right" in note for note in found.notes)


def test_a_worse_network_beside_it_does_not_count(profile: Profile) -> None:
    other = link("left", "right", 1.0, 1e3, network="usb4")
    both = probes(links=(other, link("right", "left", 50e-6, 100e6)))
    assert rates(both, profile, Parallelism(2)).link == LinkRate(50e-6, 100e6)


def test_the_cache_on_processors_is_in_gibibytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATE_CHECKOUT", str(tmp_path))
    env = '  env: {VLLM_CPU_KVCACHE_SPACE: "1.5"}\n  args: {dtype: half}'
    profile = load(make_checkout(tmp_path, PROFILE.replace("  args: {dtype: half}", env)))
    assert limits(profile, synchronous=True).cache_bytes == 1.5 * 2**30
    assert limits(profile, synchronous=False).cache_bytes is None


@pytest.mark.parametrize(
    ("args", "captured"),
    [({}, 512), ({"max-num-seqs": 64}, 128), ({"max_num_seqs": 1000}, 512),
     ({"max-num-seqs": 64, "enforce-eager": True}, 0), ({"enforce-eager": False}, 512),
     ({"max-cudagraph-capture-size": 32}, 32)],
)  # fmt: skip
def test_the_largest_graph_by_the_profiles_flags(
    args: dict[str, object], captured: int, profile: Profile
) -> None:
    asked = profile.serving.model_copy(update={"args": args})
    assert limits(profile.model_copy(update={"serving": asked})).captured == captured


# The engine's own measurements


CELLS = (
    EngineCell(512, 128, 1, exactly(0.5), exactly(0.060), exactly(16.0)),
    EngineCell(512, 128, 8, exactly(2.0), exactly(0.090), exactly(70.0)),
)
SEEN = engine_rates(CELLS, Parallelism(2), model="tiny")
THEIR_ARGS = {"max-num-seqs": "8", "max-model-len": "4096"}


def seen(profile: Profile, **other: Any) -> EngineRates:
    """The engine with the profile's model and flags."""
    args = {name: str(value) for name, value in profile.serving.args.items()}
    known: dict[str, Any] = {"model": profile.serving.model, "args": args}
    return replace(SEEN, **known | other)


def keep(cluster: str, *found: EngineRates) -> None:
    folder = paths.measured(cluster) / "engines"
    folder.mkdir(parents=True, exist_ok=True)
    for each in found:
        (folder / f"{each.key}.json").write_bytes(TypeAdapter(EngineRates).dump_json(each))


def test_the_engine_counts_before_formulas(planned: Plan, profile: Profile) -> None:
    mine = seen(profile)
    late = "2027-01-01T00:00:00Z"
    newer = seen(profile, key="another", time=late, model="another", cells=CELLS[1:])
    eager, own = (mine.args | more for more in ({"enforce-eager": "True"}, {EXECUTOR: "mp"}))
    flags = seen(profile, key="flags", time=late, args=eager, cells=CELLS[1:])
    processes = seen(profile, key="mp", time=late, args=own, cells=CELLS[1:])
    keep(profile.name, mine, newer, flags, processes)
    document = json.loads(planned("--json").stdout)
    both = next(row for row in document["ranked"] if row["name"] == "tensor 2")
    assert both["single_tokens_per_s"] == pytest.approx(1 / 0.060, rel=1e-3)
    assert both["tpot_s"]["value"] == pytest.approx(0.090, rel=1e-3)
    assert both["tpot_s"]["origin"] == "measured here"
    assert both["tpot_s"]["low"] < 0.090 < both["tpot_s"]["high"]
    other = next(row for row in document["ranked"] if row["name"] == "pipeline 2")
    assert other["tpot_s"]["origin"] == "measured elsewhere"
    assert "serve as pipeline 2" in other["narrower"][0]
    shown = planned().stdout
    assert "measured here" in shown and "measured elsewhere" in shown
    assert "assumed, not measured" not in shown


def test_the_room_is_the_engines_word(planned: Plan, profile: Profile) -> None:
    keep(profile.name, seen(profile, kv_tokens=3 * 4096))
    document = json.loads(planned("--json").stdout)
    both = next(row for row in document["ranked"] if row["name"] == "tensor 2")
    assert both["fit"]["sequences"] == 3 and not both["fit"]["fits"]


# Hardware that is not there


def test_more_nodes_and_another_link(planned: Plan) -> None:
    now = json.loads(planned("--json").stdout)
    document = json.loads(planned("--json", "--nodes", "4", "--link", "10Gbit:20us").stdout)
    found = {row["name"]: row for row in document["ranked"]}
    assert "tensor 4" in found
    before = next(row for row in now["ranked"] if row["name"] == "tensor 2")
    assert found["tensor 2"]["single_tokens_per_s"] > 1.5 * before["single_tokens_per_s"]
    assert found["one device"]["single_tokens_per_s"] == pytest.approx(
        next(row for row in now["ranked"] if row["name"] == "one device")["single_tokens_per_s"]
    )


def test_another_card_in_the_same_cluster(planned: Plan, profile: Profile) -> None:
    """Its host was measured with the engine: the new card's memory counts, and that host."""
    alone = seen(profile, tensor=1, nodes=("left",))
    keep(profile.name, alone)
    words = ("--json", "--device", "a770", "--load", "512,128,1")
    slow = probes(devices=tuple(replace(card, memory_bytes_per_s=exactly(2e11)) for card in CARDS))
    document = json.loads(planned(*words, measured=slow).stdout)
    one = next(row for row in document["ranked"] if row["name"] == "one device")
    assert one["tpot_s"]["origin"] == "measured elsewhere"
    # 11.3 GiB at 410 instead of 200 GB/s: 30 ms less, where memory was most of it.
    assert 0.025 < one["tpot_s"]["value"] < 0.045
    assert document["sources"][0].startswith("Intel Arc A770, 16 GB: published: Memory: 410 GB/s")


def test_the_profiles_own_nodes_before_they_are_bought(planned: Plan, tmp_path: Path) -> None:
    """What they will have is said; nothing was measured."""
    words = ("--json", "--device", "a770", "--link", "10Gbit")
    document = json.loads(planned(*words, measured=None).stdout)
    assert {"one device", "tensor 2"} <= {row["name"] for row in document["ranked"]}
    assert not [row for row in document["ranked"] if row["name"] == "tensor 3"]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(MISTRAL))
    named = json.loads(planned(*words, "--config", str(other), measured=None).stdout)
    assert named["model"] == str(other)
    unlinked = planned("--device", "a770", measured=None).exception
    assert isinstance(unlinked, UserError)
    assert unlinked.message == "no link between 2 nodes is known"
    unknown = planned(measured=None).exception
    assert isinstance(unknown, UserError) and "--device" in str(unknown.hint)


def test_without_any_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORCHESTRATE_PROFILE", raising=False)
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path))
    config = tmp_path / "config.json"
    config.write_text(json.dumps(MISTRAL))
    words = ["--serving", "--config", str(config), "--device", "a770"]
    linked = [*words, "--nodes", "2", "--link", "1Gbit:100us"]
    slow = CliRunner().invoke(plan, linked)
    assert slow.exit_code == 0, slow.output
    assert "Does clustering help?" in slow.stdout and "published: Memory: 410 GB/s" in slow.stdout
    two = CliRunner().invoke(plan, [*words, "--nodes", "2"])
    assert isinstance(two.exception, UserError)
    assert two.exception.message == "no link between 2 nodes is known"


# A cluster that others run

THEIRS = """
name: theirs
machines: existing
endpoint: {url: "http://127.0.0.1:1"}
nodes:
  - {name: box0, host: box0.example, ranks: 1}
  - {name: box1, host: box1.example, ranks: 1}
serving: {model: tiny, tensor_parallel: 2, args: {max-num-seqs: 8, max-model-len: 4096}}
"""


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "state"))
    file = tmp_path / "theirs.yml"
    file.write_text(THEIRS)
    return lambda *words: CliRunner().invoke(plan, ["--profile", str(file), *words])


def test_an_attached_cluster_is_forecast_from_its_engine(theirs: Callable[..., Result]) -> None:
    """Without its config.json: the layout that serves, at loads that were not measured."""
    result = theirs("--serving")
    assert isinstance(result.exception, UserError)
    assert "orchestrate probe --only engine" in result.exception.hint
    keep("theirs", replace(SEEN, args=THEIR_ARGS))
    result = theirs("--serving", "--json", "--load", "512,128,4")
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["ranked"]
    assert row["name"] == "tensor 2" and row["tpot_s"]["origin"] == "measured here"
    assert 0.060 < row["tpot_s"]["value"] < 0.090
    assert row["fit"]["text"] == "not known"
    assert "tensor 2 (the profile)" in theirs("--serving").stdout


def test_an_attached_cluster_with_probes_and_config(
    theirs: Callable[..., Result], tmp_path: Path
) -> None:
    keep("theirs", replace(SEEN, args=THEIR_ARGS))
    cards = tuple(replace(each, node=f"box{i}") for i, each in enumerate(CARDS))
    cable = link("box0", "box1", 100e-6, 117.5e6, network="ranks")
    folder = paths.measured("theirs") / "probes"
    folder.mkdir(parents=True)
    found = probes(profile="theirs", devices=cards, links=(cable,))
    (folder / "1.json").write_bytes(TypeAdapter(Probes).dump_json(found))
    config = tmp_path / "config.json"
    config.write_text(json.dumps(MISTRAL))
    result = theirs("--serving", "--json", "--config", str(config))
    assert result.exit_code == 0, result.output
    rows = {row["name"]: row for row in json.loads(result.stdout)["ranked"]}
    assert set(rows) == {"tensor 2", "pipeline 2", "one device", "2 copies"}
    assert rows["tensor 2"]["tpot_s"]["origin"] == "measured here"
    assert rows["one device"]["tpot_s"]["origin"] == "measured elsewhere"


def test_what_up_would_change_is_not_asked_of_an_attached_cluster(
    theirs: Callable[..., Result],
) -> None:
    result = theirs()
    assert isinstance(result.exception, UserError)
    assert "not ours" in result.exception.message and "plan --serving" in result.exception.hint
