"""A log of the boot steps that `orchestrate up` itself did to each node."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.provision.netboot.sources import DONE

#: Only the last so many lines are read.
LINES = 1000


@dataclass(frozen=True)
class Diary:
    """A cluster's timeline.jsonl: a line per step."""

    path: Path

    def add(self, node: str, step: str, status: str = DONE, when: float | None = None) -> None:
        """Log that a node reached a step (of timeline.STEPS) now, or at ``when`` (Unix time)."""
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
