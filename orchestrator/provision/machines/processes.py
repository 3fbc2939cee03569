"""Processes that outlive the command that started them, and records by which later commands find
them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from orchestrator.core.errors import UserError
from orchestrator.core.run import PACKAGE_OF
from orchestrator.core.waiting import as_long_as

#: Seconds for a killed process to end, and for a started one to write its record.
KILL_TIMEOUT, RECORD_TIMEOUT = 10.0, 10.0
#: The new process writes its own record ($0) and then executes the program ($@). So no process is
#: ever without a record, even if this command is killed in between.
RECORDED = """\
started=$(cut -d ' ' -f 22 "/proc/$$/stat")
printf '{"pid": %d, "started": "%s"}' $$ "$started" >"$0.new"
mv "$0.new" "$0"
exec "$@"
"""
#: Kept until this command ends: Python warns about a running process without references.
_STARTED: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True)
class Process:
    """A process, known by its record: a file with its id and start time, since ids are reused."""

    record: Path

    def pid(self) -> int | None:
        """Its id; None if it has ended."""
        try:
            record = json.loads(self.record.read_text())
        except (FileNotFoundError, ValueError):
            return None
        pid = int(record["pid"])
        if start_time(pid) == record["started"]:
            return pid
        _reap(pid)
        return None

    def start(
        self,
        argv: Sequence[str],
        *,
        log: Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        outlives: bool = True,
    ) -> None:
        """Start `argv` in a session of its own, so that it survives this command and Ctrl-C.

        Its output is appended to `log`; `env` is added to this command's environment. Without
        `outlives` it stays in this session, and is killed when the calling thread ends. Raises
        UserError if the program is not installed.
        """
        if not shutil.which(argv[0]):
            package = PACKAGE_OF.get(argv[0], argv[0])
            raise UserError(
                f"the command {argv[0]!r} is not installed", f"On Debian: apt-get install {package}"
            )
        if not outlives:
            argv = ["setpriv", "--pdeathsig", "KILL", *argv]
        with log.open("ab") as stream:
            process = subprocess.Popen(
                ["/bin/sh", "-e", "-c", RECORDED, str(self.record.absolute()), *argv],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                cwd=cwd,
                env={**os.environ, **(env or {})},
                start_new_session=outlives,
            )
        _STARTED[process.pid] = process
        as_long_as(lambda: self._unknown(process), RECORD_TIMEOUT, 0.002)

    def _unknown(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether the process runs but has not written its record yet."""
        try:
            recorded = json.loads(self.record.read_text())["pid"] == process.pid
        except (FileNotFoundError, ValueError):
            recorded = False
        return not recorded and process.poll() is None


def start_time(pid: int) -> str | None:
    """When a process started, in clock ticks after boot (proc(5), field 22); None if it ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]


def ended(pid: int, timeout: float) -> bool:
    """Wait for a process to end; False if it still runs after `timeout` seconds."""

    def runs() -> bool:
        _reap(pid)
        return start_time(pid) is not None

    return not as_long_as(runs, timeout, 0.05)


def _reap(pid: int) -> None:
    """Reap a process that this command started and that ended. Others are init's to reap."""
    if pid in _STARTED and _STARTED[pid].poll() is not None:
        del _STARTED[pid]


def children(pid: int) -> list[int]:
    """Of a process's first thread; none where it has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def kill(pids: Iterable[int]) -> None:
    """Kill processes, in this order, and wait for each to end."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        ended(pid, KILL_TIMEOUT)
