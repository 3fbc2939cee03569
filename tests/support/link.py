"""The probe of a link, its two ends run here."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from orchestrator.performance.probe import node_link
from orchestrator.performance.results.probe import Spread


def measured(port: int, asked: list[str], served: list[str], addresses: tuple[str, str]) -> Any:
    """What node_link measures; each end's command is what goes before Python."""
    own, other = addresses
    program = str(node_link.__file__)
    with subprocess.Popen(
        [*served, sys.executable, program, "serve", other, str(port)], stdout=subprocess.PIPE
    ) as server:
        ask = [*asked, sys.executable, program, "ask", other, str(port), own, "256,65536"]
        done = subprocess.run(ask, capture_output=True, text=True, timeout=120, check=True)
        server.communicate(timeout=60)
    assert server.returncode == 0
    return json.loads(done.stdout)


def as_throttled(found: Spread, bits_per_s: float) -> bool:
    """Is that this cable? It never carries more than it may; a machine that is busy carries less.

    ``found`` is in bytes a second. The half is far from what a wrong unit would give, a free cable
    or the burst at the beginning."""
    return found.median * 8 < 1.02 * bits_per_s and found.high * 8 > 0.5 * bits_per_s
