"""What people see of foreign text: nothing that a terminal obeys, wherever it is printed."""

from __future__ import annotations

import json
import logging
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator.core import console
from orchestrator.core.visible import one_line, visible

HOSTILE = "a\x1b[2J\x1b]0;title\x07b\x9b31mc\x7fd\u202ee\u2028f\u200bg\r\x00[red]:smile:[/x]"
#: As it is shown, without what rich drops from texts by itself.
SHOWN = "a\\x1b[2J\\x1b]0;titleb\\x9b31mc\\x7fd\\u202ee\\u2028f\\u200bg\\x00[red]:smile:[/x]"


def harmless(text: str) -> bool:
    return all(c.isprintable() or c in "\n\t" or unicodedata.category(c) == "Zs" for c in text)


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters()))
def test_nothing_that_a_terminal_obeys_is_left(text: str) -> None:
    assert harmless(visible(text))
    assert "\n" not in one_line(text)
    if harmless(text):
        assert visible(text) == text


def test_what_is_meant_stays() -> None:
    for text in ("päivää\t→ 中文\n", "━━╸ ⠋ 10 %", "a\u00a0b"):
        assert visible(text) == text
    assert visible("a\x1b[2Jb\tc\r\u202e\ud800") == "a\\x1b[2Jb\tc\\r\\u202e\\ud800"


@pytest.mark.parametrize("name", ["out", "err"])
def test_each_way_to_print_is_covered(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    table.add_row(Text(HOSTILE, "bold red"))
    to = getattr(console, name)
    to.print(HOSTILE)
    to.print(Text(HOSTILE), style="red")
    to.print(table)
    to.rule(HOSTILE)
    to.log(HOSTILE)
    with Live(HOSTILE, console=to):
        pass
    said = "".join(capsys.readouterr())
    assert harmless(said)
    assert said.startswith(f"{SHOWN}\n{SHOWN}\n")


def test_on_a_terminal_only_styles_are_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    to = console._Console(force_terminal=True, markup=False, emoji=False, width=160)
    to.print(Text(HOSTILE, "red"))
    said = capsys.readouterr().out
    assert said == f"\x1b[31m{SHOWN}\x1b[0m\n"


def test_errors_warnings_and_text_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_error(HOSTILE)
    console.print_warning(HOSTILE)
    console.print_text(HOSTILE)
    out, err = capsys.readouterr()
    assert err == f"error: {SHOWN}\nwarning: {SHOWN}\n"
    assert harmless(out) and out == visible(HOSTILE)


def test_json_says_all_of_it_and_escapes_it(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json({HOSTILE: [HOSTILE]})
    said = capsys.readouterr().out
    assert said.isascii() and harmless(said)
    assert json.loads(said) == {HOSTILE: [HOSTILE]}


def test_what_libraries_log_is_visible() -> None:
    record = logging.LogRecord("x", logging.WARNING, "", 0, "%s", (HOSTILE,), None)
    assert harmless(console.VisibleFormatter().format(record))
