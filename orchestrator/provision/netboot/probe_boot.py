"""Runs on the control node, sent over SSH: print its logs of boots as JSON. Standard library only.

The argument is a JSON object: `state` (a directory), `unit` and `since` (for journalctl), `wanted`
(a regular expression), `access` and `events` (file names in `state`). It prints a JSON object:
`dnsmasq`, [time, message] pairs of the unit's wanted messages, and `access` and `events`, the
parsed lines of those files.
"""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

#: Only the last so many lines of each log are printed.
LINES = 4000


def journal(unit: str, since: str, wanted: str) -> list[tuple[float, str]]:
    argv = ["journalctl", f"--unit={unit}", f"--since={since}", "--output=json"]
    argv += ["--output-fields=MESSAGE", "--no-pager"]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, timeout=30, check=False)
    entries = [json.loads(line) for line in done.stdout.splitlines()]
    messages = [
        (int(entry["__REALTIME_TIMESTAMP"]) / 1e6, entry["MESSAGE"])
        for entry in entries
        if isinstance(entry.get("MESSAGE"), str) and re.search(wanted, entry["MESSAGE"])
    ]
    return messages[-LINES:]


def lines(path: Path) -> list[dict[str, object]]:
    # Root reads what the boot service wrote: no link to something else, no pipe that never ends.
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, encoding="utf-8", errors="replace") as file:
            there = os.fstat(handle)
            if not stat.S_ISREG(there.st_mode) or there.st_nlink > 1:
                return []
            found = file.readlines()[-LINES:]
    except OSError:
        return []
    records = []
    for line in found:
        try:
            records.append(json.loads(line))
        except ValueError:  # a full disk cut the line off
            continue
    return records


def main(want: dict[str, str]) -> None:
    state = Path(want["state"])
    print(
        json.dumps(
            {
                "dnsmasq": journal(want["unit"], want["since"], want["wanted"]),
                "access": lines(state / want["access"]),
                "events": lines(state / want["events"]),
            }
        )
    )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
