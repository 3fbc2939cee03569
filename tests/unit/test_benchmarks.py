"""The benchmarks' own logic: what they add up, leave out and take from the project's files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import by_hand
import cli_start
import conventional_image
import floor
import measure
import netboot
import nix_image
import serving
import up

from orchestrator.core.errors import UserError
from orchestrator.core.templating import render
from orchestrator.node.firewall import IN_FORCE
from orchestrator.node.paths import VENV
from orchestrator.node.resources import File, Step
from orchestrator.node.state import NodeState
from orchestrator.provision.identity import BootFile

PROJECT = Path(__file__).resolve().parents[2]
TOKEN = "RAY_AUTH_TOKEN_PATH"
#: A process that starts one more, which takes this much memory (bytes), says so, and waits.
TAKEN = 64 << 20
CHILD = f"block = b'x' * {TAKEN}; print('ready', flush=True); input()"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}])"

words = st.lists(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1), min_size=1)


def state(argv: list[str], variables: dict[str, str]) -> NodeState:
    """A node's state with the unit 'vllm.service' and its environment file."""
    environment = "/etc/env"
    unit = render(
        "vllm.service",
        model="m",
        user="u",
        venv=VENV,
        environments=[environment],
        argv=argv,
        firewall=IN_FORCE,
        worker=None,
    )
    files = (
        File(Step.SERVING, "/etc/systemd/system/vllm.service", unit),
        File(Step.SERVING, environment, render("environment", variables=variables)),
    )
    return NodeState("node", users=(), directories=(), files=files, units=())


@given(words)
def test_words_of_a_unit_are_what_was_put_in(argv: list[str]) -> None:
    assert by_hand.words_of(state(argv, {}), "vllm.service") == argv


def test_variables_of_a_unit_reach_a_shell_and_tokens_do_not() -> None:
    hostile = 'a "$HOME" `id` \\ b'
    lines = by_hand.setting(state(["x"], {"NAME": hostile, TOKEN: "/t"}), "vllm.service")
    script = f"{lines}\nPATH=/usr/bin:/bin env -0"
    said = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True, env={}
    )
    found = dict(line.split("=", 1) for line in said.stdout.split("\0") if line)
    assert found["NAME"] == hostile
    assert TOKEN not in found
    assert f"export PATH={VENV}/bin:" in lines


def test_the_copy_by_hand_does_not_count() -> None:
    stages = [measure.Stage("boot", 2.0), measure.Stage(by_hand.COPY, 50.0)]
    assert up.counted(stages) == 2.0


def test_the_answer_comes_before_the_verification() -> None:
    serving = {"started": 20.0, "seconds": 40.0}
    document = {"seconds": 70.0, "steps": {"cluster": {"serving": serving}}}
    # 1 s of Python before the clock of `up` began.
    assert up.to_answer(document, wall=71.0) == pytest.approx(61.0)


def test_memory_is_that_of_all_processes_below() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        below = measure.descendants(os.getpid(), measure.parents())
        assert parent.pid in below
        assert measure.descendants(parent.pid, measure.parents()) < below
        assert sum(map(measure.pss, below)) > TAKEN
        parent.communicate(b"\n")
    assert measure.pss(parent.pid) == 0


def test_a_process_name_with_blanks_and_brackets_hides_no_parent() -> None:
    assert measure.parent_of("17 (a) b (c) S 4 17 17 0 -1") == 4


def test_medians_go_step_by_step() -> None:
    runs = [
        measure.Stage("s", seconds, int(seconds) << 20, {"a": seconds / 2})
        for seconds in (9.0, 1.0, 4.0)
    ]
    assert measure.median_stage(runs) == measure.Stage("s", 4.0, 4 << 20, {"a": 2.0})


def test_missing_tools_name_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="not installed: mksquashfs, mmdebstrap") as raised:
        measure.require_tools("mksquashfs", "mmdebstrap")
    assert raised.value.hint == "On Debian: apt-get install mmdebstrap squashfs-tools"


def test_a_report_holds_everything(tmp_path: Path) -> None:
    report = measure.Report("b", {"v": "1"}, {"stages": [measure.Stage("s", 1.5)]})
    report.goals = [measure.Goal("g", 1.5, 2), measure.Goal("h", 3, 2)]
    report.finish([], tmp_path / "b.json")
    document = json.loads((tmp_path / "b.json").read_text())
    assert document["figures"]["stages"][0]["seconds"] == 1.5
    assert [goal["met"] for goal in document["goals"]] == [True, False]
    assert set(document["machine"]) == {"cpu", "cores", "memory", "kernel", "load"}


def test_a_step_lasts_until_the_next() -> None:
    said = [
        "x-base.squashfs>    0.0 s  unpacking 171 packages",
        "x-base.squashfs> something else",
        "x-python.squashfs>    0.2 s  opening 149 wheels",
        "x-base.squashfs>    3.1 s  merging",
        "x-base.squashfs>   10.4 s  done",
    ]
    base = "x-base.squashfs"
    assert nix_image.steps(said) == {
        f"{base}: unpacking 171 packages": 3.1,
        f"{base}: merging": 7.3,
    }


def test_imports_are_read_in_milliseconds() -> None:
    text = (
        "import time: self [us] | cumulative | imported package\nimport time:  1500 |  2500 |  a.b"
    )
    assert cli_start.imports(text) == [cli_start.Import("a.b", 1.5, 2.5)]


def test_both_sides_compress_and_leave_out_the_same() -> None:
    compression = conventional_image.built_with("common.py", "COMPRESSION")
    assert compression[0] == "-comp"
    build = (PROJECT / "images/lib/build/common.py").read_text()
    assert ", ".join(f'"{word}"' for word in compression) in build
    assert "path-exclude=/usr/share/man/*" in conventional_image.dpkg_options()
    with pytest.raises(LookupError, match="NOTHING"):
        conventional_image.built_with("common.py", "NOTHING")


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg")
def test_an_empty_package_stands_for_what_is_left_out(tmp_path: Path) -> None:
    paragraph = conventional_image.described(conventional_image.empty_package(tmp_path, "left-out"))
    assert [path.name for path in tmp_path.iterdir()] == ["left-out.deb"]
    fields = dict(line.split(": ", 1) for line in paragraph.splitlines())
    assert (fields["Package"], fields["Filename"]) == ("left-out", "./left-out.deb")
    assert int(fields["Size"]) == (tmp_path / "left-out.deb").stat().st_size


def test_the_copy_of_the_checkout_is_one_for_git(tmp_path: Path) -> None:
    tree = nix_image.copy_of_checkout(tmp_path / "copy")
    argv = ["git", "-C", str(tree), "status", "--porcelain"]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == ""
    assert (tree / "flake.nix").read_bytes() == (PROJECT / "flake.nix").read_bytes()


def test_the_floors_archive_is_what_cpio_reads(tmp_path: Path) -> None:
    tree = {"init": BootFile("#!/bin/sh\n", 0o755), "files/etc/hostname": BootFile("n\n")}
    argv = ["cpio", "--extract", "--quiet", "--make-directories"]
    subprocess.run(argv, input=floor.archive(tree), cwd=tmp_path, check=True)
    assert (tmp_path / "files/etc/hostname").read_text() == "n\n"
    assert (tmp_path / "init").stat().st_mode & 0o777 == 0o755


def test_memory_in_use_is_what_cannot_be_had() -> None:
    assert netboot.in_use("MemTotal: 100 kB\nMemFree: 1 kB\nMemAvailable: 40 kB\n") == 60 << 10


def test_calculated_transfers() -> None:
    """1000 MB take 8.5 s of 1 GbE; peers are of no use to one node, three need two rounds."""
    one = serving.alone(1, 10**9, 1)
    assert one == pytest.approx(8.5, abs=0.01)
    assert serving.alone(16, 10**9, 10) == pytest.approx(1.6 * one)
    assert serving.peers(1, 10**9, 1) == pytest.approx(one)
    assert serving.peers(3, 10**9, 1) == pytest.approx(2 * one)
    assert serving.peers(4, 10**9, 1) == pytest.approx(3 * one)
