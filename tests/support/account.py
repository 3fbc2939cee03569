"""A node as far as accounts go: this machine's root, with an /etc, /home and /run of its own, in
its own mount and process namespaces. Real useradd, real accounts, real processes; nothing is left.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.agent import ask

#: Of an account that this machine does not have.
NAME, UID = "orchestrate-mallory", 54321

SETUP = """
set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=755 scratch "$1"
mkdir "$1/upper" "$1/work"
mount -t overlay -o "lowerdir=/etc,upperdir=$1/upper,workdir=$1/work" etc /etc
mount -t tmpfs -o mode=755 home /home
mount -t tmpfs -o mode=755 run /run
echo ready
exec sleep infinity
"""


@dataclass
class Machine:
    """The namespaces, by their first process."""

    inside: list[str]

    def run(self, *argv: str | Path, ok: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*self.inside, *map(str, argv)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0 or not ok, f"{argv}: {done.stdout}{done.stderr}"
        return done

    def sh(self, script: str, *words: str, ok: bool = True) -> str:
        return self.run("sh", "-euc", script, "sh", *words, ok=ok).stdout

    def ask(self, verb: str, document: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Run the agent as root on this machine. Fails where it does not end in time."""
        return ask(verb, Path("/"), document, self.inside)

    @contextlib.contextmanager
    def by_account(self, program: str, *words: str) -> Iterator[subprocess.Popen[str]]:
        """A Python program that runs beside, as the account; it says when it is ready."""
        who = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"]
        argv = [*self.inside, *who, sys.executable, "-I", "-c", program, *words]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()
            process.wait()
            process.stdout.close()

    def facts(self, *paths: str) -> dict[str, Any]:
        """Of files: mode, number, owner, content."""
        program = (
            "import json, os, sys\n"
            "def of(path):\n"
            "    found = os.lstat(path)\n"
            "    is_file = os.path.isfile(path)\n"
            "    holds = open(path, 'rb').read().hex() if is_file else sorted(os.listdir(path))\n"
            "    return [oct(found.st_mode), found.st_ino, found.st_uid, found.st_gid, holds]\n"
            "print(json.dumps({path: of(path) for path in sys.argv[1:]}))"
        )
        found: dict[str, Any] = json.loads(
            self.run(sys.executable, "-I", "-c", program, *paths).stdout
        )
        return found


@contextlib.contextmanager
def machine(scratch: Path) -> Iterator[Machine]:
    """Such a machine. ``scratch`` is an empty directory."""
    argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    holder = subprocess.Popen(
        [*argv, "sh", "-c", SETUP, "sh", str(scratch)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "ready\n"
        children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children")
        first = children.read_text().split()[0]
        yield Machine(["nsenter", "--target", first, "--mount", "--pid", "--"])
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def until(seconds: float) -> Iterator[int]:
    """Numbers, until the time is over: tries of something that succeeds now and then."""
    end = time.monotonic() + seconds
    number = 0
    while time.monotonic() < end:
        yield number
        number += 1
