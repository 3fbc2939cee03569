"""What verification found: checks, and the three forms they are given out in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any
from xml.etree import ElementTree

from rich.table import Table
from rich.text import Text

#: What XML 1.0 cannot hold, not even escaped; output of a broken node may have it.
NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: what it should be, what it is, where to look further."""

    name: str
    node: str
    ok: bool
    expected: str
    seen: str
    look: str


@dataclass(frozen=True)
class Report:
    """All checks of one verification, in the order they are shown."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether everything is as it should be; nothing looked at is not."""
        return bool(self.checks) and all(check.ok for check in self.checks)

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.ok)

    def document(self) -> dict[str, Any]:
        """The report as JSON types: ``{"ok": bool, "checks": [...]}``."""
        return {"ok": self.ok, "checks": [asdict(check) for check in self.checks]}

    def table(self) -> Table:
        """For a terminal: a line a check; where one failed, also what to do about it."""
        table = Table("node", "check", "", "seen", box=None, pad_edge=False)
        for check in self.checks:
            mark = Text("ok", "green") if check.ok else Text("FAILED", "bold red")
            # Text, not str: a node's output is no markup.
            table.add_row(Text(check.node), Text(check.name), mark, Text(_details(check)))
        return table

    def junit(self) -> str:
        """The report as JUnit XML, for CI servers: a test case a check, its class the node."""
        suite = ElementTree.Element(
            "testsuite",
            name="orchestrate verify",
            tests=str(len(self.checks)),
            failures=str(len(self.failed)),
            errors="0",
        )
        for check in self.checks:
            case = ElementTree.SubElement(
                suite, "testcase", classname=_xml(check.node), name=_xml(check.name)
            )
            if not check.ok:
                failure = ElementTree.SubElement(case, "failure", message=_xml(check.seen))
                failure.text = _xml(_details(check))
        return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def report(checks: Sequence[Check]) -> Report:
    """A report of ``checks``."""
    return Report(tuple(checks))


def _details(check: Check) -> str:
    if check.ok:
        return check.seen
    return f"{check.seen}\nexpected: {check.expected}\nlook: {check.look}"


def _xml(text: str) -> str:
    return NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
