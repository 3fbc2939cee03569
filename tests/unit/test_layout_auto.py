"""``serving.layout: auto``: what is taken, why, and that nothing changes by itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import TypeAdapter
from support.predict import MISTRAL, device, engine_rates, exactly, link, probes
from support.profiles import PROFILE, make_checkout

from orchestrator.cli.cluster import up
from orchestrator.cli.layout import settled_profile
from orchestrator.cli.plan import plan
from orchestrator.cluster.up import bring
from orchestrator.core import paths
from orchestrator.core.errors import BadInput, UserError
from orchestrator.core.progress import Board
from orchestrator.models import chosen, serving
from orchestrator.models.profiles import load
from orchestrator.node.resources import Step
from orchestrator.node.selection import everything
from orchestrator.performance.predict.auto import Settled, settle
from orchestrator.performance.predict.choose import Wanted
from orchestrator.performance.predict.layout import Parallelism
from orchestrator.performance.predict.load import OfferedLoad
from orchestrator.performance.results.engine import EngineCell, EngineRates
from orchestrator.performance.results.probe import Probes

ONE, TENSOR, STAGES = Parallelism(), Parallelism(2), Parallelism(1, 2)
CHAT = Wanted("chat", OfferedLoad(512, 128, 8), {})
IMAGE, OTHER = "1" * 64, "2" * 64


# A cluster's choice

ARGS = "{dtype: half, max-model-len: 4096, max-num-seqs: 8, gpu-memory-utilization: 0.85}"
TEXT = PROFILE.replace("{dtype: half}", ARGS).replace(
    "  model: tiny", "  layout: auto\n  workload: chat\n  model: tiny"
)
TEXT += """\
bench:
  targets: {}
  workloads:
    chat: {prompt_tokens: 512, output_tokens: 128, requests: 8, concurrency: 1}
    crowd: {prompt_tokens: 512, output_tokens: 128, requests: 8, concurrency: 2}
"""
CARD = {
    "device": "xpu",
    "matrix_flops_per_s": {"float16": exactly(60e12)},
    "memory_total_bytes": 16 * 2**30,
    "operation_s": exactly(8e-6),
}
CARDS = (device("left", 410e9, **CARD), device("right", 410e9, **CARD))
SMALL = tuple(replace(card, memory_total_bytes=2**32) for card in CARDS)
GBE = probes(devices=CARDS, links=(link("left", "right", 100e-6, 117.5e6),))
FAST = probes(devices=CARDS, links=(link("left", "right", 3e-6, 12e9),))

Write = Callable[[str], None]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes the profile of two nodes with a card each, and a model that fills most of one."""
    monkeypatch.setenv("ORCHESTRATE_CHECKOUT", str(tmp_path))
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("ORCHESTRATE_PROFILE", "small")
    file = make_checkout(tmp_path, TEXT, MISTRAL)

    def write(text: str) -> None:
        file.write_text(text)

    return write


@pytest.fixture
def settled(written: Write, tmp_path: Path) -> Callable[..., Settled]:
    """What `up` would do with the layout, and does."""

    def run(text: str = TEXT, image: str = IMAGE, *, change: bool = False) -> Settled:
        written(text)
        found = settle(load(tmp_path / "profiles/small.yml"), image, change=change)
        if found.new:
            chosen.write("small", found.choice)
        return found

    return run


Settle = Callable[..., Settled]


def measured(found: Probes) -> None:
    folder = paths.measured("small") / "probes"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "1.json").write_bytes(TypeAdapter(Probes).dump_json(found))


def engine(
    layout: Parallelism, tpot_s: float, image: str = IMAGE, day: int = 1, more: float = 1.0
) -> None:
    """The engine was measured with this layout: one request, and eight at once, whose tokens take
    ``more`` times as long."""
    cells = [
        EngineCell(512, 128, count, exactly(0.2), exactly(times), exactly(count / times))
        for count, times in ((1, tpot_s), (8, tpot_s * more))
    ]
    args = {"dtype": "half", "max-model-len": "4096", "max-num-seqs": "8"}
    args["gpu-memory-utilization"] = "0.85"
    found = engine_rates(
        cells, layout, model="tiny", args=args, image_id=image, key=f"{layout}, {day}",
        time=f"2026-11-{day:02d}T00:00:00Z",
    )  # fmt: skip
    file = paths.measured("small") / "engines" / f"{found.key}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(TypeAdapter(EngineRates).dump_json(found))


def test_unmeasured_it_takes_the_default_and_says_what_to_probe(settled: Settle) -> None:
    found = settled()
    assert found.took == TENSOR and found.new
    assert "It takes the most accelerators, since their memory is not known" in found.lines[0]
    assert found.lines[1] == (
        "To choose by forecasts: orchestrate probe, then orchestrate probe --only engine"
    )
    again = settled()
    assert again.took == TENSOR and not again.new
    assert again.lines[0].startswith("tensor 2 stays, chosen 20")


HARDWARE = """\
hardware:
  card:
    pci:
      - {id: "8086:56a0", name: a card, driver: i915, advice: none, bars: {"2": %s}}
"""


@pytest.mark.parametrize(("memory", "expected"), [("16GiB", ONE), ("8GiB", STAGES)])
def test_the_default_is_the_least_communication_that_fits(
    settled: Settle, memory: str, expected: Parallelism
) -> None:
    text = TEXT.replace("    accelerators: 1", "    hardware: card\n    accelerators: 1")
    found = settled(text + HARDWARE % memory)
    assert found.took == expected
    assert "It communicates least of those that fit the memory" in found.lines[0]


def test_by_the_profile_no_layout_fits(settled: Settle) -> None:
    text = TEXT.replace("    accelerators: 1", "    hardware: card\n    accelerators: 1")
    with pytest.raises(UserError) as raised:
        settled(text + HARDWARE % "4GiB")
    message = raised.value.message.splitlines()
    assert message[0].endswith("serving.layout: no layout of tiny fits the accelerators' memory:")
    assert [line.split(": ")[0].strip() for line in message[1:]] == [
        "one device", "2 copies", "pipeline 2", "tensor 2",
    ]  # fmt: skip
    assert all("a rank's weights take" in line for line in message[1:])


def test_by_the_probes_no_layout_fits_but_what_runs_is_left(settled: Settle) -> None:
    measured(probes(devices=SMALL))
    with pytest.raises(UserError, match="tensor 2: does not fit: weights"):
        settled()
    (paths.measured("small") / "probes/1.json").unlink()
    assert settled().took == TENSOR
    measured(probes(devices=SMALL))
    found = settled()
    assert found.took == TENSOR and not found.new
    assert found.lines[-1] == "By the probes, no layout fits the memory."


def test_the_first_choice_is_the_forecasts_with_figures(settled: Settle) -> None:
    measured(GBE)
    engine(TENSOR, 0.080)
    engine(ONE, 0.040)
    found = settled()
    assert found.took == ONE and found.pending is None
    assert found.lines[0].startswith(
        "auto takes one device for chat (512+128 tokens, 1 at once): 24.2 (21.9 to 26.8) tokens/s,"
        " measured here; next: "
    )
    kept = json.loads((paths.cluster("small") / "layout.json").read_text())
    assert kept["sizes"] == {"tensor_parallel": 1, "pipeline_parallel": 1, "data_parallel": 1}
    assert kept["reason"]["probes"] == GBE.time
    assert kept["reason"]["workload"]["name"] == "chat"
    assert len(kept["reason"]["measured_sha256"]) == 64
    shown = {each["layout"]: each["output_tokens_per_s"] for each in kept["reason"]["forecasts"]}
    assert set(shown) == {"one device", "2 copies", "tensor 2", "pipeline 2"}
    assert shown["one device"]["low"] < shown["one device"]["value"] < shown["one device"]["high"]


def test_many_requests_are_spread_over_copies_where_that_is_best(
    settled: Settle, tmp_path: Path
) -> None:
    measured(GBE)
    engine(TENSOR, 0.080)
    engine(ONE, 0.040, more=8)
    assert settled().took == ONE
    found = settled(TEXT.replace("workload: chat", "workload: crowd"))
    assert (found.took, found.layout.data) == (Parallelism(data=2), 2)
    assert serving.resolve(load(tmp_path / "profiles/small.yml")).data == 2


def test_a_better_layout_is_shown_and_taken_only_when_told(settled: Settle) -> None:
    measured(GBE)
    engine(TENSOR, 0.080)
    engine(ONE, 0.040)
    assert settled().took == ONE
    engine(TENSOR, 0.015, day=2)
    found = settled()
    assert (found.took, found.pending, found.new) == (ONE, TENSOR, False)
    assert found.layout.tensor == 1
    assert found.lines[0].startswith("one device stays until you change it. tensor 2 is forecast")
    assert "tokens/s (+" in found.lines[0]
    assert found.lines[1] == (
        "To see the change: orchestrate plan --change-layout. To make it, which loads the model"
        " again: orchestrate up --change-layout"
    )
    assert settled().took == ONE
    changed = settled(change=True)
    assert (changed.took, changed.pending, changed.new) == (TENSOR, None, True)
    assert changed.lines[0].startswith("changes from one device to tensor 2 for chat")
    assert settled().took == TENSOR and not settled().new


def test_overlapping_intervals_keep_what_runs_even_when_told(settled: Settle) -> None:
    measured(GBE)
    engine(TENSOR, 0.080)
    engine(ONE, 0.040)
    assert settled().took == ONE
    engine(TENSOR, 0.036, day=2)
    found = settled(change=True)
    assert (found.took, found.pending, found.new) == (ONE, None, False)
    assert (
        "one device stays, since the intervals overlap. tensor 2 is ranked first"
        in (found.lines[0])
    )


def test_figures_of_another_image_change_nothing_that_runs(settled: Settle) -> None:
    measured(GBE)
    engine(TENSOR, 0.080)
    engine(ONE, 0.040)
    assert settled().took == ONE
    engine(TENSOR, 0.010, day=2)
    found = settled(image=OTHER, change=True)
    assert (found.took, found.pending) == (ONE, None)
    assert "since the figures are of another image" in found.lines[0]
    notes = "\n".join(found.lines)
    assert f"The probes of {GBE.time} measured another image (111111111111)" in notes
    assert "The engine, on 2026-11-02T00:00:00Z, measured another image" in notes
    # Where this image was measured too, the other one's figures do not count.
    measured(replace(GBE, image_id=OTHER))
    engine(ONE, 0.040, image=OTHER, day=3)
    now = settled(image=OTHER)
    assert (now.took, now.pending) == (ONE, None)
    assert "another image" not in "\n".join(now.lines)


def test_for_a_first_choice_figures_of_another_image_are_better_than_none(settled: Settle) -> None:
    measured(GBE)
    engine(TENSOR, 0.010)
    engine(ONE, 0.040)
    found = settled(image=OTHER)
    assert found.took == TENSOR
    assert "Measure again: orchestrate probe" in "\n".join(found.lines)


def test_a_profile_that_asks_for_something_else_is_a_change_like_any(settled: Settle) -> None:
    measured(GBE)
    engine(TENSOR, 0.080)
    engine(ONE, 0.040)
    assert settled().took == ONE
    engine(TENSOR, 0.015, day=2)
    found = settled(TEXT.replace("workload: chat", "workload: crowd"))
    assert (found.took, found.new) == (TENSOR, True)
    assert found.choice.reason["workload"]["name"] == "crowd"


def test_a_profile_that_asks_for_something_else_keeps_what_is_as_good(settled: Settle) -> None:
    measured(GBE)
    engine(TENSOR, 0.080)
    engine(ONE, 0.040)
    assert settled().took == ONE
    engine(TENSOR, 0.036, day=2)
    found = settled(TEXT.replace("workload: chat", "workload: crowd"))
    assert (found.took, found.new) == (ONE, True)
    assert found.choice.why.startswith("kept, for crowd (")
    engine(TENSOR, 0.010, day=3)
    later = settled(TEXT.replace("workload: chat", "workload: crowd"))
    assert (later.took, later.pending) == (ONE, TENSOR)


def test_targets_that_none_meets_are_said_with_the_miss(settled: Settle) -> None:
    measured(GBE)
    engine(TENSOR, 0.080)
    engine(ONE, 0.040)
    text = TEXT.replace("targets: {}", "targets: {tpot_ms: 20}")
    found = settled(text)
    assert found.took == ONE
    assert found.lines[1] == (
        "No layout meets the targets. one device misses: each further token 40 (36.4 to 44) ms,"
        " 2 times the target of 20 ms"
    )


def test_what_was_chosen_is_served_until_it_is_impossible(settled: Settle, tmp_path: Path) -> None:
    measured(GBE)
    settled()
    profile = load(tmp_path / "profiles/small.yml")
    assert serving.resolve(profile).tensor == 1
    serving.must_be_chosen(profile)
    text = (paths.cluster("small") / "layout.json").read_text()
    (paths.cluster("small") / "layout.json").write_text(text.replace('l": 1', 'l": 5'))
    assert serving.resolve(profile).tensor == 2  # as without a choice
    with pytest.raises(UserError, match=r"no layout is chosen .* Nothing was changed"):
        serving.must_be_chosen(profile)
    assert settled().took == ONE
    chosen.forget("small")
    with pytest.raises(UserError, match="no layout is chosen"):
        serving.must_be_chosen(profile)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": "tiny"}'])
def test_a_file_that_holds_no_choice_is_named(settled: Settle, text: str, tmp_path: Path) -> None:
    settled()
    file = paths.cluster("small") / "layout.json"
    file.write_text(text)
    with pytest.raises(BadInput) as raised:
        serving.resolve(load(tmp_path / "profiles/small.yml"))
    assert raised.value.message == f"{file}: does not hold the layout that was chosen"


def test_nothing_is_brought_up_in_a_layout_that_nobody_chose(
    settled: Settle, tmp_path: Path
) -> None:
    settled()
    chosen.forget("small")
    profile = load(tmp_path / "profiles/small.yml")
    cluster: Any = SimpleNamespace(
        profile=profile, driver=SimpleNamespace(check_rights=lambda: None)
    )
    with pytest.raises(UserError) as raised:
        bring(cluster, Board(quiet=True), Step.SERVING, everything(profile))
    assert raised.value.message == (
        "small: serving.layout is auto, and no layout is chosen that this profile allows. Nothing"
        " was changed."
    )
    assert raised.value.hint == "Run: orchestrate up"


# The command line


@pytest.mark.parametrize(
    "words", [("--node", "left"), ("--until", "ray"), ("--only", "serving")], ids=" ".join
)
def test_a_layout_is_changed_on_all_nodes(written: Write, words: tuple[str, ...]) -> None:
    written(TEXT)
    result = CliRunner().invoke(up, ["--change-layout", *words])
    assert result.exit_code == 2
    assert "--change-layout needs all nodes, and all steps" in result.output


def test_a_forecast_changes_nothing(written: Write) -> None:
    written(TEXT)
    result = CliRunner().invoke(plan, ["--serving", "--change-layout"])
    assert result.exit_code == 1
    assert "--serving and --change-layout cannot be combined" in result.output


def test_plan_serving_says_what_auto_takes(settled: Settle) -> None:
    measured(GBE)
    engine(TENSOR, 0.080)
    engine(ONE, 0.040)
    shown = CliRunner().invoke(plan, ["--serving"])
    assert shown.exit_code == 0, shown.output
    assert "layout: auto takes one device for chat (512+128 tokens, 1 at once): " in shown.stdout
    assert "one device (the profile)" in shown.stdout
    assert not (paths.cluster("small") / "layout.json").exists()
    settled()
    engine(TENSOR, 0.015, day=2)
    shown = CliRunner().invoke(plan, ["--serving"])
    assert "layout: one device stays until you change it." in shown.stdout
    document = json.loads(CliRunner().invoke(plan, ["--serving", "--json"]).stdout)
    auto = document["auto"]
    assert auto["sizes"] == {"tensor_parallel": 1, "pipeline_parallel": 1, "data_parallel": 1}
    assert auto["pending"] == {"tensor_parallel": 2, "pipeline_parallel": 1, "data_parallel": 1}
    assert next(each["layout"] for each in auto["forecasts"]) == "tensor 2"
    assert document["load"]["concurrency"] == 1


def test_a_question_of_other_hardware_is_not_the_clusters(settled: Settle) -> None:
    measured(GBE)
    words = ["--serving", "--json", "--nodes", "4", "--link", "10Gbit"]
    assert "auto" not in json.loads(CliRunner().invoke(plan, words).stdout)


def test_to_change_a_layout_of_sizes_is_refused(written: Write) -> None:
    written(TEXT.replace("  layout: auto\n", ""))
    profile = load(paths.checkout() / "profiles/small.yml")
    assert settled_profile(profile) is None
    with pytest.raises(BadInput, match=r"small.yml:\d+: serving has no 'layout: auto'"):
        settled_profile(profile, change=True)
