"""What people see: one console for results (stdout), one for progress (stderr).

All that is shown goes through here (tests/test_lint.py), and here foreign text is made visible:
nobody who prints has to think of it. Nothing is read as markup either; styles are rich's Text.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from orchestrator.core.visible import visible

#: Columns where there is no terminal to ask.
WIDTH = 160


class _Console(Console):
    """rich's console; texts are made visible where they have their styles beside them already."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control:  # rich's own: a cursor that moves
                yield segment
            else:
                yield Segment(visible(segment.text), segment.style)


def _console(*, stderr: bool) -> Console:
    """Plain text when not a terminal; no highlighting, so that addresses stay readable."""
    at = sys.stderr if stderr else sys.stdout
    width = None if at.isatty() else WIDTH
    return _Console(
        stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=True, width=width
    )


#: Results.
out = _console(stderr=False)
#: Progress, warnings, errors.
err = _console(stderr=True)


def print_error(text: str, label: str = "error") -> None:
    """What went wrong, on stderr."""
    err.print(Text.assemble((f"{label}:", "red"), " ", text))


def print_warning(text: str) -> None:
    """What may go wrong, on stderr."""
    err.print(Text.assemble(("warning:", "yellow"), " ", text))


def print_text(text: str) -> None:
    """Text for a file or another program, on stdout: no line is folded, no tab becomes blanks."""
    sys.stdout.write(visible(text))
    sys.stdout.flush()


def print_json(document: Any, indent: int | None = 2) -> None:
    """Print a JSON document on stdout, and nothing else."""
    # JSON escapes what is not ASCII, and control characters but the last one.
    text = json.dumps(document, indent=indent, default=str)
    print_text(text.replace("\x7f", "\\u007f") + "\n")


class VisibleFormatter(logging.Formatter):
    """What libraries log: headers and bodies of servers may be in it."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))
