"""What goes wrong on the way to a control host: cuts, full disks, two at once, an account without
root's rights, a terminal that is closed."""

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
from support.control import OTHER, PROJECT, Pair, pair_at

from orchestrator.control import BUSY, END, LOCK_TIMEOUT, LOOK, TAKE, archive, cause

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces")
TREES = {"old": {"a": "old", "gone": "old"}, "new": {"a": "new", "b": "new", "c/d": "new"}}
#: Programs that a sync runs, each of which can be the last.
TOOLS = ("mkdir", "flock", "mv", "rm", "tar")


# A sync's own script, as the control host's sh runs it.


def packed(where: Path, name: str) -> bytes:
    files = {}
    for path, text in TREES[name].items():
        files[path] = where / name / path
        files[path].parent.mkdir(parents=True, exist_ok=True)
        files[path].write_text(text)
    return archive(files)


def sh(home: Path, script: str, *words: str, stdin: bytes = b"", path: str = "") -> tuple[int, str]:
    env = {"HOME": str(home), "PATH": path or os.environ["PATH"]}
    argv = ["/bin/sh", "-c", script, "sh", "co", *words]
    done = subprocess.run(argv, input=stdin, env=env, capture_output=True, timeout=60, check=False)
    return done.returncode, (done.stdout + done.stderr).decode()


def found(home: Path) -> dict[str, str] | None:
    co = home / "co"
    if not co.exists():
        return None
    files = (path for path in co.rglob("*") if path.is_file() and ".venv" not in path.parts)
    return {str(path.relative_to(co)): path.read_text() for path in files}


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
        f"import sys; sys.path.insert(0, {str(PROJECT)!r}); from orchestrator import on_control;"
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


@needs_root
def test_a_full_disk_is_said_and_leaves_the_old_tree(tmp_path: Path) -> None:
    home = tmp_path / "small"
    home.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "small", home], check=True)
    try:
        assert sh(home, TAKE, "old", "1", stdin=packed(tmp_path, "old")) == (0, "")
        big = tmp_path / "big"
        big.write_bytes(bytes(1 << 20))
        for size, reason in (("1024", "no room"), ("1", "big")):  # foreseen, and not
            code, said = sh(home, TAKE, "new", size, stdin=archive({"big": big}))
            assert code == 1 and reason in cause(said)
            assert found(home) == TREES["old"] and not (home / "co.sync/new").exists()
    finally:
        subprocess.run(["umount", home], check=True)


# The two hosts.


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Pair]:
    with pair_at(tmp_path, OTHER) as made:
        yield made


@needs_root
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


@needs_root
def test_a_terminal_is_passed_through(pair: Pair) -> None:
    pair.run("control", "sync")
    pid, terminal = in_a_terminal(pair, "profile", "check", "nosuch", "--on-control")
    said = read_until(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2, said
    assert b"\x1b[31merror:" in said
    os.close(terminal)


LOOP = ("watch", "--interval", "0.519")


@needs_root
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


@needs_root
def test_input_reaches_what_reads_it_and_ends_with_its_reader(pair: Pair) -> None:
    """As `node ssh` and `sim shell` have it: on_control's part, over ssh."""
    pair.run("control", "sync")

    def through(*words: str) -> list[str]:
        code = f"import sys; from orchestrator.on_control import run; run('input', {list(words)})"
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
