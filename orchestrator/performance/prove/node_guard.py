"""Runs on a node while a cause is tried: changes it, and puts it back whatever happens.

    python -c GUARD

Standard library only. A line of JSON on standard input asks; the answer is a line that begins with
its mark. What was changed is undone when it is asked for, when standard input ends (the asking
program ended or was killed, the connection was closed), on SIGTERM, and after the seconds that came
with the change (the network is cut, and nobody notices).
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

#: Seconds for one command, without a question, without one after a change lasted too long, and
#: between two tries to undo.
COMMAND, IDLE, AFTERWARDS, AGAIN = 30, 7200, 600, 1
#: Tries to undo while somebody listens, and when nobody does.
TRIES, TRIES_ALONE = 3, 300


def ran(argv: list[str]) -> dict[str, Any]:
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=COMMAND, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"argv": argv, "code": 127, "out": "", "err": str(error)}
    out, err = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
    return {"argv": argv, "code": done.returncode, "out": out, "err": err}


class Guard:
    """What is to be undone, and until when it may stay."""

    def __init__(self) -> None:
        self.undo: list[list[str]] = []
        self.end = time.monotonic() + IDLE
        self.expired = False

    def apply(self, asked: dict[str, Any]) -> dict[str, Any]:
        self.undo = asked["undo"]
        self.end, self.expired = time.monotonic() + asked["seconds"], False
        for argv in asked["apply"]:
            done = ran(argv)
            if done["code"]:
                return {"failed": done, "left": self.put_back(TRIES)}
        return {}

    def put_back(self, tries: int) -> list[dict[str, Any]]:
        """Undo all; what could not be undone, with the last error."""
        left = [{"argv": argv} for argv in self.undo]
        for number in range(tries):
            left = [done for each in left if (done := ran(each["argv"]))["code"]]
            if not left:
                break
            time.sleep(AGAIN if number + 1 < tries else 0)
        self.undo = [each["argv"] for each in left]
        self.end = time.monotonic() + IDLE
        return left

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        if "run" in asked:
            return ran(asked["run"])
        if "apply" in asked:
            return self.apply(asked)
        return {"left": self.put_back(TRIES), "expired": self.expired}

    def serve(self) -> None:
        rest = b""
        while True:
            left = self.end - time.monotonic()
            if left <= 0:
                if not self.undo:
                    return
                self.put_back(TRIES_ALONE)
                self.end, self.expired = time.monotonic() + AFTERWARDS, True
                continue
            if not select.select([0], [], [], left)[0]:
                continue
            chunk = os.read(0, 1 << 16)
            if not chunk:
                return
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                asked = json.loads(line)
                print(asked["mark"], json.dumps(self.answer(asked)), flush=True)


def main() -> None:
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    guard = Guard()
    try:
        guard.serve()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        left = guard.put_back(TRIES_ALONE) if guard.undo else []
        if left and shutil.which("logger"):
            told = json.dumps([each["argv"] for each in left])
            ran(["logger", "-t", "orchestrate", f"bench prove could not undo: {told}"])


if __name__ == "__main__":
    main()
