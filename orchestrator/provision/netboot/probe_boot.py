"""Runs on the control node, sent over SSH: print its logs of boots as JSON. Standard library only.

The argument is a JSON object: `dnsmasq` and `files` (units), `since` (for journalctl), `wanted` (a
regular expression), `events` (a directory) and `machines` (their hardware addresses). It prints a
JSON object: `dnsmasq`, [time, message] pairs of that unit's wanted messages; `access`, the requests
that the unit of the web server logged; `events`, the boot service's of these machines.

Strangers write these logs too: only their ends are read, and of each machine's its own.
"""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import Any

#: The last so many messages of a unit are read, and so many bytes of each file of events.
MESSAGES = 20_000
TAIL = 32 << 10
#: Files of events that are no machine's of the profile.
OTHERS = ("unknown", "refused")


def journal(unit: str, since: str) -> list[tuple[float, str]]:
    argv = ["journalctl", f"--unit={unit}", f"--since={since}", f"--lines={MESSAGES}"]
    argv += ["--output=json", "--output-fields=MESSAGE", "--no-pager"]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, timeout=30, check=False)
    entries = [json.loads(line) for line in done.stdout.splitlines()]
    return [
        (int(entry["__REALTIME_TIMESTAMP"]) / 1e6, entry["MESSAGE"])
        for entry in entries
        if isinstance(entry.get("MESSAGE"), str)
    ]


def tail(directory: str, name: str) -> list[str]:
    """The last lines of a file; the first of them may be cut."""
    # Root reads what the boot service wrote: no link to something else, no pipe that never ends.
    try:
        parent = os.open(directory, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
        try:
            handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=parent)
        finally:
            os.close(parent)
        with os.fdopen(handle, "rb") as file:
            there = os.fstat(handle)
            if not stat.S_ISREG(there.st_mode) or there.st_nlink > 1:
                return []
            file.seek(max(0, there.st_size - TAIL))
            return file.read(TAIL).decode("utf-8", "replace").splitlines()
    except OSError:
        return []


def records(lines: Iterable[str]) -> list[dict[str, object]]:
    """The JSON objects among the lines: a full disk, or the tail's start, cuts a line off."""
    found = []
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            found.append(record)
    return found


def events(directory: str, machines: Sequence[str]) -> list[dict[str, object]]:
    names = [machine.replace(":", "-") for machine in machines] + list(OTHERS)
    files = [f"{name}{part}.jsonl" for name in names for part in (".1", "")]
    return [record for name in files for record in records(tail(directory, name))]


def main(want: dict[str, Any]) -> None:
    dnsmasq = journal(want["dnsmasq"], want["since"])
    access = journal(want["files"], want["since"])
    print(
        json.dumps(
            {
                "dnsmasq": [each for each in dnsmasq if re.search(want["wanted"], each[1])],
                "access": records(text for _, text in access if text.startswith("{")),
                "events": events(want["events"], want["machines"]),
            }
        )
    )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
