"""Runs on the control host: a command that ends when whoever asked for it is gone.

It is then interrupted as by Ctrl-C, all its processes with it; after a while, killed. That somebody
is gone shows by the MODE, the first word:

- terminal: the terminal ends, and takes the command along by itself;
- lifeline: the standard input ends, by Ctrl-C on the laptop or with the connection;
- input: the standard input is the command's; whoever reads its output goes away.

While the command runs, no sync replaces the tree that it runs from.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

TERMINAL, LIFELINE, INPUT = "terminal", "lifeline", "input"
#: Seconds for a command to undo what it began.
PATIENCE = 120.0


def main(argv: Sequence[str]) -> int:
    mode, *words = argv
    here = Path.cwd()
    # Python's files are not inherited: what the command starts and leaves running holds no lock.
    with Path(f"{here}.sync", "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        os.chdir(here)  # a sync that was waited for has put another tree there
        return run(mode, [sys.executable, "-m", "orchestrator", *words])


def run(mode: str, argv: Sequence[str]) -> int:
    """Run a command to its end; its exit code, or 128 and the signal's number, as shells count."""
    if mode == TERMINAL:
        # Ctrl-C reaches the command too, whose business it is.
        signal.signal(signal.SIGINT, lambda _number, _frame: None)
        child = subprocess.Popen(argv)
    else:
        stdin = subprocess.DEVNULL if mode == LIFELINE else None
        child = subprocess.Popen(argv, stdin=stdin, start_new_session=True)
        gone = _input_ended if mode == LIFELINE else _nobody_reads
        threading.Thread(target=_interrupt_after, args=(gone, child), daemon=True).start()
    code = child.wait()
    return code if code >= 0 else 128 - code


def _input_ended() -> None:
    # Not sys.stdin: a thread that reads it holds up the interpreter's end.
    while os.read(0, 4096):
        pass


def _nobody_reads() -> None:
    # Without an event to wait for, poll tells of errors and hang-ups only.
    output = select.poll()
    output.register(1, 0)
    output.poll()


def _interrupt_after(gone: Callable[[], None], child: subprocess.Popen[bytes]) -> None:
    gone()
    for number in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
            child.wait(PATIENCE)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
