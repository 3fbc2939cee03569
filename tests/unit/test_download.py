"""One file from servers as they are: cut off, without ranges, too busy, wrong."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from orchestrator.core import download
from orchestrator.core.download import Downloader, Unavailable, WrongHash

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Has CONTENT. ``cut``: after how many bytes the first answer ends; ``ranges``: whether it
    heeds them; ``codes``: of its first answers."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.cut, self.ranges = 0, True
        self.codes: list[int] = []
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
            self.end_headers()
            return
        heeded = asked if self.server.ranges else ""
        rest = CONTENT[int(heeded.removeprefix("bytes=").removesuffix("-") or 0) :]
        self.send_response(206 if heeded else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        sent, self.server.cut = rest[: self.server.cut or len(rest)], 0
        self.wfile.write(sent)

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        yield web
        web.shutdown()
        thread.join()


def fetched(server: Server, target: Path, sha256: str = SHA256) -> int:
    """Bring the file; the bytes that were told as gained."""
    gained: list[int] = []
    with download.client() as web:
        loader = Downloader(web, gained.append, pauses=(0.0, 0.0))
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


@pytest.mark.parametrize(("told", "seconds"), [("7", 7.0), ("99999", 60.0), ("Friday", 0.0)])
def test_a_server_cannot_send_us_away_for_long(told: str, seconds: float) -> None:
    assert download._retry_after(httpx.Response(503, headers={"retry-after": told})) == seconds
