"""`orchestrate model`, run for real against a hub on loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hub_server import NEWEST, REPOSITORY, REVISION, Hub, serving
from profile_cases import PROFILE, make_checkout

from orchestrator import hub as hubs
from orchestrator.hub import RemoteFile, chosen
from orchestrator.served_model import handed_out, publish, published

PROJECT = Path(__file__).resolve().parents[2]
WEIGHTS = "model.safetensors"
CONFIG = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_hidden_layers": 4,
    "intermediate_size": 256,
}


@dataclass
class Box:
    """A checkout and a state directory of one test, and a hub."""

    root: Path
    hub: Hub

    @property
    def env(self) -> dict[str, str]:
        own = {
            "ORCHESTRATE_CHECKOUT": str(self.root),
            "ORCHESTRATE_STATE": str(self.root / "state"),
            "HOME": str(self.root),
            "HF_HOME": str(self.root / "hf"),
            "HF_ENDPOINT": self.hub.url,
            "HF_TOKEN": "hf_secret",
            "NO_PROXY": "127.0.0.1",
        }
        return os.environ | own

    @property
    def home(self) -> Path:
        return self.root / "state/hub" / REPOSITORY / REVISION

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*words), cwd=PROJECT, env=self.env, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip

    def argv(self, *words: str | Path) -> list[str]:
        return [sys.executable, "-m", "orchestrator", "model", *map(str, words)]

    def pull(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return self.run("pull", "--profile", self.root / "profiles/small.yml", *words)

    def json(self, *words: str | Path) -> Any:
        done = self.run(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    text = PROFILE.replace(
        "serving:\n  model: tiny",
        f"models:\n  big: {{repository: {REPOSITORY}, revision: {REVISION}}}\n"
        f"  open: {{repository: {REPOSITORY}}}\nserving:\n  model: big",
    ).replace("{repeats: 3}", '{repeats: 3, prompts: [{question: "2 + 2?", contains: "4"}]}')
    make_checkout(tmp_path, text)
    files = {
        "config.json": json.dumps(CONFIG).encode(),
        "tokenizer.json": b"{}",
        WEIGHTS: os.urandom(3_000_000),
        "pytorch_model.bin": b"the same weights again",
        "onnx/model.onnx": b"and again",
        "README.md": b"# big",
        "custom.py": b"import os",
    }
    with serving(Hub(files, large=(WEIGHTS, "pytorch_model.bin"))) as hub:
        yield Box(tmp_path, hub)


def test_what_vllm_reads_is_brought_checked_and_written_down(box: Box) -> None:
    done = box.pull()
    assert done.returncode == 0, done.stderr
    assert "3 files" in done.stdout and "100 %" in done.stderr
    kept = hubs.manifest(box.home)
    assert set(kept) == {"config.json", "tokenizer.json", WEIGHTS}
    assert (box.home / WEIGHTS).read_bytes() == box.hub.files[WEIGHTS]
    assert not (box.home / hubs.SCRATCH).exists()
    asked = len(box.hub.gets)
    assert "nothing to do" in box.pull().stdout
    assert len(box.hub.gets) == asked
    assert "Bearer hf_secret" in box.hub.tokens
    assert "hf_secret" not in done.stdout + done.stderr


def test_a_cut_connection_goes_on_where_it_was_cut(box: Box) -> None:
    box.hub.cut[WEIGHTS] = 1_000_000
    done = box.pull()
    assert done.returncode == 0, done.stderr
    assert [asked for name, asked in box.hub.gets if name == WEIGHTS] == ["", "bytes=1000000-"]
    assert (box.home / WEIGHTS).read_bytes() == box.hub.files[WEIGHTS]


def test_wrong_content_is_refused_and_removed(box: Box) -> None:
    box.hub.wrong[WEIGHTS] = bytes(len(box.hub.files[WEIGHTS]))
    done = box.pull()
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert WEIGHTS in done.stderr
    assert hubs.manifest(box.home) == {} and not (box.home / WEIGHTS).exists()
    box.hub.wrong.clear()
    assert box.pull().returncode == 0


def test_a_small_file_is_checked_by_gits_name_of_it(box: Box) -> None:
    box.hub.wrong["tokenizer.json"] = b"[]"
    done = box.pull()
    assert done.returncode == 1 and "tokenizer.json: wrong content" in done.stderr


def test_an_overloaded_hub_is_asked_again(box: Box) -> None:
    box.hub.first[WEIGHTS] = [503, 429]
    done = box.pull()
    assert done.returncode == 0, done.stderr


REFUSED = {
    "gated": ((403, "GatedRepo"), "terms accepted first"),
    "private or unknown": ((404, "RepoNotFound"), "no such repository, or does not show it"),
    "not let in": ((401, "RepoNotFound"), "no such repository, or does not show it"),
    "another revision": ((404, "RevisionNotFound"), "has no such commit"),
    "broken": ((500, ""), "does not answer"),
}


@pytest.mark.parametrize(("answer", "said"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_is_one_clear_message(box: Box, answer: tuple[int, str], said: str) -> None:
    box.hub.refuse = answer
    done = box.pull()
    assert done.returncode == 1, done.stderr
    assert said in done.stderr and REPOSITORY in done.stderr
    assert "Traceback" not in done.stderr and "hf_secret" not in done.stderr


def test_no_network_names_the_way_without(box: Box) -> None:
    box.hub.url = "http://127.0.0.1:9"
    done = box.pull()
    assert done.returncode == 1 and "--from" in done.stderr and "Traceback" not in done.stderr


def test_a_directory_is_enough(box: Box, tmp_path: Path) -> None:
    stick = tmp_path / "stick"
    stick.mkdir()
    for name in ("config.json", WEIGHTS, "README.md"):
        (stick / name).write_bytes(box.hub.files[name])
    assert box.pull("--from", stick).returncode == 0
    assert set(hubs.manifest(box.home)) == {"config.json", WEIGHTS}
    assert box.hub.gets == []
    empty = tmp_path / "empty"
    empty.mkdir()
    (box.home / hubs.MANIFEST).unlink()
    assert "config.json" in box.pull("--from", empty).stderr


def test_a_model_without_a_revision_is_told_which_to_pin(box: Box) -> None:
    done = box.pull("open")
    assert done.returncode == 2
    assert "models.open" in done.stderr and f"revision: {NEWEST}" in done.stderr


def test_an_unknown_name_lists_the_known(box: Box) -> None:
    done = box.pull("bgi")
    assert done.returncode == 2 and "big, open" in done.stderr


def test_a_repository_without_a_model_is_said(box: Box) -> None:
    box.hub.files = {"big.gguf": b"1"}
    assert "GGUF" in box.pull().stderr


def test_a_small_disk_is_said_before_the_first_byte(
    box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the hub lists is larger than any disk."""
    whole = box.hub.listing
    huge = {**whole(REVISION), "siblings": [{"rfilename": "config.json", "size": 1 << 60}]}
    monkeypatch.setattr(box.hub, "listing", lambda revision: huge)
    done = box.pull()
    assert done.returncode == 1 and "not enough space" in done.stderr
    assert box.hub.gets == []


def test_ctrl_c_leaves_what_the_next_pull_goes_on_from(box: Box) -> None:
    box.hub.files[WEIGHTS] = os.urandom(60_000_000)
    process = subprocess.Popen(
        box.argv("pull", "--profile", box.root / "profiles/small.yml"), cwd=PROJECT, env=box.env,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if " %: " in line:
            break
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    have = (box.home / hubs.SCRATCH / f"{WEIGHTS}.part").stat().st_size
    (row,) = box.json("ls")
    assert row["state"] == "partial"
    assert box.pull().returncode == 0
    assert box.hub.gets[-1] == (WEIGHTS, f"bytes={have}-")
    assert (box.home / WEIGHTS).read_bytes() == box.hub.files[WEIGHTS]


def test_ls_and_rm(box: Box) -> None:
    assert box.json("ls") == []
    box.pull()
    (row,) = box.json("ls")
    assert (row["repository"], row["revision"], row["state"]) == (REPOSITORY, REVISION, "complete")
    assert row["profiles"] == ["small:big"] and row["serving"] == []
    assert REPOSITORY in box.run("ls").stdout
    assert box.run("rm", "nosuch").returncode == 2
    assert box.run("rm", "big").returncode == 0
    assert not (box.root / "state/hub/owner").exists()
    assert box.json("ls") == []


def test_what_a_cluster_serves_is_not_removed_unasked(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATE_STATE", str(box.root / "state"))
    box.pull()
    files = publish(box.home, "small", "big")
    assert published("small", "big") == files
    served = handed_out(box.home)["small"]
    # The same file, not a second one: a model may have tens of GB.
    assert (served / WEIGHTS).samefile(box.home / WEIGHTS)
    refused = box.run("rm", "big")
    assert refused.returncode == 1 and "small" in refused.stderr and "--force" in refused.stderr
    assert box.run("rm", "--force", "big").returncode == 0
    assert not served.exists()


def test_a_damaged_model_is_not_whole(box: Box) -> None:
    box.pull()
    with (box.home / WEIGHTS).open("ab") as file:
        file.write(b"more")
    (row,) = box.json("ls")
    assert row["state"] == "by hand"
    assert box.pull().returncode == 0
    assert (box.home / WEIGHTS).read_bytes() == box.hub.files[WEIGHTS]


def test_other_formats_are_left_out() -> None:
    names = ["config.json", "a.safetensors", "b.bin", "x.gguf", "onnx/a.json", "m.py", "vocab.txt"]
    files = [RemoteFile(name, 1, None, None) for name in names]
    assert {file.path for file in chosen(files)} == {"config.json", "a.safetensors", "vocab.txt"}
    without = [file for file in files if file.path != "a.safetensors"]
    assert {file.path for file in chosen(without)} == {"config.json", "b.bin", "vocab.txt"}
