"""What `orchestrate up` did to each node, written down beside what the control node sees."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.provision.netboot.sources import DONE

#: The last so many lines are read.
LINES = 1000


@dataclass(frozen=True)
class Diary:
    """timeline.jsonl of a cluster: a line for each step."""

    path: Path

    def add(self, node: str, step: str, status: str = DONE, when: float | None = None) -> None:
        """A step of a boot (timeline.STEPS) was reached now, or at ``when``."""
        event = {"time": when or time.time(), "node": node, "step": step, "status": status}
        line = json.dumps(event)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(line + "\n")

    def read(self) -> list[dict[str, Any]]:
        try:
            lines = self.path.read_text().splitlines()[-LINES:]
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines]
