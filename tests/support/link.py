"""The probe of a link, its two ends run here."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from orchestrator.performance.probe import node_link


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
