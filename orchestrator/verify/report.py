"""What verification found: checks, and the three forms they are given out in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal
from xml.etree import ElementTree

from rich.table import Table
from rich.text import Text

#: What XML 1.0 cannot hold, not even escaped; output of a broken node may have it.
NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


Severity = Literal["failure", "warning"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: what it should be, what it is, where to look further.

    ``severity``: what it is if it is not ``ok``. A warning is shown, and the report is still right.
    """

    name: str
    node: str
    ok: bool
    expected: str
    seen: str
    look: str
    severity: Severity = "failure"
    #: False: it was not made, for the reason in ``seen``; that is no failure.
    ran: bool = True

    @property
    def failed(self) -> bool:
        return not self.ok and self.severity == "failure"

    @property
    def warns(self) -> bool:
        return not self.ok and self.severity == "warning"


@dataclass(frozen=True)
class Report:
    """All checks of one verification, in the order they are shown."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether everything is as it should be; nothing looked at is not."""
        return any(check.ran for check in self.checks) and not self.failed

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.failed)

    @property
    def warnings(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.warns)

    @property
    def summary(self) -> str:
        """``40 of 42 checks passed, 1 warning, 3 not run``"""
        ran = [check for check in self.checks if check.ran]
        passed = len([check for check in ran if check.ok])
        parts = [f"{passed} of {len(ran)} checks passed"]
        if count := len(self.warnings):
            parts.append(f"{count} warning{'s' * (count != 1)}")
        if left := len(self.checks) - len(ran):
            parts.append(f"{left} not run")
        return ", ".join(parts)

    def document(self) -> dict[str, Any]:
        return {"ok": self.ok, "checks": [asdict(check) for check in self.checks]}

    def table(self) -> Table:
        """For a terminal: a line a check; where one failed, also what to do about it."""
        table = Table("node", "check", "", "seen", box=None, pad_edge=False)
        for check in self.checks:
            # Text, not str: a node's output is no markup.
            table.add_row(Text(check.node), Text(check.name), _mark(check), Text(_details(check)))
        return table

    def junit(self) -> str:
        """The report as JUnit XML, for CI servers: a test case a check, its class the node."""
        suite = ElementTree.Element(
            "testsuite",
            name="orchestrate verify",
            tests=str(len(self.checks)),
            failures=str(len(self.failed)),
            errors="0",
            skipped=str(sum(not check.ran for check in self.checks)),
        )
        for check in self.checks:
            case = ElementTree.SubElement(
                suite, "testcase", classname=_xml(check.node), name=_xml(check.name)
            )
            if check.warns:  # JUnit has no warnings
                output = ElementTree.SubElement(case, "system-out")
                output.text = _xml(f"warning: {_details(check)}")
            if not check.ran:
                ElementTree.SubElement(case, "skipped", message=_xml(check.seen))
            if check.failed:
                failure = ElementTree.SubElement(case, "failure", message=_xml(check.seen))
                failure.text = _xml(_details(check))
        return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def report(checks: Sequence[Check]) -> Report:
    """A report of ``checks``."""
    return Report(tuple(checks))


def _mark(check: Check) -> Text:
    if check.warns:
        return Text("warning", "yellow")
    if check.failed:
        return Text("FAILED", "bold red")
    return Text("ok", "green") if check.ran else Text("not run", "dim")


def _details(check: Check) -> str:
    if check.ok:
        return check.seen
    return f"{check.seen}\nexpected: {check.expected}\nlook: {check.look}"


def _xml(text: str) -> str:
    return NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
