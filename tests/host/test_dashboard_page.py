"""The dashboard's page in a real browser, with the real server; its data are given."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.browser import Browser, browser
from support.dashboard import MARKUP, document, served


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as made:
        yield made


def test_all_of_it_is_shown_at_each_width_and_markup_is_text(page: Browser) -> None:
    wanted = {
        "top": "No answer: compute1", "load": "388", "limits": "link latency",
        "links": "compute1 lan0", "nodes": "NVIDIA 0", "checks": "✕ failed",
        "forecasts": "51 to 66", "runs": "20261130T101500Z", "events": "compute1",
        "sources": "no answer: <img",
    }  # fmt: skip
    with served(document) as server:
        page.open(server.url)
        page.shows("lab", "h1")
        for width, dark in ((390, False), (1280, True), (1920, False)):
            page.looks(width, 900, dark=dark)
            for part, words in wanted.items():
                page.shows(words, f"#{part}")
            assert page.value("document.documentElement.scrollWidth") == width
            assert page.value("getComputedStyle(document.body).backgroundColor") == (
                "rgb(20, 23, 28)" if dark else "rgb(246, 247, 249)"
            )
    assert page.text().count(MARKUP) >= 7
    assert page.value("document.body.dataset.broken") is None
    assert page.value("document.images.length") == 0
    assert page.complaints == []


def test_a_server_that_is_gone_is_told_and_comes_back_by_itself(page: Browser) -> None:
    with served(document) as server:
        page.open(server.url)
        page.shows("● up", "#nodes")
        assert page.value("document.getElementById('gone').hidden")
        port, secret = server.server_address[1], server.secret
    told = page.shows("does not answer", "#gone")
    assert "comes back by itself" in told
    page.shows("compute0", "#nodes")  # what was known stays
    with served(document(state="serving", text="It is back."), port, secret):
        page.shows("It is back.", "#top")
        assert page.value("document.getElementById('gone').hidden")
    with served(document, port):
        page.shows("Something else answers at this address (HTTP 404)", "#gone")


def test_what_the_reader_opened_stays_open(page: Browser) -> None:
    count = iter(range(10**6))
    with served(lambda: document(text=f"look {next(count)}", time=time.time())) as server:
        page.open(server.url)
        page.shows("look 0", "#top")
        for part in ("boot compute0", "all-checks"):
            page.value(f"document.getElementById('{part}').querySelector('summary').click()")
        assert "layer:python" in page.shows("layer:base", "#nodes")
        page.value("document.getElementById('all-checks').querySelector('summary').focus()")
        page.shows(f"look {next(count) + 2}", "#top")
        assert "layer:base" in page.text("#nodes")
        assert "check 7" in page.text("#checks")
        assert page.value("document.activeElement.parentElement.id") == "all-checks"


def test_no_other_script_runs_there(page: Browser, tmp_path: Path) -> None:
    """What the policy forbids, whatever way it may get into the page."""
    with served(document) as server:
        page.open(server.url)
        page.shows("lab", "h1")
        page.value(
            "(() => { const bad = document.createElement('script');"
            " bad.textContent = 'document.body.dataset.broken = 2';"
            " document.body.append(bad); })()"
        )
        assert page.value("document.body.dataset.broken") is None
        assert any("inline script" in each for each in page.complaints), page.complaints
        frame = tmp_path / "frame.html"
        frame.write_text(f"<h1>frame</h1><iframe src='{server.url}'></iframe>")
        page.open(frame.as_uri())
        page.shows("frame", "h1")
        end = time.monotonic() + 60
        while not any("frame-ancestors" in each for each in page.complaints):
            assert time.monotonic() < end, page.complaints
            page.value("1")  # hears what was said meanwhile
    page.complaints.clear()
