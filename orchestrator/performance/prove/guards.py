"""Guards on nodes: they change the nodes for us, and put them back if we no longer can."""

from __future__ import annotations

import json
import secrets
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.core.errors import UserError
from orchestrator.core.run import Talk, talking
from orchestrator.performance.prove.changes import Argv, Edit

#: The guard's source text, which is sent to the nodes.
GUARD = Path(__file__).with_name("node_guard.py").read_text(encoding="utf-8")
#: Seconds for an answer: of a change, or its undoing, a few commands and tries.
ANSWER = 150.0
#: How a report says what puts a change back.
PUT_BACK = (
    "a guard process on the node: it undoes the change when this program ends, when the connection "
    "does, and {seconds:.0f} s after each change"
)


@dataclass(frozen=True)
class Site:
    """Where a guard runs. ``argv``: the local command that runs words there; ``python``: there."""

    name: str
    argv: Callable[[Sequence[str]], list[str]]
    python: Argv

    def by_hand(self, words: Sequence[str]) -> str:
        """What a person types here to run words there."""
        return shlex.join(self.argv(words))


@dataclass(frozen=True)
class Ran:
    """What a command there left."""

    code: int
    out: str
    err: str


class NotPutBack(UserError):
    """Something of a change is left."""

    def __init__(self, left: Sequence[str]) -> None:
        self.left = tuple(left)
        super().__init__(
            "these changes could not be undone:\n" + "\n".join(f"  {each}" for each in left),
            "Run these commands by hand. A guard that still runs there tries them by itself.",
        )


class Guards:
    """The guards of some places; each starts when it is first needed."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._talks: dict[str, Talk] = {}
        self._held: dict[str, tuple[Site, Edit]] = {}

    def run(self, place: Site, argv: Sequence[str]) -> Ran:
        """Run a command there that changes nothing. Raises UserError where nobody answers."""
        try:
            return self._ran(place, argv)
        except UserError:
            if place.name in self._held or not self._talks.pop(place.name, None):
                raise
        return self._ran(place, argv)  # a guard that had nothing to do ends some time

    def apply(
        self, changes: Mapping[str, Edit], places: Mapping[str, Site], seconds: float
    ) -> None:
        """Make a change in each place, for so many seconds at most. Raises UserError, with all of
        it undone, where one cannot be made."""
        for name, change in changes.items():
            place = places[name]
            self._held[name] = (place, change)
            asked = {"apply": change.apply, "undo": change.undo, "seconds": seconds}
            failed = self._ask(place, asked).get("failed")
            if failed:
                said = str(failed["err"]).strip() or f"exit code {failed['code']}"
                text = f"{name}: {shlex.join(failed['argv'])}: {said}"
                self.undo()
                raise UserError(f"the change could not be made: {text}")

    def undo(self) -> None:
        """Undo all changes. Raises NotPutBack where something is left, UserError where a change was
        undone before, so that the load under it does not count."""
        left: list[str] = []
        early: list[str] = []
        for name, (place, change) in list(self._held.items()):
            remain, why = self._undone(place, change)
            left += [place.by_hand(argv) for argv in remain]
            early += [f"{name}: {why}"] if why else []
            del self._held[name]
        if left:
            raise NotPutBack(left)
        if early:
            raise UserError(
                f"the change did not last as long as the load: {'; '.join(early)}",
                "It is undone. Try again, or with a shorter workload (bench.workloads).",
            )

    def _undone(self, place: Site, change: Edit) -> tuple[Sequence[Argv], str]:
        """The commands that failed; and why the change may have been undone before, if so."""
        try:
            found = self._ask(place, {"undo": True})
            late = "it lasted too long for its guard" if found["expired"] else ""
            return [tuple(each["argv"]) for each in found["left"]], late
        except UserError:
            self._talks.pop(place.name, None)
        lost = "the connection to its guard was lost"
        try:
            failed = [argv for argv in change.undo if self._ran(place, argv).code]
        except UserError:
            return change.undo, lost
        return failed, lost

    def _ran(self, place: Site, argv: Sequence[str]) -> Ran:
        found = self._ask(place, {"run": list(argv)})
        return Ran(int(found["code"]), str(found["out"]), str(found["err"]))

    def _ask(self, place: Site, asked: dict[str, Any]) -> dict[str, Any]:
        if place.name not in self._talks:
            argv = place.argv([*place.python, "-c", GUARD])
            self._talks[place.name] = self._stack.enter_context(talking(argv))
        # Of its own: after an interruption, the answer to what was asked before may still come.
        mark = secrets.token_hex(16)
        text = self._talks[place.name].ask(json.dumps(asked | {"mark": mark}), mark, ANSWER)
        try:
            found = json.loads(text or "")
        except ValueError:
            found = None
        if not isinstance(found, dict):
            hint = f"To repeat: {place.by_hand(['true'])}"
            raise UserError(f"{place.name}: the program that changes it does not answer", hint)
        return found


@contextmanager
def guarded() -> Iterator[Guards]:
    """Guards for the body. What is changed at its end, however it ends, is undone."""
    with ExitStack() as stack:
        guards = Guards(stack)
        try:
            yield guards
        finally:
            guards.undo()
