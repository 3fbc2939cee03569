"""What people see: one console for results (stdout), one for progress (stderr)."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console

#: Columns where there is no terminal to ask.
WIDTH = 160

#: Results. Plain text when not a terminal; no highlighting, so that addresses stay readable.
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDTH)
#: Progress, warnings, errors.
err = Console(
    stderr=True, highlight=False, soft_wrap=True, width=None if sys.stderr.isatty() else WIDTH
)


def print_json(document: Any) -> None:
    """Print a JSON document on stdout, and nothing else."""
    print(json.dumps(document, indent=2, default=str))
