"""`model inspect`: which layouts the accelerators' memory suffices for, and who says how much."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import TypeAdapter
from support.predict import MISTRAL, device, probes
from support.profiles import PROFILE, make_checkout

from orchestrator.cli.model import model
from orchestrator.core import paths
from orchestrator.performance.predict import inputs
from orchestrator.performance.results.probe import Probes

GIB = 1 << 30
#: Weights of MISTRAL on one rank, rounded: 22 billion of 4.16 bits, embedding and head of 16.
WEIGHTS = 12.1e9
CARD = """hardware:
  card:
    pci: [{name: Card, id: "8086:56a0", driver: i915, advice: "a", bars: {0: 16MiB, 2: 16GiB}}]
"""
CPU = """hardware:
  card:
    memory: 64GiB
    torch: {device: cpu, advice: "a"}
"""


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATE_CHECKOUT", str(tmp_path))
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "state"))


def told(
    tmp_path: Path, hardware: str = "", args: str = "max-model-len: 4096", cache: str = "disk"
) -> tuple[dict[tuple[int, int], dict[str, Any]], str]:
    """The layouts by tensor and pipeline, and what a person reads."""
    text = PROFILE.replace("dtype: half}", f"dtype: half, {args}}}\n  model_cache: {cache}")
    if hardware:
        text = text.replace("serving:\n", f"{hardware}serving:\n")
        text = text.replace("accelerators: 1", "hardware: card\n    accelerators: 1")
    profile = make_checkout(tmp_path, text)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(MISTRAL))
    words = ["inspect", str(file), "--profile", str(profile)]
    found = json.loads(CliRunner().invoke(model, [*words, "--json"]).stdout)
    layouts = {(each["tensor"], each["pipeline"]): each for each in found["layouts"]}
    return layouts, CliRunner().invoke(model, words).stdout


def measured(left: int, right: int) -> None:
    """What a probe of the profile's nodes saw of their memory."""
    folder = paths.measured("small") / inputs.PROBES
    folder.mkdir(parents=True)
    found = probes(
        devices=(
            device("left", device="xpu", memory_total_bytes=left),
            device("right", device="xpu", memory_total_bytes=right),
        )
    )
    (folder / "one.json").write_bytes(TypeAdapter(Probes).dump_json(found))


def test_of_cards_of_two_sizes_each_has_to_hold_a_rank(tmp_path: Path) -> None:
    measured(16 * GIB, 8 * GIB)
    layouts, text = told(tmp_path)
    assert "not known of" not in text
    big, small = layouts[1, 1]["memory"]
    assert (big["nodes"], small["nodes"]) == (["left"], ["right"])
    assert (big["suffices"], small["suffices"]) == (True, False)
    assert big["weight_bytes"] == pytest.approx(WEIGHTS, rel=0.02)
    assert big["cache_bytes_per_request"] == 2 * 56 * 8 * 128 * 2 * 4096
    assert not layouts[1, 1]["possible"]
    assert layouts[1, 1]["why_not"] == (
        "right: a rank's weights take 11.3 GiB, and vLLM 7.4 GiB of 8 GiB (by the probes of"
        " 2026-11-26T07:00:00Z)"
    )
    for layout in ((2, 1), (1, 2)):
        assert layouts[layout]["possible"], layouts[layout]
        assert layouts[layout]["memory"][0]["weight_bytes"] < 0.55 * big["weight_bytes"]


def test_weights_have_room_and_a_request_has_none(tmp_path: Path) -> None:
    measured(14 * GIB, 14 * GIB)
    layouts, _ = told(tmp_path, "", "max-model-len: 32768")
    assert layouts[1, 1]["why_not"].startswith("left,right: beside the weights 1.")
    assert "a request of 32,768 tokens takes 7 GiB" in layouts[1, 1]["why_not"]
    assert "serving.args.max-model-len" in layouts[1, 1]["why_not"]


def test_room_is_for_the_cache_as_it_is_kept(tmp_path: Path) -> None:
    measured(14 * GIB, 14 * GIB)
    layouts, text = told(tmp_path, "", "max-model-len: 4096, kv-cache-dtype: fp8")
    (card,) = layouts[1, 1]["memory"]
    assert card["cache_bytes_per_request"] == 2 * 56 * 8 * 128 * 4096 and card["requests"] >= 1
    assert f"tensor 1, pipeline 1: possible, with room for {card['requests']} requests" in text


def test_without_a_probe_the_profile_says_the_least(tmp_path: Path) -> None:
    layouts, text = told(tmp_path, CARD)
    (card,) = layouts[1, 1]["memory"]
    assert (card["bytes"], card["nodes"]) == (16 * GIB, ["left", "right"])
    assert card["said_by"] == "hardware.card.pci.bars, the least" and card["suffices"]
    assert "not known of" not in text


def test_a_processors_memory_is_the_nodes(tmp_path: Path) -> None:
    layouts, _ = told(tmp_path, CPU)
    (card,) = layouts[1, 1]["memory"]
    assert (card["bytes"], card["said_by"]) == (64 * GIB, "hardware.card.memory, the least")


def test_what_nobody_says_is_said(tmp_path: Path) -> None:
    layouts, text = told(tmp_path)
    assert layouts[1, 1]["possible"] and layouts[1, 1]["memory"] == []
    assert "not known of left,right; to measure it: orchestrate probe" in text


def test_files_that_a_nodes_memory_cannot_hold_stand_against_every_layout(tmp_path: Path) -> None:
    layouts, _ = told(tmp_path, CPU.replace("64GiB", "16GiB"), cache="memory")
    for each in layouts.values():
        assert "but files may take 8 GiB at most, half of the node's memory" in each["why_not"]
