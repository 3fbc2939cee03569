"""Runs on a node, standard library only: a program, and the end of it and of all that it started.

    python -c GUARD SECONDS PROGRAM...

It is killed after SECONDS, and when nobody reads what it prints any more: an SSH connection that
is gone ends nothing by itself. What it leaves in TMPDIR is removed. Exit code: the program's, or
LATE; 128 and a signal's number where one ended it.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

#: The exit code where it took too long, as of timeout(1).
LATE = 124
SUBREAPER = 36  # prctl: what a child leaves behind becomes ours
#: Seconds for a killed process to be gone. One that waits for a driver that hangs never is.
GOING = 5.0


def children() -> list[int]:
    """Of this process, also those that it got from children which ended."""
    own = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    return [int(word) for word in own.read_text().split()]


def end_all() -> None:
    """Kill all below this process: what a killed one leaves comes here next."""
    until = time.monotonic() + GOING
    while found := children():
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in found:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        if time.monotonic() > until:
            print(f"process {found[0]} was killed and does not end: its driver hangs; reboot the "
                  "node", file=sys.stderr)  # fmt: skip
            return
        time.sleep(0.01)


def main(seconds: float, argv: list[str]) -> int:
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    code = LATE
    with tempfile.TemporaryDirectory(prefix="orchestrate-", ignore_cleanup_errors=True) as own:
        Path(own).chmod(0o1777)  # the program may become another user
        try:
            environment = os.environ | {"TMPDIR": own}
            program = subprocess.Popen(argv, start_new_session=True, env=environment)
            over = select.poll()
            ended = os.pidfd_open(program.pid)
            over.register(ended, select.POLLIN)
            over.register(1, 0)  # tells only that the other end is gone
            if any(file == ended for file, _ in over.poll(seconds * 1000)):
                code = program.wait()
            program.kill()
        finally:
            end_all()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
