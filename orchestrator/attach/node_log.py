"""Runs on a node of somebody's cluster, for node_facts.py: what the engine's log says of the
collectives' transports.

A log is looked for where the server's output goes: a file, the journal, a container's log, or the
file that NCCL was told. Only its beginning and its end are read, and only lines that speak of
transports are told: a log may hold prompts. Standard library only, Python 3.9 or later.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import threading
from collections.abc import Iterable
from pathlib import Path

from orchestrator.attach.node_hardware import MOST_TEXT, ROOT, Facts, text

#: Bytes of a log's beginning, and of its end; lines that are told, and a line's characters.
PART, MOST_LINES, MOST_LINE = 1 << 20, 40, 300
#: Seconds for a program that prints a log.
PATIENCE = 8.0
#: What NCCL, RCCL and oneCCL say of how ranks are connected.
SPEAKS = re.compile(
    r"N?CCL (?:INFO|WARN) (?:.*\b(?:NET/\w+ ?: ?|Using network|via (?:P2P|SHM|NET))|.*NET/)"
    r"|\|CCL_(?:WARN|INFO)\|.*(?:atl|transport|provider|ofi|mpi|fallback)",
    re.IGNORECASE,
)
#: What is left out of a line, so that the same of several ranks is told once: who said it, when.
PREFIX = re.compile(r"^.*?(?=N?CCL (?:INFO|WARN)|\|CCL_)")
#: The unit of a service, in the name of its control group: the system's, or a user's.
UNIT = re.compile(r"/([\w@.:\\-]{1,200}\.service)$")
OF_USER = re.compile(r"/user@\d+\.service/")


def log(engines: list[Facts]) -> Facts:
    """Lines of the log that speak of transports. ``of``: which log that is; "" if none is found."""
    for engine in engines:
        for name, parts in places(engine):
            lines = spoken(parts)
            if lines:
                return {"of": name, "lines": lines}
    return {"of": "", "lines": []}


def places(engine: Facts) -> Iterable[tuple[str, list[str]]]:
    """Logs that a process writes to: what each is, and its beginning and end."""
    process = ROOT / "proc" / str(engine["pid"])
    debug = (engine.get("env") or {}).get("NCCL_DEBUG_FILE", "")
    if debug.startswith("/"):
        path = debug.replace("%p", str(engine["pid"])).replace("%h", os.uname().nodename)
        yield path, ends(process / "root" / path.lstrip("/"))
    seen = set()
    for number in (1, 2):
        try:
            target = os.readlink(process / "fd" / str(number))  # noqa: PTH115 - it may be no path
        except OSError:
            continue
        if target not in seen and target.startswith("/") and not target.startswith("/dev/"):
            yield target[:MOST_TEXT], ends(process / "fd" / str(number))
        seen.add(target)
    kind, _, name = engine.get("container", "").partition(" ")
    if kind in ("docker", "podman"):
        yield f"{kind} logs {name}", [printed([kind, "logs", name])]
    for line in text(process / "cgroup").splitlines():
        unit = UNIT.search(line)
        if unit:
            which = "--user-unit" if OF_USER.search(line) else "--unit"
            words = ["journalctl", "--quiet", "--no-pager", "--output=cat"]
            words += [f"--since=@{started(process)}"]
            yield f"the journal of {unit[1]}", [printed([*words, f"{which}={unit[1]}"])]
            return


def started(process: Path) -> int:
    """When a process was started, in seconds since 1970."""
    boot = re.search(r"^btime (\d+)", text(ROOT / "proc/stat", 1 << 20), re.MULTILINE)
    # The title in brackets may hold anything.
    fields = text(process / "stat").rpartition(")")[2].split()
    if boot is None or len(fields) < 20:
        return 0
    return int(boot[1]) + int(fields[19]) // os.sysconf("SC_CLK_TCK")


def ends(path: Path) -> list[str]:
    """The beginning and the end of a file; nothing of what is none, or may not be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return []
        with path.open("rb") as file:
            begin = file.read(PART)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(len(begin), size - PART))
            return [each.decode(errors="replace") for each in (begin, file.read(PART)) if each]
    except OSError:
        return []


def printed(argv: list[str]) -> str:
    """The beginning of what a program prints, by both of its outputs; it is ended then."""
    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except OSError:
        return ""
    assert process.stdout is not None
    late = threading.Timer(PATIENCE, process.kill)
    late.start()
    try:
        return process.stdout.read(PART).decode(errors="replace")
    finally:
        late.cancel()
        process.kill()
        process.stdout.close()
        process.wait()


def spoken(parts: list[str]) -> list[str]:
    """Lines about transports, each once, without who said it and when."""
    lines = (line for part in parts for line in part.splitlines())
    told = (
        PREFIX.sub("", line, count=1)[:MOST_LINE].strip() for line in lines if SPEAKS.search(line)
    )
    return list(dict.fromkeys(told))[:MOST_LINES]
