"""Whether a QEMU guest is healthy, by QEMU's process, state, events and log, and the console."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.provision.machines import qmp

#: States of QEMU in which a guest does not go on by itself.
STOPPED = (
    "internal-error",
    "guest-panicked",
    "shutdown",
    "paused",
    "io-error",
    "watchdog",
    "suspended",
)
#: The `reason` of QEMU's SHUTDOWN event, and its meaning.
ENDS = {
    "guest-shutdown": "the guest shut itself down",
    "guest-panic": "the guest panicked",
    "host-signal": "a signal ended QEMU",
    "host-qmp-quit": "QEMU was told to quit",
}
#: More than RESETS resets by the guest within WINDOW seconds mean a boot loop.
RESETS, WINDOW = 5, 60.0
#: The last console line of a kernel that panicked and halted.
PANIC = re.compile(r"---\[ end (Kernel panic - .*?) \]---")
#: A line of QEMU's register dump; only the first of consecutive ones is shown.
REGISTERS = re.compile(r"[A-Z]{2,4}[0-9]* ?=|extra data\[")
LOG_LINES = 8
#: Lines are cut to LINE characters; only the last TAIL bytes of a file are read.
LINE, TAIL = 120, 1 << 16
ESCAPES = re.compile(rb"\x1b(?:\[[0-9;?=]*[A-Za-z]|.)|[\x00-\x08\x0b\x0c\x0e-\x1f]")


@dataclass(frozen=True)
class Ailment:
    """Why a guest will not come up.

    `faulty`: QEMU or KVM failed to run the guest's code. `interrupted`: a signal ended QEMU.
    """

    text: str
    faulty: bool = False
    interrupted: bool = False


def ended(events: Path) -> Ailment:
    """Why QEMU, which does not run any more, ended."""
    reason = ""
    for event in told(events, "SHUTDOWN"):
        reason = event["data"].get("reason", "")
    return Ailment(ENDS.get(reason, "QEMU ended"), interrupted=reason == "host-signal")


def stopped(control: Path) -> Ailment | None:
    """Why QEMU stopped the guest; None if it runs, or if QEMU does not answer (it may be busy)."""
    try:
        status = qmp.execute(control, "query-status")["status"]
    except (OSError, RuntimeError, ValueError):
        return None
    if status not in STOPPED:
        return None
    return Ailment(f"QEMU stopped the guest: {status}", faulty=status == "internal-error")


def resets(events: Path) -> Ailment | None:
    """An ailment if the guest resets itself in a loop."""
    since = time.time() - WINDOW
    own = [event for event in told(events, "RESET") if event["data"].get("guest")]
    count = sum(event["timestamp"]["seconds"] >= since for event in own)
    if count <= RESETS:
        return None
    return Ailment(f"the guest keeps resetting itself ({count} times in {WINDOW:g} s)")


def panicked(console: Path) -> Ailment | None:
    """An ailment if a kernel panic is the last line of the console."""
    found = PANIC.search(last_line(console))
    return Ailment(f"the guest's kernel stopped: {found[1]}") if found else None


def told(events: Path, name: str) -> Iterator[dict[str, Any]]:
    """QEMU's events with this name, the oldest first."""
    for line in end_of(events).splitlines():
        try:
            said = json.loads(line)
        except ValueError:
            continue  # cut off at the start, or not written completely yet
        if said.get("event") == name:
            yield said


def end_of(file: Path) -> bytes:
    """The last TAIL bytes of a file; empty if it does not exist."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - TAIL))
            return stream.read()
    except FileNotFoundError:
        return b""


def last_line(console: Path) -> str:
    """The console's last line that is not empty, without escape sequences."""
    text = ESCAPES.sub(b"", end_of(console)).decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:LINE] if lines else ""


def log_end(log: Path) -> list[str]:
    """The last LOG_LINES lines of QEMU's log; a register dump counts as one line."""
    kept: list[str] = []
    left_out = 0
    text = end_of(log).decode(errors="replace")
    for line in filter(None, map(str.strip, text.splitlines())):
        if REGISTERS.match(line) and kept and REGISTERS.match(kept[-1]):
            left_out += 1
            continue
        if left_out:
            kept.append(f"({left_out} more lines of registers)")
            left_out = 0
        kept.append(line[:LINE])
    if left_out:
        kept.append(f"({left_out} more lines of registers)")
    return kept[-LOG_LINES:]
