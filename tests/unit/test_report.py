"""The report in a real browser: it opens without a network, every plot is there, nothing fails."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.report import HOSTILE, story

from orchestrator.performance.report.page import page
from orchestrator.performance.report.plots import Cable, cables, waterfall
from orchestrator.performance.report.story import Story
from orchestrator.performance.results.bench import RunState

TOOL = Path(__file__).resolve().parents[2] / "tools/report_pictures.py"
CHROMIUM = f"{runpy.run_path(str(TOOL))['CHROMIUM']} --enable-logging=stderr"


def browse(text: str, home: Path, *words: str) -> tuple[str, list[str]]:
    """The page's document once its scripts have run, and what it wrote to the console."""
    assert shutil.which("chromium"), "tools/setup.sh --tests installs it"
    file = home / "report.html"
    file.write_text(text, encoding="utf-8")
    argv = [*CHROMIUM.split(), f"--user-data-dir={home / 'browser'}", *words]
    done = subprocess.run(
        [*argv, "--dump-dom", file.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout, re.findall(r"CONSOLE.*", done.stderr)


def plots_of(document: str) -> int:
    found = re.search(r'<body[^>]* data-plots="(\d+)"', document)
    return int(found.group(1)) if found else 0


def test_the_browser_draws_every_plot_and_logs_nothing(tmp_path: Path) -> None:
    document, console = browse(page(story()), tmp_path)
    assert console == []
    figures = re.search(r'id="figures">(.*?)</script>', document, re.DOTALL)
    assert figures is not None
    names = list(json.loads(figures.group(1)))
    assert names == ["phase-0", "phase-1", "roofline", "load-concurrency", "load-rate", "timeline",
                     "links"]  # fmt: skip
    assert plots_of(document) == len(names)
    assert document.count('class="main-svg"') >= len(names)
    assert "The second node does not help" in document


def test_nothing_on_the_page_can_load_or_run_what_is_not_in_it(tmp_path: Path) -> None:
    text = page(story())
    head = text[: text.index("<script>")]
    assert "default-src 'none'" in head
    assert not re.search(r"(?:src|href)\s*=", head)
    document, _ = browse(text, tmp_path)
    assert HOSTILE.replace("<", "&lt;").replace(">", "&gt;") in document
    assert "data-broken" not in document


def test_a_broken_plot_is_seen_by_this_test(tmp_path: Path) -> None:
    """The checks above can fail: a page whose script throws has no plots and logs why."""
    document, console = browse(
        page(story()).replace("Plotly.newPlot(id", "Plotly.gone(id"), tmp_path
    )
    assert plots_of(document) == 0
    assert any("Plotly.gone" in line for line in console)


def test_a_run_that_is_not_complete_says_so_first() -> None:
    whole = story()
    run = replace(whole.run, state=RunState.MARKED, note="compute1 was lost after 12 s")
    text = page(replace(whole, run=run))
    assert "compute1 was lost after 12 s" in text[: text.index('id="verdict"')]
    assert "kept apart" not in page(whole)


def test_a_run_alone_is_a_report_too(tmp_path: Path) -> None:
    """Without probes, phases, series: what is there."""
    run = replace(story().run, series=(), measured=story().run.measured[:1])
    document, console = browse(page(Story(run, ("Measured, not explained.",))), tmp_path)
    assert console == [] and "Measured, not explained." in document


def test_a_waterfall_ends_at_what_was_measured() -> None:
    bars = waterfall({"memory": 0.004, "host": 0.010}, 0.012).data[0]
    ends = [base + height for base, height in zip(bars.base, bars.y, strict=True)]
    assert ends == pytest.approx([4, 14, 12, 12])  # a prediction too long: a step down


def test_two_links_of_one_pair_do_not_hide_each_other() -> None:
    pair = [Cable("a", "b", "x", 1e8), Cable("a", "b", "y", 1e9)]
    places = {(note.x, note.y) for note in cables(["a", "b"], pair).layout.annotations}
    assert len(places) == 2


def test_pictures_of_plots_for_documents(tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    report.write_text(page(story()), encoding="utf-8")

    def pictures(*plots: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, TOOL, report, tmp_path, *plots],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    assert pictures("links", "roofline").returncode == 0
    assert (tmp_path / "links.svg").read_text().startswith("<svg")
    assert "compute1" in (tmp_path / "links.svg").read_text()
    assert "no plots nosuch" in pictures("nosuch").stderr
