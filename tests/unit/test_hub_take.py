"""`orchestrate model pull --from`: the layouts that a directory can have, and what is checked."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.hub import NEWEST, REPOSITORY, REVISION, blob

from orchestrator.core.errors import UserError
from orchestrator.core.files import write_json
from orchestrator.models import hub, hub_listing

WEIGHTS = "model.safetensors"
FILES = {"config.json": b"{}", WEIGHTS: os.urandom(100_000)}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    return hub.directory(REPOSITORY, REVISION)


def name_of(name: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if name == WEIGHTS else blob(content)


def by_hand(root: Path, commit: str = REVISION) -> Path:
    root.mkdir()
    for name, content in FILES.items():
        (root / name).write_bytes(content)
    return root / WEIGHTS


def own(root: Path, commit: str = REVISION) -> Path:
    """As `model pull` leaves it; ``hub`` of the state directory was copied."""
    inside = root / REPOSITORY / REVISION
    inside.parent.mkdir(parents=True)
    weights = by_hand(inside)
    entries = {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in FILES.items()
    }
    write_json(inside / hub_listing.MANIFEST, {"revision": commit, "files": entries})
    return weights


def local_dir(root: Path, commit: str = REVISION) -> Path:
    """As `hf download --local-dir` leaves it."""
    weights = by_hand(root)
    notes = root / ".cache/huggingface/download"
    notes.mkdir(parents=True)
    for name, content in FILES.items():
        (notes / f"{name}.metadata").write_text(f"{commit}\n{name_of(name, content)}\n1.5\n")
    return weights


def cache(root: Path, commit: str = REVISION) -> Path:
    """The hub's own cache, as HF_HOME names it."""
    repository = root / "hub" / "models--owner--big"
    snapshot = repository / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for name, content in FILES.items():
        kept = repository / "blobs" / name_of(name, content)
        kept.write_bytes(content)
        (snapshot / name).symlink_to(Path("../../blobs") / kept.name)
    return snapshot / WEIGHTS


Layout = Callable[..., Path]
CHECKED = [own, local_dir, cache]


@pytest.mark.parametrize("layout", [by_hand, *CHECKED])
def test_a_layout_is_found(layout: Layout, tmp_path: Path, home: Path) -> None:
    layout(tmp_path / "stick")
    assert hub.take(REPOSITORY, REVISION, tmp_path / "stick").files == 2
    assert {name: (home / name).read_bytes() for name in FILES} == FILES
    assert not any(path.is_symlink() for path in home.iterdir())
    assert set(hub.manifest(home)) == set(FILES)
    assert hub.take(REPOSITORY, REVISION, tmp_path / "stick").files == 0


@pytest.mark.parametrize("layout", CHECKED)
def test_a_damaged_copy_is_refused(layout: Layout, tmp_path: Path, home: Path) -> None:
    weights = layout(tmp_path / "stick")
    weights.write_bytes(bytes(len(FILES[WEIGHTS])))
    with pytest.raises(UserError, match=f"{WEIGHTS}: wrong content"):
        hub.take(REPOSITORY, REVISION, tmp_path / "stick")
    assert hub.manifest(home) == {}


@pytest.mark.parametrize("layout", [own, local_dir])
def test_another_commit_is_refused(layout: Layout, tmp_path: Path, home: Path) -> None:
    layout(tmp_path / "stick", NEWEST)
    with pytest.raises(UserError, match=f"holds commit {NEWEST}"):
        hub.take(REPOSITORY, REVISION, tmp_path / "stick")
    assert not home.exists()


def test_what_is_not_whole_is_refused(tmp_path: Path, home: Path) -> None:
    by_hand(tmp_path / "stick")
    index = {"weight_map": {"a": WEIGHTS, "b": "other.safetensors"}}
    (tmp_path / "stick/model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"its index names other\.safetensors"):
        hub.take(REPOSITORY, REVISION, tmp_path / "stick")
    (tmp_path / "stick" / WEIGHTS).unlink()
    with pytest.raises(UserError, match="holds no weights"):
        hub.take(REPOSITORY, REVISION, tmp_path / "stick")


def test_what_came_before_takes_no_more_room(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_hand(tmp_path / "stick")
    free = hub.SLACK + 40_000
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(UserError, match="not enough space"):
        hub.take(REPOSITORY, REVISION, tmp_path / "stick")
    parts = home / hub.SCRATCH
    parts.mkdir(parents=True)
    (parts / f"{WEIGHTS}.part").write_bytes(FILES[WEIGHTS][:70_000])
    assert hub.take(REPOSITORY, REVISION, tmp_path / "stick").files == 2
