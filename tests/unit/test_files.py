"""Files are replaced whole; a lock has one holder; a wait has an end."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from orchestrator.core import files
from orchestrator.core.errors import UserError
from orchestrator.core.waiting import as_long_as


def test_a_file_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "there/key"
    files.write(path, "one", files.PRIVATE)
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("one", 0o600)

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write(path, "two")
    assert path.read_text() == "one"
    assert [each.name for each in path.parent.iterdir()] == ["key"]


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_lock_has_one_holder(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "lock"
    if kind == "directory":
        path.mkdir()

    def busy(holder: str) -> UserError:
        return UserError(f"held by {holder}")

    with files.locked(path, "" if kind == "directory" else "me"):
        with pytest.raises(UserError, match="held by"), files.locked(path, busy=busy):
            pytest.fail("two holders")
        came: list[str] = []

        def wait() -> None:
            with files.locked(path):
                came.append("after")

        second = threading.Thread(target=wait)
        second.start()
        second.join(0.2)
        came.append("before")
    second.join(30)
    assert came == ["before", "after"]
    with files.locked(path, busy=busy):
        pass


def test_a_lock_says_who_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with files.locked(path, "'up' (process 7)"):
        assert path.read_text() == "'up' (process 7)"
    assert path.read_text() == ""


def test_a_wait_ends_with_the_last_reason_or_none() -> None:
    reasons = iter(["a", "b", ""])
    assert as_long_as(lambda: next(reasons), 60, 0) == ""
    begun = time.monotonic()
    assert as_long_as(lambda: "still", 0.05, 0.01) == "still"
    assert time.monotonic() - begun >= 0.05
