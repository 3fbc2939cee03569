"""Commands of this machine: what is a failure, what is shown of it, and how they end."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.core.errors import UserError
from orchestrator.core.run import CommandFailed, run, stream, streaming

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


def test_what_runs_for_a_body_is_heard_to_its_last_word() -> None:
    lines: list[str] = []
    with streaming(["sh", "-c", "echo begun; cat >/dev/null; echo over"], lines.append):
        pass
    assert lines == ["begun", "over"]
