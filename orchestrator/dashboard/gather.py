"""Look at many sources side by side, each in a thread of its own: none waits for another.

A source that does not answer keeps its last value, with its age and the reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from threading import Event, Lock, Thread
from typing import Any, Protocol

from orchestrator.core.errors import UserError
from orchestrator.core.run import streaming
from orchestrator.core.waiting import as_long_as

#: Seconds between two rounds, and between two tries to start a program that ended.
ROUND, AGAIN = 0.5, 3.0
#: Seconds for a program on a node to end when its input does.
PATIENCE = 2.0
#: The longest line of one: a node may send anything.
MOST_LINE = 1 << 16


class Polled:
    """Something to look at every so many seconds. ``patience``: seconds after which it is late;
    ``after``: what has to be looked at before, the first time."""

    def __init__(
        self,
        name: str,
        look: Callable[[], Any],
        every: float,
        patience: float = 10.0,
        after: Polled | None = None,
    ) -> None:
        self.name, self.every, self.patience, self.after = name, every, patience, after
        self.value: Any = None
        self.error = ""
        #: When the value came, and when the look that still goes on began: monotonic clock.
        self.came: float | None = None
        self._began: float | None = None
        self._next = 0.0
        self._look = look

    def again(self) -> None:
        """Look as soon as possible: something changed."""
        self._next = 0.0

    def start(self) -> None:
        """Look in a thread, if it is time and the last look has ended."""
        if self.after and not self.after.tried:
            return
        if self._began is None and time.monotonic() >= self._next:
            self._began = time.monotonic()
            Thread(target=self._looking, name=self.name, daemon=True).start()

    def _looking(self) -> None:
        # First: what asks for another look meanwhile gets one.
        self._next = time.monotonic() + self.every
        try:
            self.value = self._look()
            self.came, self.error = time.monotonic(), ""
        except UserError as error:
            self.error = f"{error.message.splitlines()[0]}\n{error.hint or ''}".strip()
        except Exception as bug:  # one source must not take the page along
            self.error = f"this is a bug in orchestrate: {type(bug).__name__}: {bug}"
        finally:
            self._began = None

    @property
    def tried(self) -> bool:
        """Whether a look has ended."""
        return self.came is not None or bool(self.error)

    @property
    def late(self) -> float:
        """Seconds that a look takes already, if that is too long."""
        began = self._began
        took = time.monotonic() - began if began is not None else 0.0
        return took if took > self.patience else 0.0

    @property
    def problem(self) -> str:
        """Why its value is not current; empty if it is."""
        return f"no answer for {self.late:.0f} s" if self.late else self.error

    def document(self) -> dict[str, Any]:
        age = None if self.came is None else round(time.monotonic() - self.came, 1)
        return {"name": self.name, "age_s": age, "problem": self.problem, "every_s": self.every}


class Tail:
    """A program that prints lines for as long as somebody looks; it is started again if it ends.

    ``argv``: its local command, None while it makes no sense; ``take``: gets each line.
    """

    def __init__(
        self,
        name: str,
        argv: Callable[[], Sequence[str] | None],
        take: Callable[[str], None],
        most: int = MOST_LINE,
    ) -> None:
        self.name = name
        self.heard: float | None = None
        #: Whether it is to run: a machine that is off runs nothing.
        self.wanted = False
        self._argv, self._take, self._most = argv, take, most

    @property
    def age(self) -> float | None:
        """Seconds since its last line."""
        return None if self.heard is None else time.monotonic() - self.heard

    def follow(self, network: Callable[[], AbstractContextManager[object]], over: Event) -> None:
        """Run it until ``over``."""
        while not over.is_set():
            try:
                argv = self._argv()
                self.wanted = argv is not None
                if argv is not None:
                    with network():
                        self._run(argv, over)
            except (UserError, OSError):
                pass  # its silence shows, and a source of the same node says why
            over.wait(AGAIN if self.wanted else ROUND)

    def _run(self, argv: Sequence[str], over: Event) -> None:
        ended = Event()
        with streaming(argv, self._line, ended=ended.set, patience=PATIENCE):
            while not (ended.is_set() or over.wait(ROUND)):
                pass

    def _line(self, text: str) -> None:
        if len(text) <= self._most:
            self._take(text)
            self.heard = time.monotonic()


class View(Protocol):
    """A kind of cluster: what to look at, and the document to make of it."""

    @property
    def sources(self) -> Sequence[Polled]:
        """What is looked at again and again."""

    @property
    def tails(self) -> Sequence[Tail]:
        """The programs that run on nodes meanwhile."""

    def network(self) -> AbstractContextManager[object]:
        """Enter the network over which nodes are reached."""

    def document(self) -> dict[str, Any]:
        """What is known now. Called by one thread at a time."""


class Feed:
    """A view that is kept current between ``start`` and ``stop``."""

    def __init__(self, view: View) -> None:
        self.view = view
        self._lock = Lock()
        self._over: Event | None = None
        self._threads: list[Thread] = []

    def start(self) -> None:
        self._over = over = Event()
        self._threads = [
            Thread(target=tail.follow, args=(self.view.network, over), daemon=True)
            for tail in self.view.tails
        ]
        self._threads.append(Thread(target=self._rounds, args=(over,), daemon=True))
        for thread in self._threads:
            thread.start()

    def _rounds(self, over: Event) -> None:
        while not over.is_set():
            for source in self.view.sources:
                source.start()
            over.wait(ROUND)

    def stop(self) -> None:
        """No more looks begin, and no program runs on a node when it returns."""
        if self._over:
            self._over.set()
        for thread in self._threads:
            thread.join(2 * PATIENCE + AGAIN)
        self._over, self._threads = None, []

    def document(self) -> dict[str, Any]:
        with self._lock:
            try:
                return {"time": time.time(), **self.view.document()}
            except Exception as bug:
                text = f"this is a bug in orchestrate: {type(bug).__name__}: {bug}"
                return {"time": time.time(), "state": "problem", "text": text}

    def settled(self, seconds: float) -> dict[str, Any]:
        """The document once every source was looked at, or is late, and the programs on nodes have
        said something, in at most so many seconds."""

        def waits() -> bool:
            sources, tails = self.view.sources, self.view.tails
            looks = any(not source.tried and not source.late for source in sources)
            return looks or any(tail.wanted and tail.heard is None for tail in tails)

        as_long_as(waits, seconds, ROUND)
        return self.document()
