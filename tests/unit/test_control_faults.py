"""What can go wrong in a sync's own script: cuts, kills, two at once. tests/host has the rest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import PROJECT
from support.sync import TREES, found, packed, sh

from orchestrator.cli.control_host import BUSY, END, LOCK_TIMEOUT, LOOK, TAKE

#: Programs that a sync runs, each of which can be the last.
TOOLS = ("mkdir", "flock", "mv", "rm", "tar")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A control host's home with the old tree and an environment in it."""
    home = tmp_path / "home"
    home.mkdir()
    assert sh(home, TAKE, "old", "1", stdin=packed(tmp_path, "old")) == (0, "")
    (home / "co/.venv").mkdir()
    (home / "co/.venv/kept").touch()
    return home


def test_a_tree_that_is_cut_off_anywhere_is_not_taken(tmp_path: Path, home: Path) -> None:
    """Also between two files, where tar sees nothing wrong."""
    whole = packed(tmp_path, "new")
    end = whole.index(END.encode())
    for size in [*range(0, end + 1, 512), 700]:
        code, _ = sh(home, TAKE, "new", "1", stdin=whole[:size])
        assert code != 0 and found(home) == TREES["old"], size
        assert sh(home, LOOK)[1].split()[0] == "old"
    assert sh(home, TAKE, "new", "1", stdin=whole)[0] == 0
    assert found(home) == TREES["new"] and (home / "co/.venv/kept").exists()


def killers(tmp_path: Path, nth: int) -> str:
    """A PATH on which the nth of TOOLS that a script runs kills that script first."""
    count, directory = tmp_path / "count", tmp_path / "killers"
    directory.mkdir(exist_ok=True)
    count.write_text("")
    for tool in TOOLS:
        (directory / tool).write_text(
            f"#!/bin/sh\necho >>{count}\n[ $(wc -l <{count}) != {nth} ] || kill -9 $PPID\n"
            f'PATH={os.environ["PATH"]} exec {tool} "$@"\n'
        )
        (directory / tool).chmod(0o755)
    return f"{directory}:{os.environ['PATH']}"


def test_killed_at_any_step_the_next_sync_makes_it_whole(tmp_path: Path, home: Path) -> None:
    old, new = packed(tmp_path, "old"), packed(tmp_path, "new")
    for nth in range(1, 30):
        code, _ = sh(home, TAKE, "new", "1", stdin=new, path=killers(tmp_path, nth))
        there, known = found(home), sh(home, LOOK)[1].split()[0]
        if code == 0:
            break
        assert there in (None, TREES["old"], TREES["new"]), nth
        # Never believed to be there when it is not.
        assert known == "none" or there == TREES[known], nth
        assert sh(home, TAKE, "old", "1", stdin=old)[0] == 0
        assert found(home) == TREES["old"] and (home / "co/.venv/kept").exists(), nth
    assert code == 0 and nth > len(TOOLS)


def test_what_was_set_up_is_so_only_with_its_environment(tmp_path: Path, home: Path) -> None:
    (home / "co.sync/set-up").write_text("old\n")
    assert sh(home, LOOK)[1].split() == ["old", "none"]
    (home / "co/.venv/bin").mkdir()
    (home / "co/.venv/bin/python").symlink_to(sys.executable)
    assert sh(home, LOOK)[1].split() == ["old", "old"]
    assert sh(home, TAKE, "new", "1", stdin=packed(tmp_path, "new"))[0] == 0
    assert sh(home, LOOK)[1].split() == ["new", "none"]


def test_the_tree_under_a_running_command_stays(tmp_path: Path, home: Path) -> None:
    runner = (
        f"import sys; sys.path.insert(0, {str(PROJECT)!r});"
        "from orchestrator.cli import on_control;"
        "on_control.run = lambda *_: [print('runs', flush=True), sys.stdin.read()];"
        "on_control.main(['lifeline'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", runner],
        cwd=home / "co", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    quick = TAKE.replace(f"flock -w {LOCK_TIMEOUT}", "flock -w 0")
    with process:
        assert process.stdout is not None and process.stdout.readline() == "runs\n"
        assert sh(home, quick, "new", "1", stdin=packed(tmp_path, "new"))[0] == BUSY
        assert found(home) == TREES["old"]
        process.communicate("")
    assert sh(home, quick, "new", "1", stdin=packed(tmp_path, "new"))[0] == 0


def test_a_host_without_tar_is_told_so(home: Path, tmp_path: Path) -> None:
    assert sh(home, LOOK, path=str(tmp_path)) == (3, "tar is not installed\n")
