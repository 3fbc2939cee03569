"""Runs on a compute node: print the titles of vLLM's processes that hold a rank, as JSON.

Standard library only. For ranks that no Ray knows (`executor: mp`).
"""

from __future__ import annotations

import json
import re
from pathlib import Path

#: vLLM's own prefix can be another one (VLLM_PROCESS_NAME_PREFIX).
RANK = re.compile(r"^\w+::Worker")


def titles(proc: Path) -> list[str]:
    """What processes that hold ranks call themselves."""
    found = []
    for each in proc.glob("[0-9]*/cmdline"):
        try:
            title = each.read_bytes().split(b"\0")[0].decode(errors="replace").strip()
        except OSError:  # it ended meanwhile
            continue
        if RANK.match(title):
            found.append(title)
    return sorted(found)


if __name__ == "__main__":
    print(json.dumps(titles(Path("/proc"))))
