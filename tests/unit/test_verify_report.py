"""The report's forms, with hostile strings."""

from __future__ import annotations

import json
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from orchestrator.verify import Check, Report
from orchestrator.verify.report import NOT_XML

GOOD = Check("image", "compute0", True, "abc", "abc", "on compute0: cat /proc/cmdline")
BAD = Check("hostname", "compute1", False, "compute1", "debian", "on compute1: hostnamectl")
WARNING = Check("HuC", "compute1", False, "a line", "no line", "nothing to do", "warning")
LEFT = Check("torch", "compute1", True, "", "no card", "", ran=False)
HOSTILE = ']]></failure><x a="&\'"> [bold]no markup[/bold] [/] \x00\x1b[31m\ud800'


def test_the_document() -> None:
    assert Report((GOOD, BAD)).document() == {
        "ok": False,
        "checks": [
            {
                "name": "image",
                "node": "compute0",
                "ok": True,
                "expected": "abc",
                "seen": "abc",
                "look": "on compute0: cat /proc/cmdline",
                "severity": "failure",
                "ran": True,
            },
            {
                "name": "hostname",
                "node": "compute1",
                "ok": False,
                "expected": "compute1",
                "seen": "debian",
                "look": "on compute1: hostnamectl",
                "severity": "failure",
                "ran": True,
            },
        ],
    }
    assert json.loads(json.dumps(Report((GOOD,)).document()))["ok"] is True


def test_a_warning_leaves_the_report_right() -> None:
    report = Report((GOOD, WARNING))
    assert report.ok
    assert report.summary == "1 of 2 checks passed, 1 warning"
    assert report.document()["checks"][1]["severity"] == "warning"
    console = Console(width=100)
    with console.capture() as capture:
        console.print(report.table())
    shown = capture.get()
    assert "warning" in shown and "FAILED" not in shown
    assert "look: nothing to do" in shown
    suite = ElementTree.fromstring(report.junit())
    assert suite.get("failures") == "0"
    warned = suite.findall("testcase")[1]
    assert warned.find("failure") is None
    assert (warned.findtext("system-out") or "").startswith("warning: no line")


def test_a_warning_hides_no_failure() -> None:
    report = Report((WARNING, BAD))
    assert not report.ok
    assert report.failed == (BAD,) and report.warnings == (WARNING,)
    assert report.summary == "0 of 2 checks passed, 1 warning"


def test_nothing_looked_at_is_not_fine() -> None:
    assert not Report(()).ok
    assert not Report((LEFT,)).ok and Report((GOOD, LEFT)).ok


def test_what_was_not_run_is_no_failure_and_no_pass() -> None:
    report = Report((GOOD, LEFT))
    assert report.summary == "1 of 1 checks passed, 1 not run"
    suite = ElementTree.fromstring(report.junit())
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("2", "0", "1")
    skipped = suite.findall("testcase")[1].find("skipped")
    assert skipped is not None and skipped.get("message") == "no card"
    console = Console(width=100)
    with console.capture() as capture:
        console.print(report.table())
    assert "not run" in capture.get()


def test_the_table_says_what_was_expected_and_where_to_look() -> None:
    bad = Check("units", "compute1", False, "[expected]", "[/seen]", "[bold]look[/bold]")
    console = Console(width=100)
    with console.capture() as capture:
        console.print(Report((GOOD, bad)).table())
    shown = capture.get()
    assert "FAILED" in shown
    for text in ("[/seen]", "expected: [expected]", "look: [bold]look[/bold]"):
        assert text in shown


def test_junit_counts_and_explains() -> None:
    suite = ElementTree.fromstring(Report((GOOD, BAD)).junit())
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    good, bad = suite.findall("testcase")
    assert good.find("failure") is None
    assert (bad.get("classname"), bad.get("name")) == ("compute1", "hostname")
    failure = bad.find("failure")
    assert failure is not None
    assert failure.get("message") == "debian"
    assert failure.text is not None
    assert "expected: compute1" in failure.text
    assert "look: on compute1: hostnamectl" in failure.text


@given(st.text(st.characters(exclude_categories=[])))
def test_junit_is_well_formed_whatever_a_node_says(said: str) -> None:
    for text in (said, HOSTILE + said):
        written = Report((Check(text, text, False, text, text, text),)).junit()
        suite = ElementTree.fromstring(written.encode())
        assert len(suite) == 1
        name = suite[0].get("name")
        assert name is not None
        # A newline in an attribute is written as a reference, so it comes back.
        assert name == NOT_XML.sub("\ufffd", text)
