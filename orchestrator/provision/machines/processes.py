"""Processes that outlive the command which started them, and how a later one finds them again."""

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

#: Seconds for a killed process to be gone, and for a started one to have its record.
KILL_TIMEOUT, RECORD_TIMEOUT = 10.0, 10.0
#: A process writes its own record ($0), and then becomes what it was started for ($@): whoever
#: kills this command between the two leaves nothing behind that nobody knows of.
RECORDED = """\
started=$(cut -d ' ' -f 22 "/proc/$$/stat")
printf '{"pid": %d, "started": "%s"}' $$ "$started" >"$0.new"
mv "$0.new" "$0"
exec "$@"
"""
#: Kept until this command ends: Python warns of a running process that nobody holds any more.
_STARTED: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True)
class Process:
    """A process by its record: a file with its id and start time, since ids are used again."""

    record: Path

    def pid(self) -> int | None:
        """Its id, if it is still the one that was started."""
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
        """Start `argv` in a session of its own: it outlives this command, Ctrl-C is not for it.

        What it writes goes to `log`; `env` is added to this command's own variables. Without
        `outlives` it stays in this session, and is killed when the calling thread ends. Raises
        UserError where the command is not installed.
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
        """Whether a process that runs has not recorded itself yet."""
        try:
            recorded = json.loads(self.record.read_text())["pid"] == process.pid
        except (FileNotFoundError, ValueError):
            recorded = False
        return not recorded and process.poll() is None


def start_time(pid: int) -> str | None:
    """When a process started, in clock ticks after boot (proc(5), field 22); None if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]


def ended(pid: int, timeout: float) -> bool:
    """Wait for a process to end; False if it is still there after `timeout` seconds."""

    def runs() -> bool:
        _reap(pid)
        return start_time(pid) is not None

    return not as_long_as(runs, timeout, 0.05)


def _reap(pid: int) -> None:
    """Let a process go that this command started and that ended; another command's is init's."""
    if pid in _STARTED and _STARTED[pid].poll() is not None:
        del _STARTED[pid]


def kill(pids: Iterable[int]) -> None:
    """Kill processes, in this order, and wait for each to be gone."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        ended(pid, KILL_TIMEOUT)
