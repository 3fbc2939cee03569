"""The agent and a model: fetched, checked, kept on a disk from boot to boot, room made for it."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.agent import MODEL, ask, serving, serving_model, state, statuses

from orchestrator.node import agent, agent_leaving, agent_system
from orchestrator.node.resources import Directory, File, Step


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with serving_model(tmp_path / "served") as url:
        yield url


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


class Cutting(http.server.BaseHTTPRequestHandler):
    """Has MODEL, and cuts each connection after ``most`` bytes of it."""

    most = len(MODEL) // 3 + 1

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-")
        rest = MODEL[int(asked) :]
        self.send_response(206 if int(asked) else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: self.most])

    def log_message(self, *args: Any) -> None: ...


def test_a_download_goes_on_where_it_was_cut(root: Path) -> None:
    digest = hashlib.sha256(MODEL).hexdigest()
    with serving(Cutting) as url:
        report = ask("apply", root, state(File(Step.BASE, "/m", url=f"{url}/m", sha256=digest)))
    assert statuses(report) == {"file:/m": "changed"}
    assert (root / "m").read_bytes() == MODEL


def model_state(server: str, name: str = "new") -> dict[str, Any]:
    path = f"/models/{name}"
    digest = hashlib.sha256(MODEL).hexdigest()
    return state(
        Directory(Step.SERVING, path, holds=(("model", len(MODEL)),), shelf="/models"),
        File(Step.SERVING, f"{path}/model", url=f"{server}/model", sha256=digest),
    )


@pytest.fixture
def shelf(root: Path) -> Iterator[Path]:
    """A disk with room for one model, and a bit."""
    path = root / "models"
    path.mkdir()
    size = f"mode=755,size={len(MODEL) + (1 << 20)}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "shelf", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


def test_old_models_go_where_there_is_no_room_and_only_then(shelf: Path, server: str) -> None:
    root = shelf.parent
    for age, (name, size) in {2: ("small", 1 << 18), 3: ("old", len(MODEL) - (1 << 19))}.items():
        (shelf / name).mkdir()
        (shelf / name / "model").write_bytes(bytes(size))
        os.utime(shelf / name, (0, 1_000_000 - age))
    report = ask("look", root, model_state(server))["directory:/models/new"]
    assert report["changes"] == ["create", "room"]
    assert "GiB needed" in report["found"]["room"]
    assert set(statuses(ask("apply", root, model_state(server))).values()) == {"changed"}
    assert sorted(path.name for path in shelf.iterdir()) == ["new", "small"]
    # What is not the model's goes; what is on the shelf beside it stays.
    (shelf / "new/model-of-before").write_text("x")
    report = ask("look", root, model_state(server))["directory:/models/new"]
    assert report["found"] == {"stray": "model-of-before"}
    assert set(statuses(ask("apply", root, model_state(server))).values()) == {
        "changed",
        "unchanged",
    }
    assert sorted(path.name for path in shelf.rglob("*") if path.is_file()) == ["model", "model"]


def test_a_model_that_does_not_fit_is_told_before_the_first_byte(shelf: Path) -> None:
    held = (("a", len(MODEL)), ("b", 2 << 20))
    wanted = state(
        Directory(Step.SERVING, "/models/new", holds=held, shelf="/models"),
        File(Step.SERVING, "/models/new/a", url="http://127.0.0.1:9/a", sha256="0" * 64),
    )
    report = ask("apply", shelf.parent, wanted)
    assert "no space: 0.0 GiB needed" in report["directory:/models/new"]["error"]
    assert report["file:/models/new/a"]["error"] == "needs directory:/models/new"


def test_memory_that_is_not_there_is_no_room(root: Path) -> None:
    held = (("a", 1 << 50),)
    wanted = state(
        Directory(Step.SERVING, "/models/new", holds=held, shelf="/models", in_memory=True)
    )
    error = ask("apply", root, wanted)["directory:/models/new"]["error"]
    assert error.startswith("no space: 1048576.0 GiB needed") and error.endswith("free in memory")


def test_what_an_earlier_boot_left_is_read_before_it_is_used_and_then_no_more(
    root: Path, server: str
) -> None:
    wanted = model_state(server)
    ask("apply", root, wanted)
    (root / agent_leaving.MEMORY).unlink()  # the next boot
    file = root / "models/new/model"
    damaged = b"!" + MODEL[1:]
    file.write_bytes(damaged)
    assert ask("look", root, wanted)["file:/models/new/model"]["changes"] == ["content"]
    assert statuses(ask("apply", root, wanted))["file:/models/new/model"] == "changed"
    assert file.read_bytes() == MODEL

    (root / agent_leaving.MEMORY).unlink()
    assert statuses(ask("apply", root, wanted))["file:/models/new/model"] == "unchanged"
    known = json.loads((root / agent_leaving.MEMORY).read_text())
    assert known["file:/models/new/model"]["stamp"] == agent.stamp(file.lstat())


def test_room_in_memory_is_what_is_free_there_however_large_the_disk(root: Path) -> None:
    assert (
        0
        < agent_system.available_memory()
        < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    )
    wanted = state(
        Directory(Step.SERVING, "/models/new", holds=(("a", 1 << 44),), shelf="/models",
                  in_memory=True)
    )  # fmt: skip
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755,size=100T", "tmpfs", root], check=True)
    try:
        error = ask("apply", root, wanted)["directory:/models/new"]["error"]
    finally:
        subprocess.run(["umount", root], check=True)
    assert error.startswith("no space: 16384.0 GiB needed")
