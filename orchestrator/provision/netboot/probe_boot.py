"""Runs on the control node, sent over SSH: print what its logs tell of boots, as JSON.

Standard library only. Its one argument is a JSON document: state (a directory), unit, since (text
for journalctl), wanted (a regular expression). Prints dnsmasq: [[time, message], ...] of the wanted
messages, access and events: the lines of the logs.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

#: The last so many lines of each log.
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
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            found = file.readlines()[-LINES:]
    except OSError:
        return []
    records = []
    for line in found:
        try:
            records.append(json.loads(line))
        except ValueError:  # cut off by a full disk
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
