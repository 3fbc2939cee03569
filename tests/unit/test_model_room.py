"""Whether a model has room in memory, told when a profile is checked and when a plan is made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.hub import REPOSITORY, REVISION
from support.profiles import PROFILE, make_checkout

from orchestrator.cli.profile import _notes
from orchestrator.core import paths
from orchestrator.core.files import write_json
from orchestrator.models import capacity, catalog, hub, hub_listing
from orchestrator.models.profiles import load
from orchestrator.profile import Profile

GB = 10**9
TEXT = PROFILE.replace(
    "serving:\n  model: tiny",
    f"models:\n  big: {{repository: {REPOSITORY}, revision: {REVISION}}}\n"
    "hardware:\n  box: {memory: 16GiB}\nserving:\n  model: big",
).replace("accelerators: 1", "hardware: box\n    accelerators: 1")


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    monkeypatch.setenv("ORCHESTRATE_CHECKOUT", str(tmp_path))
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "state"))
    text = TEXT.replace("{repeats: 3}", '{repeats: 3, prompts: [{question: "2?", contains: "2"}]}')
    return load(make_checkout(tmp_path, text))


#: Bytes of model and image -> what is said of two nodes with 16 GiB.
SAID = {
    "fits": ((8 * GB, 4 * GB), []),
    "more than half": (
        (9 * GB, 4 * GB),
        ["left,right: big takes 8.4 GiB of memory, but files may take 8 GiB at most, half of"
         " the node's memory"],
    ),
    "with all the rest": (
        (8 * GB, 8 * GB),
        ["left,right: big takes 7.5 GiB of memory, the image 7.5 GiB, Ray's object store 1.5"
         " GiB: 16.4 GiB of 16 GiB"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("sizes", "said"), SAID.values(), ids=SAID)
def test_what_is_said(profile: Profile, sizes: tuple[int, int], said: list[str]) -> None:
    memory = capacity.of_nodes(profile, {})
    assert list(capacity.misfits(profile, *sizes, memory)) == said


def test_what_a_node_says_of_itself_counts_first(profile: Profile) -> None:
    memory = capacity.of_nodes(profile, {"right": 64 * GB})
    assert memory == {"left": 16 << 30, "right": 64 * GB}
    (line,) = capacity.misfits(profile, 9 * GB, 0, memory)
    assert line.startswith("left: ")


def test_on_a_disk_it_takes_no_memory(tmp_path: Path, profile: Profile) -> None:
    file = tmp_path / "profiles/small.yml"
    file.write_text(file.read_text().replace("model: big", "model: big\n  model_cache: disk"))
    other = load(file)
    assert list(capacity.misfits(other, 90 * GB, 0, capacity.of_nodes(other, {}))) == []


def test_a_check_knows_the_sizes_of_what_is_here(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not any("memory" in note for note in _notes(profile))
    home = hub.directory(REPOSITORY, REVISION)
    home.mkdir(parents=True)
    (home / "config.json").write_text("{}")
    with (home / "model.safetensors").open("wb") as weights:
        weights.truncate(8 * GB)  # no room is taken for it
    entries = {path.name: {"size": path.stat().st_size, "sha256": "0" * 64}
               for path in home.iterdir()}  # fmt: skip
    write_json(home / hub_listing.MANIFEST, {"files": entries})
    assert capacity.of_model(catalog.served(profile)) == 8 * GB + 2
    assert not any("memory" in note for note in _notes(profile))

    built = tmp_path / "built"
    built.mkdir()
    layer = {"size": 8 * GB, "verity": {"size": 1}}
    (built / "manifest.json").write_text(json.dumps({"layers": [layer]}))
    link = paths.state() / "images" / profile.image
    link.parent.mkdir()
    link.symlink_to(built)
    (note,) = (note for note in _notes(profile) if "memory" in note)
    assert "the image 7.5 GiB" in note and "serving.model_cache: disk" in note
