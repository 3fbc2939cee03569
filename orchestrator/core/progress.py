"""Who is at which step: a live table on a terminal, plain lines elsewhere; and the record of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType

from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator.core.console import err
from orchestrator.core.errors import UserError

#: The row of what concerns no single node.
CLUSTER = "cluster"

MARKS = {"start": ("…", "cyan"), "done": ("ok", "green"), "failed": ("FAILED", "bold red")}


@dataclass
class Entry:
    """One step of one node. Times are seconds since the start of the whole."""

    status: str
    started: float
    ended: float | None = None
    detail: str = ""


@dataclass
class Done:
    """How a step says more about its end."""

    detail: str = ""
    failed: bool = False


@dataclass
class Board:
    """Steps by node, in the order in which they began. Events may come from any thread."""

    quiet: bool = False
    entries: dict[tuple[str, str], Entry] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._begun = time.monotonic()
        self._lock = threading.Lock()
        live = err.is_terminal and not self.quiet
        self._live = (
            Live(console=err, get_renderable=self._table, refresh_per_second=8) if live else None
        )

    def __enter__(self) -> Board:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begun

    @contextmanager
    def step(self, node: str, step: str) -> Iterator[Done]:
        """The body is the step; what it raises is shown as the failure."""
        done = Done()
        self.event(node, step, "start")
        try:
            yield done
        except UserError as error:
            self.event(node, step, "failed", error.message.splitlines()[0])
            raise
        except BaseException as error:
            self.event(node, step, "failed", type(error).__name__)
            raise
        self.event(node, step, "failed" if done.failed else "done", done.detail)

    def event(self, node: str, step: str, status: str, detail: str = "") -> None:
        """A step begins ("start"), or ends ("done", "failed")."""
        with self._lock:
            now = self.seconds
            entry = self.entries.setdefault((node, step), Entry(status, now))
            entry.status = status
            entry.detail = detail
            entry.ended = None if status == "start" else now
            if status != "start":
                self.notes.pop(node, None)
            if self._live is None and not self.quiet:
                word = {"start": "...", "done": "done"}.get(status, "FAILED")
                err.print(
                    f"{now:6.1f} s  {node:<10} {step:<8} {word}  {detail}".rstrip(), markup=False
                )

    def note(self, node: str, text: str) -> None:
        """What a node is waited for, until its next event."""
        with self._lock:
            if self.notes.get(node) != text:
                self.notes[node] = text
                if self._live is None and not self.quiet:
                    err.print(f"{self.seconds:6.1f} s  {node:<10} {text}", markup=False)

    def document(self) -> dict[str, dict[str, dict[str, object]]]:
        """node -> step -> status, start and duration in seconds, detail."""
        found: dict[str, dict[str, dict[str, object]]] = {}
        for (node, step), entry in self.entries.items():
            took = None if entry.ended is None else round(entry.ended - entry.started, 2)
            found.setdefault(node, {})[step] = {
                "status": entry.status,
                "started": round(entry.started, 2),
                "seconds": took,
                "detail": entry.detail,
            }
        return found

    def _table(self) -> Table:
        with self._lock:
            steps = list(dict.fromkeys(step for _, step in self.entries))
            nodes = list(dict.fromkeys(node for node, _ in self.entries))
            table = Table("node", *steps, "", box=None, pad_edge=False)
            for node in nodes:
                cells = [self._cell(self.entries.get((node, step))) for step in steps]
                table.add_row(node, *cells, Text(self.notes.get(node, ""), "dim"))
            return table

    def _cell(self, entry: Entry | None) -> Text:
        if entry is None:
            return Text("")
        mark, style = MARKS[entry.status]
        took = (entry.ended or self.seconds) - entry.started
        return Text(f"{mark} {took:.0f}s", style)
