"""What people see: one console for results (stdout), one for progress (stderr)."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console

#: Results. Plain text when not a terminal; no highlighting, so that addresses stay readable.
out = Console(highlight=False, soft_wrap=True)
#: Progress, warnings, errors.
err = Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(document: Any) -> None:
    """Print a JSON document on stdout, and nothing else."""
    print(json.dumps(document, indent=2, default=str))
