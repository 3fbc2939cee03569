"""Progress of a fetch: a bar on a terminal, a line every tenth otherwise."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from rich import progress as bars

from orchestrator.core.console import err
from orchestrator.core.sizes import human_size


class Progress:
    """Counts bytes and files from several threads."""

    def __init__(self, size: int, files: int) -> None:
        self.size, self.files = size, files
        self.bytes = self.finished = self.told = 0
        self.lock = threading.Lock()
        self.bar = bars.Progress(
            bars.TextColumn("{task.fields[files]} files"),
            bars.BarColumn(),
            bars.DownloadColumn(binary_units=True),
            bars.TransferSpeedColumn(),
            bars.TimeRemainingColumn(),
            console=err,
            disable=not err.is_terminal,
        )

    def __enter__(self) -> Self:
        if not err.is_terminal:
            err.print(f"fetching {self.files} files, {human_size(self.size)}")
        self.bar.start()
        self.task = self.bar.add_task("fetch", total=self.size, files=self._files())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def advance(self, count: int) -> None:
        """``count`` more bytes are here (negative: they had to be thrown away)."""
        with self.lock:
            self.bytes += count
            self.size = max(self.size, self.bytes)  # files of unknown size are not in it at first
            self.bar.update(self.task, completed=self.bytes, total=self.size)
            tenth = self.bytes * 10 // max(self.size, 1)
            if tenth > self.told:
                self.told = tenth
                if not err.is_terminal:
                    err.print(
                        f"{tenth * 10} %: {human_size(self.bytes)} of {human_size(self.size)}"
                    )

    def finish(self) -> None:
        with self.lock:
            self.finished += 1
            self.bar.update(self.task, files=self._files())

    def _files(self) -> str:
        return f"{self.finished}/{self.files}"
