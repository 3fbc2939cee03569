"""Models of the hub: named by a profile, brought by hand, handed out as the others are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.profiles import PROFILE, make_checkout

from orchestrator.core import paths
from orchestrator.core.errors import UserError
from orchestrator.core.files import write_json
from orchestrator.models import catalog, hub, hub_listing
from orchestrator.models.catalog import Answer, Model, missing_files
from orchestrator.models.profiles import load
from orchestrator.models.publish import bring, publish, published

REVISION = "0123456789abcdef0123456789abcdef01234567"
TEXT = PROFILE.replace(
    "serving:\n  model: tiny",
    f"models:\n  big: {{repository: owner/big, revision: {REVISION}}}\nserving:\n  model: big",
).replace("{repeats: 3}", '{repeats: 3, prompts: [{question: "2 + 2?", contains: "4"}]}')

PULL = "orchestrate model pull big --profile small"


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    monkeypatch.setenv("ORCHESTRATE_CHECKOUT", str(tmp_path))
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "state"))
    return catalog.served(load(make_checkout(tmp_path, TEXT)))


def test_it_is_known_without_its_files(model: Model) -> None:
    assert (model.name, model.config) == ("big", {})
    assert model.description == f"owner/big at {REVISION}"
    assert model.directory == paths.hub() / "owner/big" / REVISION
    assert model.answers == [Answer("2 + 2?", "4", whole=False)]


def test_missing_files_are_named_with_the_command_that_brings_them(model: Model) -> None:
    with pytest.raises(UserError) as raised:
        bring(model, PULL, lambda line: None)
    assert raised.value.message == (
        f"the model 'big' (owner/big at 0123456789ab) is not on this machine:"
        f" {model.directory} has no config.json"
    )
    assert raised.value.hint == f"Run: {PULL}"


def test_weights_have_to_be_whole(model: Model) -> None:
    model.directory.mkdir(parents=True)
    (model.directory / "config.json").write_text("{}")
    assert missing_files(model) == ["*.safetensors"]
    weights = {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-3.safetensors"}
    index = json.dumps({"weight_map": weights})
    (model.directory / "model.safetensors.index.json").write_text(index)
    (model.directory / "model-1.safetensors").write_bytes(b"1")
    assert missing_files(model) == ["model-2.safetensors", "model-3.safetensors"]
    with pytest.raises(UserError, match=r"has no model-2\.safetensors and 1 more"):
        bring(model, PULL, lambda line: None)
    for name in missing_files(model):
        (model.directory / name).write_bytes(b"2")
    assert bring(model, PULL, lambda line: None) == model.directory


def test_what_a_download_keeps_for_itself_is_not_handed_out(model: Model) -> None:
    for name in ("config.json", "model.safetensors", ".gitattributes", ".cache/huggingface/x.lock"):
        file = model.directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    files = publish(bring(model, PULL, lambda line: None), "cluster", model.name)
    assert [file.path for file in files] == ["config.json", "model.safetensors"]
    assert published("cluster", model.name) == files


def test_a_profiles_prompts_are_for_models_without_known_answers(
    model: Model, tmp_path: Path
) -> None:
    file = tmp_path / "profiles/small.yml"
    file.write_text(TEXT.replace("model: big", "model: tiny"))
    profile = load(file)
    assert catalog.served(profile).answers == model.answers
    (tmp_path / "models/tiny/answers.json").write_text('[{"question": "q", "answer": "a"}]')
    assert catalog.served(profile).answers == [Answer("q", "a")]


# What is handed out of a directory, and what is left of a removal that was cut off


def test_what_is_handed_out_follows_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "state"))
    source, out = tmp_path / "source", paths.served("c") / "models/big"
    source.mkdir()
    for name, text in {"config.json": "{}", "weights": "one", "gone": "x", "private": "y"}.items():
        (source / name).write_text(text)
        (source / name).chmod(0o644)
    (source / "private").chmod(0o600)
    first = {file.path: file for file in publish(source, "c", "big")}
    assert first.keys() == {"config.json", "weights", "gone", "private"}
    # nginx is nobody in particular: it may read all of it, also what is its owner's alone.
    assert (out / "private").stat().st_mode & 0o777 == 0o644
    assert (source / "private").stat().st_mode & 0o777 == 0o600
    assert (out / "weights").samefile(source / "weights")
    (source / "gone").unlink()
    (source / "new").write_text("two")
    (source / "new").replace(source / "weights")  # another file of the same size
    second = {file.path: file for file in publish(source, "c", "big")}
    assert (out / "weights").read_text() == "two"
    assert second["weights"].sha256 != first["weights"].sha256
    assert second.keys() == {"config.json", "weights", "private"}
    assert not (out / "gone").exists()
    assert {file.path for file in published("c", "big")} == second.keys()


def test_a_removal_that_is_cut_off_leaves_no_whole_model(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.directory.mkdir(parents=True)
    (model.directory / "config.json").write_text("{}")
    entry = {"size": 2, "sha256": "0" * 64}
    write_json(model.directory / hub_listing.MANIFEST, {"files": {"config.json": entry}})
    (held,) = hub.held()
    assert held.state == "complete"

    def cut_off(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", cut_off)
    with pytest.raises(KeyboardInterrupt):
        hub.remove(held)
    (held,) = hub.held()
    assert held.state == "by hand"
