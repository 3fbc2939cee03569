"""The board of who is at which step: what it tells, and what it writes down."""

from __future__ import annotations

import pytest

from orchestrator.core.errors import UserError
from orchestrator.core.progress import Board


def test_a_step_ends_as_it_came_to_an_end(capsys: pytest.CaptureFixture[str]) -> None:
    with Board() as board:
        with board.step("node0", "power"):
            pass
        with board.step("cluster", "verify") as done:
            done.failed, done.detail = True, "1 of 9 failed"
        with pytest.raises(UserError), board.step("node0", "ssh"):
            raise UserError("no answer\nat all", "look there")
        with pytest.raises(KeyboardInterrupt), board.step("node0", "base"):
            raise KeyboardInterrupt
    told = {(node, step): entry for node, steps in board.document().items()
            for step, entry in steps.items()}  # fmt: skip
    assert {key: (entry["status"], entry["detail"]) for key, entry in told.items()} == {
        ("node0", "power"): ("done", ""),
        ("cluster", "verify"): ("failed", "1 of 9 failed"),
        ("node0", "ssh"): ("failed", "no answer"),
        ("node0", "base"): ("failed", "KeyboardInterrupt"),
    }
    lines = [line.split(maxsplit=2)[2] for line in capsys.readouterr().err.splitlines()]
    assert [" ".join(line.split()) for line in lines] == [
        "node0 power ...",
        "node0 power done",
        "cluster verify ...",
        "cluster verify FAILED 1 of 9 failed",
        "node0 ssh ...",
        "node0 ssh FAILED no answer",
        "node0 base ...",
        "node0 base FAILED KeyboardInterrupt",
    ]


def test_a_step_lasts_from_its_own_start() -> None:
    with Board(quiet=True) as board:
        board._begun -= 100  # the whole began long ago
        with board.step("node0", "power"):
            pass
    entry = board.document()["node0"]["power"]
    assert entry["started"] == pytest.approx(100, abs=50)
    assert entry["seconds"] == pytest.approx(0, abs=50)


def test_what_is_waited_for_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    with Board() as board:
        for text in ("boots: dhcp", "boots: dhcp", "boots: layer:base"):
            board.note("node0", text)
    assert [line.split("boots: ")[1] for line in capsys.readouterr().err.splitlines()] == [
        "dhcp",
        "layer:base",
    ]
