"""`orchestrate plan`: what `up` would change, for people and for programs. Pure.

A difference that several nodes share is shown once, under the names of all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from orchestrator.core.nodeset import fold, grouped
from orchestrator.core.visible import one_line
from orchestrator.node.configure import Outcome
from orchestrator.node.differences import NOTHING, TITLES, Difference

#: Exit codes, as of `diff` and `terraform plan`, but for their order: 1 is "could not look".
SAME, UNKNOWN, DIFFERS = 0, 1, 2
#: Lines shown of a file that is not there yet; --json has all of them.
NEW_LINES = 20

STYLES = {"+": "green", "-": "red", "@": "cyan"}


@dataclass(frozen=True)
class Block:
    """Differences that exactly these nodes have."""

    nodes: tuple[str, ...]
    differences: tuple[Difference, ...]


@dataclass(frozen=True)
class Plan:
    """What was found, by node in the profile's order.

    ``off``: nodes without power; ``warnings``: what is to be expected of nodes as they are;
    ``left``: which nodes left the profile, in words.
    """

    outcomes: Mapping[str, Outcome]
    off: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    left: str = ""

    @property
    def unknown(self) -> dict[str, str]:
        """By node, why it could not be looked at."""
        return {
            name: "off" if name in self.off else outcome.error
            for name, outcome in self.outcomes.items()
            if name in self.off or outcome.error
        }

    @property
    def differing(self) -> tuple[str, ...]:
        return tuple(name for name, outcome in self.outcomes.items() if outcome.differences)

    @property
    def code(self) -> int:
        """The exit code. What differs says more than what is unknown beside it."""
        if self.differing:
            return DIFFERS
        return UNKNOWN if self.unknown else SAME

    def blocks(self) -> list[Block]:
        """Each difference once, with the nodes that have it; what most nodes share comes first."""
        nodes: dict[Difference, list[str]] = {}
        for name, outcome in self.outcomes.items():
            for difference in outcome.differences:
                nodes.setdefault(difference, []).append(name)
        shared: dict[tuple[str, ...], list[Difference]] = {}
        for difference, names in nodes.items():
            shared.setdefault(tuple(names), []).append(difference)
        blocks = [Block(names, tuple(found)) for names, found in shared.items()]
        return sorted(blocks, key=lambda block: -len(block.nodes))  # stable: profile order

    def document(self) -> dict[str, Any]:
        """As JSON types; no secret in it."""
        return {
            "differs": bool(self.differing),
            "unknown": self.unknown,
            "warnings": list(self.warnings),
            "left": self.left,
            "nodes": {name: self._node(name) for name in self.outcomes},
            "groups": [
                {
                    "nodes": list(block.nodes),
                    "resources": [difference.resource for difference in block.differences],
                }
                for block in self.blocks()
            ],
        }

    def _node(self, name: str) -> dict[str, Any]:
        outcome = self.outcomes[name]
        state = "differs" if outcome.differences else "same"
        return {
            "state": "unknown" if name in self.unknown else state,
            "unchanged": outcome.unchanged,
            "differences": [
                {
                    "resource": item.resource,
                    "changes": list(item.changes),
                    "details": list(item.details),
                    "diff": item.diff,
                    "error": item.error,
                }
                for item in outcome.differences
            ],
        }

    def summary(self) -> Iterator[str]:
        """Nodes with the same outcome in one line: ``compute[0-63]: 18 would change``."""
        texts = {
            name: self._said(name, outcome)
            for name, outcome in self.outcomes.items()
            if name not in self.unknown
        }
        for text, names in grouped(texts).items():
            yield f"{fold(names)}: {text}"
        alike_reasons = {name: alike(reason, name) for name, reason in self.unknown.items()}
        for names in grouped(alike_reasons).values():
            reason = self.unknown[names[0]]
            hint = "; 'up' boots it" if names[0] in self.off else ""
            yield f"{fold(names)}: unknown: {reason.splitlines()[0]}{hint}"
        if self.left:
            yield self.left

    def _said(self, name: str, outcome: Outcome) -> str:
        if not outcome.differences:
            return "nothing differs"
        said = f"{len(outcome.differences)} would change, {outcome.unchanged} unchanged"
        return said + (f", {len(outcome.failed)} would fail" if outcome.failed else "")


def alike(text: str, node: str) -> str:
    """A message without what is the node's own in it: its name and addresses."""
    named = re.sub(rf"(?<![\w.-]){re.escape(node)}(?![\w-])", "NODE", text)
    return re.sub(r"\b\d{1,3}(?:\.\d{1,3}){3}\b", "ADDRESS", named)


def rendered(plan: Plan) -> Iterator[Text]:
    """The plan for a terminal, a line each."""
    for block in plan.blocks():
        title = fold(block.nodes)
        if len(block.nodes) > 2:
            title += f" ({len(block.nodes)} nodes)"
        yield Text(title, "bold")
        for kind, heading in TITLES.items():
            of_kind = [item for item in block.differences if item.kind == kind]
            if of_kind:
                yield Text(f"  {heading}")
                for item in of_kind:
                    yield from _item(item)
        yield Text()
    for line in plan.summary():
        yield Text(one_line(line))


def _item(item: Difference) -> Iterator[Text]:
    details = [text for text in item.details if not (item.diff and text == "content")]
    told = "; ".join(details)
    yield Text(f"    {one_line(item.name)}" + (f": {one_line(told)}" if told else ""))
    if item.error:
        yield Text(f"      cannot be fixed: {one_line(item.error)}", "red")
    lines = item.diff.split("\n") if item.diff else []
    if lines and lines[0] == f"--- {NOTHING}" and len(lines) > NEW_LINES + 3:
        cut = len(lines) - NEW_LINES - 3
        lines = [*lines[: NEW_LINES + 3], f"... {cut} more lines: --json has them"]
    for line in lines:
        yield Text(f"      {one_line(line)}", STYLES.get(line[:1], "dim"))


def outcomes_told(
    changed: Mapping[str, Sequence[str]], failures: Mapping[str, Exception]
) -> tuple[list[str], list[str]]:
    """What `up` came to, and what failed: nodes with the same outcome in one line.

    ``changed``: by node, the resources; ``failures``: by node, why it is not as it should be.
    """
    texts = {
        name: f"{len(resources)} changed" if resources else "nothing changed"
        for name, resources in changed.items()
        if name not in failures
    }
    reasons = {name: alike(str(reason), name) for name, reason in failures.items()}
    return (
        [f"{fold(names)}: {text}" for text, names in grouped(texts).items()],
        [f"{fold(names)}: {failures[names[0]]}" for names in grouped(reasons).values()],
    )
