"""`orchestrate model`, run for real against a hub on loopback."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from support import PROJECT
from support.hub import LISTING, NEWEST, REPOSITORY, REVISION
from support.hub_box import WEIGHTS, Box, boxed

from orchestrator.models import hub as hubs
from orchestrator.models.hub_listing import MANIFEST
from orchestrator.models.publish import handed_out, publish, published


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    with boxed(tmp_path) as found:
        yield found


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


def test_all_models_that_are_served_are_brought(box: Box) -> None:
    path = box.root / "profiles/small.yml"
    node = yaml.safe_load(path.read_text())["compute_nodes"][-1]["name"]
    again = f"  again: {{repository: {REPOSITORY}, revision: {REVISION}}}\n  open:"
    also = f"  model: big\n  also: [{{model: again, nodes: {node}}}]\n"
    path.write_text(path.read_text().replace("  open:", again).replace("  model: big\n", also))
    told = box.json("pull", "--profile", path)
    assert [each["name"] for each in told] == ["big", "again"]
    assert {each["directory"] for each in told} == {str(box.home)}
    done = box.pull("--from", box.root)
    assert done.returncode == 2 and "are for one model: name it" in done.stderr
    assert box.json("pull", "again", "--profile", path)["name"] == "again"


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
    box.hub.first = {WEIGHTS: [503, 429], LISTING: [429]}
    done = box.pull()
    assert done.returncode == 0, done.stderr


REFUSED = {
    "gated": ((403, "GatedRepo"), "terms are accepted first"),
    "private or unknown": ((404, "RepoNotFound"), "no such repository, or it is private"),
    "not let in": ((401, "RepoNotFound"), "no such repository, or it is private"),
    "another revision": ((404, "RevisionNotFound"), "has no such commit"),
    "a token that is none": (
        (401, "Invalid credentials in Authorization header"),
        "rejected the token (401)",
    ),
    "broken": ((500, ""), "HTTP 500 Internal Server Error"),
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
    (box.home / MANIFEST).unlink()
    assert "config.json" in box.pull("--from", empty).stderr


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
    sizes = {"config.json": 2, WEIGHTS: 1 << 60}
    siblings = [{"rfilename": name, "size": size} for name, size in sizes.items()]
    huge = {**box.hub.listing(REVISION), "siblings": siblings}
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
    assert box.json("ls")[0]["state"] == "partial"
    assert box.pull().returncode == 0
    assert box.hub.gets[-1] == (WEIGHTS, f"bytes={have}-")
    assert (box.home / WEIGHTS).read_bytes() == box.hub.files[WEIGHTS]


def test_ls_and_rm(box: Box) -> None:
    missing, unpinned = box.json("ls")
    assert (missing["names"], missing["state"], missing["size"]) == (["big"], "missing", None)
    assert (unpinned["names"], unpinned["state"]) == (["open"], "not pinned")
    box.pull()
    row, _ = box.json("ls")
    assert (row["repository"], row["revision"], row["state"]) == (REPOSITORY, REVISION, "complete")
    assert row["profiles"] == ["small:big"] and row["serving"] == []
    first, second = box.run("ls").stdout.splitlines()
    assert first.split()[:3] == ["big", REPOSITORY, REVISION[:12]]
    assert first.endswith("complete    used by small") and "not pinned" in second
    (box.root / "profiles/small.yml").rename(box.root / "elsewhere.yml")
    assert {tuple(each["profiles"]) for each in box.json("ls")} == {()}
    active = {"ORCHESTRATE_PROFILE": str(box.root / "elsewhere.yml")}
    assert box.json("ls", env=active)[0]["profiles"] == ["small:big"]
    (box.root / "elsewhere.yml").rename(box.root / "profiles/small.yml")
    assert box.run("rm", "nosuch").returncode == 2
    assert box.run("rm", "big").returncode == 0
    assert not (box.root / "state/hub/owner").exists()
    assert box.json("ls")[0]["state"] == "missing"


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
    assert box.json("ls")[0]["state"] == "by hand"
    assert box.pull().returncode == 0
    assert (box.home / WEIGHTS).read_bytes() == box.hub.files[WEIGHTS]


def test_a_turned_bit_is_found_by_check_and_only_that_file_brought_anew(box: Box) -> None:
    box.pull()
    turned = bytearray(box.hub.files[WEIGHTS])
    turned[1000] ^= 1
    (box.home / WEIGHTS).write_bytes(turned)
    assert "nothing to do" in box.pull().stdout
    del box.hub.gets[:]
    done = box.pull("--check")
    assert "1 files" in done.stdout, done.stderr
    assert [name for name, _ in box.hub.gets] == [WEIGHTS]
    assert (box.home / WEIGHTS).read_bytes() == box.hub.files[WEIGHTS]
    assert box.json("ls")[0]["state"] == "complete"


def test_files_that_somebody_put_there_are_not_believed(box: Box) -> None:
    box.home.mkdir(parents=True)
    (box.home / WEIGHTS).write_bytes(bytes(len(box.hub.files[WEIGHTS])))
    (box.home / "tokenizer.json").write_bytes(box.hub.files["tokenizer.json"])
    assert box.pull().returncode == 0
    assert (box.home / WEIGHTS).read_bytes() == box.hub.files[WEIGHTS]
    assert "tokenizer.json" not in dict(box.hub.gets)


def test_the_token_is_for_the_hub_and_not_for_where_it_sends_us(box: Box) -> None:
    box.pull()
    assert box.hub.tokens == {"Bearer hf_secret"}
    assert box.hub.tokens_elsewhere == {""}


def test_a_file_that_the_hub_lists_and_does_not_give_is_named(box: Box) -> None:
    for status, said in ((403, "HF_TOKEN"), (404, "pin another revision")):
        box.hub.withheld = {WEIGHTS: status}
        done = box.pull()
        assert done.returncode == 1 and f"cannot download {WEIGHTS}" in done.stderr
        assert said in done.stderr and "hf_secret" not in done.stderr


def test_weights_that_the_index_names_have_to_be_there(box: Box) -> None:
    del box.hub.files[WEIGHTS]
    parts = {f"model-{n}-of-2.safetensors": os.urandom(1000) for n in (1, 2)}
    index = {"weight_map": dict(zip("ab", parts, strict=True))}
    box.hub.files |= {"model.safetensors.index.json": json.dumps(index).encode(), **parts}
    del box.hub.files["model-2-of-2.safetensors"]
    done = box.pull()
    assert done.returncode == 1 and "its index names model-2-of-2.safetensors" in done.stderr
    assert "model-1-of-2.safetensors" not in dict(box.hub.gets)  # said before it is brought
    box.hub.files |= parts
    assert box.pull().returncode == 0


def test_a_second_pull_of_the_same_is_refused(box: Box) -> None:
    box.home.mkdir(parents=True)
    handle = os.open(box.home, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        assert "is using" in box.pull().stderr
    finally:
        os.close(handle)
    assert box.pull().returncode == 0


def test_two_pulls_exclude_each_other(box: Box) -> None:
    with hubs._alone(box.home):
        assert "is using" in box.pull().stderr
    assert box.pull().returncode == 0


def test_another_commit_than_the_one_asked_for_is_refused(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = box.hub.listing
    moved = lambda revision: right(revision) | {"sha": NEWEST}  # noqa: E731
    monkeypatch.setattr(box.hub, "listing", moved)
    done = box.pull()
    assert done.returncode == 1 and f"returned commit {NEWEST}" in done.stderr
    assert not box.home.exists()
