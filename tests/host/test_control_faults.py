"""What goes wrong on a control host and on the way to it: a full disk, an account without root's
rights, a terminal that is closed."""

from __future__ import annotations

import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.control import OTHER, Pair, pair_at
from support.sync import TREES, found, packed, sh

from orchestrator.cli.control_host import TAKE, archive, cause


def test_a_full_disk_is_said_and_leaves_the_old_tree(tmp_path: Path) -> None:
    home = tmp_path / "small"
    home.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "small", home], check=True)
    try:
        assert sh(home, TAKE, "old", "1", stdin=packed(tmp_path, "old")) == (0, "")
        big = tmp_path / "big"
        big.write_bytes(bytes(1 << 20))
        for size, reason in (("1024", "no space"), ("1", "big")):  # foreseen, and not
            code, said = sh(home, TAKE, "new", size, stdin=archive({"big": big}))
            assert code == 1 and reason in cause(said)
            assert found(home) == TREES["old"] and not (home / "co.sync/new").exists()
    finally:
        subprocess.run(["umount", home], check=True)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Pair]:
    with pair_at(tmp_path, OTHER) as made:
        yield made


def test_an_account_without_roots_rights_syncs_again_and_again(other: Pair) -> None:
    """Root's commands leave files in the tree that the account may not remove."""
    other.run("control", "sync")
    assert other.run("control", "cmd", "id", "-un").stdout.strip() == OTHER
    other.run("profile", "list", "--on-control")
    roots = [path for path in other.there.rglob("*.pyc") if path.stat().st_uid == 0]
    assert roots, "nothing of root's is there: this shows nothing"
    for text in ("first", "second"):
        (other.checkout / "README.md").write_text(text)
        other.run("profile", "list", "--on-control")
        assert (other.there / "README.md").read_text() == text
    beside = {path.name for path in (other.home / "orchestrate.sync").iterdir()}
    assert beside == {"lock", "tree", "set-up"}


def in_a_terminal(pair: Pair, *words: str) -> tuple[int, int]:
    """Starts a command on the laptop in a terminal of its own: process id, the terminal's end."""
    argv = pair.on_laptop([sys.executable, "-m", "orchestrator", *words])
    pid, terminal = pty.fork()
    if pid == 0:
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)  # as in a terminal, whoever runs the tests
        os.execvpe(argv[0], argv, pair.env | {"TERM": "xterm"})
    return pid, terminal


def read_until(terminal: int, word: bytes = b"") -> bytes:
    """What the terminal shows until WORD, or to its end."""
    said = b""
    while not word or word not in said:
        try:
            said += os.read(terminal, 4096)
        except OSError:  # nobody has the other end any more
            assert not word, said.decode()
            break
    return said


def test_a_terminal_is_passed_through(pair: Pair) -> None:
    pair.run("control", "sync")
    pid, terminal = in_a_terminal(pair, "profile", "check", "nosuch", "--on-control")
    said = read_until(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2, said
    assert b"\x1b[31merror:" in said
    os.close(terminal)


LOOP = ("watch", "--interval", "0.519")


@pytest.mark.parametrize("how", ["Ctrl-C", "closed"])
def test_a_terminal_that_ends_a_command_ends_it_there(pair: Pair, how: str) -> None:
    pair.run("control", "sync")
    pid, terminal = in_a_terminal(pair, *LOOP)
    read_until(terminal, b"not built")
    assert running(*LOOP)
    if how == "Ctrl-C":
        os.write(terminal, b"\x03")
        said = read_until(terminal)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130, said
        assert b"interrupted" in said
        os.close(terminal)
    else:
        os.close(terminal)
        os.waitpid(pid, 0)
    wait_until_gone(*LOOP)


def test_input_reaches_what_reads_it_and_ends_with_its_reader(pair: Pair) -> None:
    """As `node ssh` and `sim shell` have it: on_control's part, over ssh."""
    pair.run("control", "sync")

    def through(*words: str) -> list[str]:
        code = (
            f"import sys; from orchestrator.cli.on_control import run; run('input', {list(words)})"
        )
        there = [".venv/bin/python", "-c", code]
        return ["control", "cmd", "--", *there]

    assert pair.run(*through("cat"), stdin="a\nb").stdout == "a\nb"
    sleeper = ("sleep", "5171.7")
    argv = pair.on_laptop([sys.executable, "-m", "orchestrator", *through(*sleeper)])
    with subprocess.Popen(
        argv, env=pair.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        end = time.monotonic() + 60
        while not running(*sleeper):
            assert time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
    wait_until_gone(*sleeper)


def running(*words: str) -> list[str]:
    """Process ids of what runs on the control host with these last words."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            last = file.read_bytes().decode().rstrip("\0").split("\0")
            environment = (file.parent / "environ").read_bytes()
        except OSError:
            continue
        if tuple(last[-len(words) :]) == words and b"SSH_CONNECTION=" in environment:
            found.append(f"{file.parent.name}: {shlex.join(last)}")
    return found


def wait_until_gone(*words: str) -> None:
    end = time.monotonic() + 60
    while left := running(*words):
        assert time.monotonic() < end, left
        time.sleep(0.05)
