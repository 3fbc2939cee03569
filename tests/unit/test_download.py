"""One file from servers as they are: cut off, without ranges, too busy, wrong."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import httpx
import pytest

from orchestrator.core import download
from orchestrator.core.download import Downloader, Unavailable, WrongHash

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Has CONTENT. ``cut``: after how many bytes the first answer ends, or stops where ``held``
    says until when; ``ranges``: whether it heeds them; ``codes``: of its first answers."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.cut, self.ranges = 0, True
        self.codes: list[int] = []
        self.begun, self.held = threading.Event(), threading.Event()
        self.held.set()
        self.later = ""  # when to ask again, by these answers
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        self.server.asked.append(asked)
        if self.server.codes:
            self.send_response(self.server.codes.pop(0))
            self.send_header("Content-Length", "0")
            if self.server.later:
                self.send_header("Retry-After", self.server.later)
            self.end_headers()
            return
        heeded = asked if self.server.ranges else ""
        rest = CONTENT[int(heeded.removeprefix("bytes=").removesuffix("-") or 0) :]
        self.send_response(206 if heeded else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        sent, self.server.cut = rest[: self.server.cut or len(rest)], 0
        self.wfile.write(sent)
        self.server.begun.set()
        self.server.held.wait(60)

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        yield web
        web.shutdown()
        thread.join()


def fetched(
    server: Server,
    target: Path,
    sha256: str = SHA256,
    tell: Callable[[str], None] = lambda _: None,
) -> int:
    """Bring the file; the bytes that were told as gained."""
    gained: list[int] = []
    with download.client() as web:
        loader = Downloader(web, gained.append, pauses=(0.0, 0.0), tell=tell)
        loader.fetch(server.url, target, len(CONTENT), sha256)
    assert target.read_bytes() == CONTENT
    return sum(gained)


def test_it_goes_on_where_it_was_cut(server: Server, tmp_path: Path) -> None:
    server.cut = 1000
    assert fetched(server, tmp_path / "file") == len(CONTENT)
    assert server.asked == ["", "bytes=1000-"]


def test_from_a_server_without_ranges_it_begins_anew(server: Server, tmp_path: Path) -> None:
    server.cut, server.ranges = 1000, False
    assert fetched(server, tmp_path / "file") == len(CONTENT)
    assert server.asked == ["", "bytes=1000-"]


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path, code: int) -> None:
    server.codes = [code, code]
    assert fetched(server, tmp_path / "file") == len(CONTENT)


def test_what_is_not_there_is_asked_for_once(server: Server, tmp_path: Path) -> None:
    server.codes = [404]
    with pytest.raises(Unavailable, match="HTTP 404") as gone:
        fetched(server, tmp_path / "file")
    assert gone.value.status == 404 and len(server.asked) == 1


def test_wrong_bytes_leave_nothing(server: Server, tmp_path: Path) -> None:
    with pytest.raises(WrongHash, match="wrong content"):
        fetched(server, tmp_path / "file", "0" * 64)
    assert list(tmp_path.iterdir()) == []


WISHES = {
    "seconds": ({"retry-after": "7"}, 7.0),
    "no number": ({"retry-after": "Friday"}, 0.0),
    "a date that is past": ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
    "a date of no time zone": ({"retry-after": "Wed, 21 Oct 2015 07:28:00 -0000"}, 0.0),
    "the hub's own": ({"ratelimit": '"api";r=0;t=55'}, 55.0),
    "some remain": ({"ratelimit": '"api";r=12;t=55'}, 0.0),
    "both": ({"retry-after": "3", "ratelimit": '"api";r=0;t=55'}, 3.0),
    "none": ({}, 0.0),
}


@pytest.mark.parametrize(("headers", "seconds"), WISHES.values(), ids=WISHES)
def test_when_a_server_wishes_to_be_asked_again(headers: dict[str, str], seconds: float) -> None:
    assert download.wished(httpx.Headers(headers)) == seconds


def test_a_date_to_ask_again_at_is_heeded() -> None:
    at = datetime.now(UTC) + timedelta(hours=1)
    wait = download.wished({"retry-after": format_datetime(at, usegmt=True)})
    assert 3000 < wait <= 3600


def test_a_server_cannot_send_us_away_for_long(server: Server, tmp_path: Path) -> None:
    """Asking earlier than it says would only be refused again."""
    server.codes, server.later = [429], "99999"
    with pytest.raises(Unavailable, match="HTTP 429") as gone:
        fetched(server, tmp_path / "file")
    assert len(server.asked) == 1 and download.wished(gone.value.headers) == 99999.0


def test_a_wish_that_is_heeded_is_said(server: Server, tmp_path: Path) -> None:
    server.codes, server.later = [429], "1"
    told: list[str] = []
    fetched(server, tmp_path / "file", tell=told.append)
    assert told == ["file: HTTP 429: the server wishes to be asked again in 1 s; waiting"]


def test_interrupted_while_files_are_handed_out_all_ends(server: Server, tmp_path: Path) -> None:
    """What waits for bytes ends at once, and nothing is asked for again."""
    server.cut = 1000
    server.held.clear()
    try:
        with (
            pytest.raises(KeyboardInterrupt),
            httpx.Client(timeout=600) as web,
            download.threads(2) as (pool, stop),
        ):
            loader = Downloader(web, stop=stop, pauses=(0.0, 0.0))
            job = pool.submit(loader.fetch, server.url, tmp_path / "file", len(CONTENT), SHA256)
            assert server.begun.wait(60)
            raise KeyboardInterrupt
    finally:
        server.held.set()
    assert isinstance(job.exception(), download.DownloadStopped)
    assert server.asked == [""]
