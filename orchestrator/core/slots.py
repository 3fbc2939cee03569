"""How many nodes are worked on at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.core.errors import UserError

#: Nodes at once, where nothing else is said.
JOBS = 32
#: Seconds after which work on a node is slow: another one may begin beside it.
PATIENCE = 10.0


class Slots:
    """At most ``jobs`` at once, but a slow one is not counted any more after ``patience`` s.

    So a limit spares this machine, while dead nodes never hold those that answer.
    """

    def __init__(self, jobs: int = JOBS, patience: float | None = None) -> None:
        self.patience = PATIENCE if patience is None else patience
        self._free = threading.Semaphore(jobs)
        self._closed = False

    def close(self) -> None:
        """Let nothing new begin: who waits for a slot, or asks for one, gets a UserError."""
        self._closed = True

    @property
    def closed(self) -> bool:
        """Whether work has to end: who waits between two tries looks here."""
        return self._closed

    @contextmanager
    def one(self) -> Iterator[None]:
        """Wait for a slot, and hold it while the body runs quickly. Raises UserError if closed."""
        self._free.acquire()
        if self._closed:
            self._free.release()
            raise UserError("interrupted before it began")
        given_back = threading.Lock()

        def give_back() -> None:
            if given_back.acquire(blocking=False):
                self._free.release()

        timer = threading.Timer(self.patience, give_back)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            give_back()
