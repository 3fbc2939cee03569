"""Commands of this machine: what is a failure, what is shown of it, and how they end."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.errors import UserError
from orchestrator.core.run import CHUNK, CommandFailed, captured, run, stream, streaming
from orchestrator.core.waiting import as_long_as

FAILS = ["sh", "-c", 'echo "to stdout"; echo "to stderr" >&2; exit 1']


def test_a_command_that_fails_is_an_error_that_shows_all() -> None:
    with pytest.raises(CommandFailed) as failed:
        run(FAILS, what="the trial")
    for part in ("the trial failed", "exit code: 1", "stdout: to stdout", "stderr: to stderr"):
        assert part in failed.value.message
    assert "command: sh -c 'echo" in failed.value.message


@pytest.mark.parametrize("ok", [(0, 1), (1,), None])
def test_a_code_that_is_expected_is_none(ok: Any) -> None:
    assert run(FAILS, ok=ok).code == 1


def test_what_takes_too_long_is_ended_and_said() -> None:
    with pytest.raises(UserError, match=r"the trial: timed out after 0\.2 s"):
        run(["sleep", "1000"], what="the trial", timeout=0.2)


def test_a_command_that_is_not_there_names_its_package() -> None:
    with pytest.raises(UserError) as missing:
        run(["nosuch-command"])
    assert missing.value.hint == "On Debian: apt-get install nosuch-command"


def test_lines_come_from_both_streams_and_a_failure_is_one() -> None:
    lines: list[str] = []
    with pytest.raises(CommandFailed) as failed:
        stream(FAILS, lines.append, what="the trial")
    assert sorted(lines) == ["to stderr", "to stdout"]
    assert failed.value.result.code == 1


def test_a_line_without_an_end_comes_in_pieces() -> None:
    """Whoever sends it does not fill this machine's memory."""
    pieces: list[int] = []
    many = 3 * CHUNK + 5
    over = ["sh", "-c", f"head -c {many} /dev/zero | tr '\\0' x; cat >/dev/null"]
    with streaming(over, lambda line: pieces.append(len(line))):
        assert not as_long_as(lambda: sum(pieces) < many - 5, 60, 0.05)
    assert max(pieces) <= CHUNK and sum(pieces) == many


def test_what_runs_for_a_body_is_heard_to_its_last_word() -> None:
    lines: list[str] = []
    with streaming(["sh", "-c", "echo begun; cat >/dev/null; echo over"], lines.append):
        pass
    assert lines == ["begun", "over"]


def test_long_output_goes_to_a_file_and_errors_are_kept(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as file:
        script = "cat; head -c 3000000 /dev/zero; echo oops >&2; exit 3"
        done = captured(["sh", "-c", script], file, limit=4 << 20, timeout=60, stdin=b"first")
    assert (done.code, done.out, done.err) == (3, "", "oops\n")
    assert (tmp_path / "out").read_bytes() == b"first" + bytes(3_000_000)


def test_output_that_does_not_end_is_ended(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as file, pytest.raises(UserError, match="more than 1000"):
        captured(["cat", "/dev/zero"], file, limit=1000, timeout=60)
    assert (tmp_path / "out").stat().st_size == 1000


def test_a_long_command_that_says_nothing_is_ended(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as file, pytest.raises(UserError, match=r"after 0\.2 s"):
        captured(["sleep", "1000"], file, limit=1000, timeout=0.2)


def test_one_that_is_ended_is_not_waited_for_by_what_it_left_behind(tmp_path: Path) -> None:
    """As ssh does, which hands its streams to the process that keeps the connection."""
    with (tmp_path / "out").open("wb") as file, pytest.raises(UserError, match="timed out"):
        argv = ["sh", "-c", "sleep 60 & echo $!; sleep 60"]
        captured(argv, file, limit=1000, timeout=1)
    left = int((tmp_path / "out").read_text())
    os.kill(left, signal.SIGTERM)  # it is still there


def test_one_that_closes_its_streams_and_goes_on_is_ended(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as file, pytest.raises(UserError, match="timed out"):
        captured(["sh", "-c", "exec >&- 2>&-; sleep 1000"], file, limit=1000, timeout=0.5)


def test_what_it_left_behind_is_not_waited_for_when_it_has_ended(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as file:
        done = captured(["sh", "-c", "sleep 60 & echo $!"], file, limit=1000, timeout=600)
    assert done.code == 0
    os.kill(int((tmp_path / "out").read_text()), signal.SIGTERM)  # it is still there
