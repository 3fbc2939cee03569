"""Runs on the control host: a command that ends when whoever asked for it is gone.

Its standard input is the lifeline: it ends with Ctrl-C on the laptop, and with the connection. The
command is then interrupted as by Ctrl-C here, all its processes with it; after a while, killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

#: Seconds for a command to undo what it began.
PATIENCE = 120.0


def main(argv: Sequence[str]) -> int:
    child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)
    threading.Thread(target=_interrupt_at_the_end_of_input, args=(child,), daemon=True).start()
    code = child.wait()
    return code if code >= 0 else 128 - code  # as shells count signals


def _interrupt_at_the_end_of_input(child: subprocess.Popen[bytes]) -> None:
    # Not sys.stdin: a thread that reads it holds up the interpreter's end.
    while os.read(0, 4096):
        pass
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
