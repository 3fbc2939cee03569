"""The document of a cluster whose control host is another computer: made there, sent by SSH."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

from orchestrator.dashboard.gather import Polled, Tail

#: The longest document, and seconds without one: it comes every two, once the command has started.
MOST, SILENT = 4 << 20, 15.0


class There:
    """What `dashboard --json --follow` prints on the control host, while somebody looks here."""

    sources: Sequence[Polled] = ()

    def __init__(self, name: str, host: str, argv: Sequence[str]) -> None:
        self.name, self.host = name, host
        self._tail = Tail(host, lambda: argv, self._take, MOST)
        self.tails: Sequence[Tail] = [self._tail]
        self._last: dict[str, Any] = {}

    def network(self) -> AbstractContextManager[object]:
        return nullcontext()

    def _take(self, text: str) -> None:
        with suppress(ValueError):
            found = json.loads(text)
            self._last = found if isinstance(found, dict) else {}

    def document(self) -> dict[str, Any]:
        age = self._tail.age
        if age is None or not self._last:
            return {"name": self.name, "state": "asked", "text": f"{self.host} is being asked."}
        if age > SILENT:
            text = f"{self.host} does not answer for {age:.0f} s. What is below is of then."
            return {**self._last, "state": "problem", "text": text}
        return self._last
