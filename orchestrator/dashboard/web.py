"""The page and its document, over HTTP on this machine, for who knows the address.

The secret in the address is all that lets one in: it is made at each start, compared in constant
time, and stands in no log, no file and no command line. The name that a browser asked for is
checked too, so that no other site's name can be made to mean this machine (DNS rebinding).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Callable
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, Protocol

HOST = "127.0.0.1"
#: Host headers, whatever the port: it is another one behind a forwarding by SSH.
NAMES = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?")
#: Seconds without a request after which nobody looks, and for a client to send its request.
IDLE, SLOW = 15.0, 10.0


class Live(Protocol):
    """What has a document while it runs."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def document(self) -> dict[str, Any]: ...


class OnDemand:
    """Runs what has the document while somebody asks for it."""

    def __init__(self, make: Callable[[], Live], idle: float = IDLE) -> None:
        self.idle = idle
        self.runs = False
        self._make = make
        self._live: Live | None = None
        self._asked = 0.0
        self._lock = Lock()
        self._over = Event()
        self._waits = Thread(target=self._wait, daemon=True)
        self._waits.start()

    def document(self) -> dict[str, Any]:
        self._asked = time.monotonic()
        with self._lock:
            live = self._live = self._live or self._make()
            if not self.runs and not self._over.is_set():
                live.start()
                self.runs = True
        return live.document()

    def _wait(self) -> None:
        while not self._over.wait(min(1.0, self.idle / 4)):
            if time.monotonic() - self._asked > self.idle:
                self._rest()

    def _rest(self) -> None:
        with self._lock:
            if self.runs and self._live:
                self._live.stop()
                self.runs = False

    def close(self) -> None:
        self._over.set()
        self._rest()
        self._waits.join()


@cache
def page() -> bytes:
    return Path(__file__).with_name("page.html").read_bytes()


def policy(text: str) -> str:
    """The content security policy that lets the page's own script and style run, and no other."""

    def allowed(tag: str) -> str:
        found = re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert found, f"the page has no {tag}"
        digest = hashlib.sha256(found[1].encode()).digest()
        return f"'sha256-{base64.b64encode(digest).decode()}'"

    return (
        f"default-src 'none'; script-src {allowed('script')}; style-src {allowed('style')};"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


@cache
def headers() -> dict[str, str]:
    return {
        "Cache-Control": "no-store",
        "Content-Security-Policy": policy(page().decode()),
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }


class Server(ThreadingHTTPServer):
    """Serves the page and the document until it is closed."""

    daemon_threads = True

    def __init__(
        self, document: Callable[[], dict[str, Any]], port: int = 0, secret: str = ""
    ) -> None:
        self.document = document
        self.secret = secret or secrets.token_urlsafe(32)
        super().__init__((HOST, port), Handler)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_address[1]}/{self.secret}/"

    def handle_error(self, *_words: object) -> None:
        """A browser that went away is no event, and a log is no place for an address."""


class Handler(BaseHTTPRequestHandler):
    """One request. Everything but a GET of the two pages, by the right name, is refused."""

    server: Server
    timeout = SLOW
    server_version, sys_version = "orchestrate", ""

    def do_GET(self) -> None:
        if not NAMES.fullmatch(self.headers.get("Host", "")):
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST, "Open it as http://127.0.0.1.")
            return
        _, secret, *rest = [*self.path.encode().split(b"/"), b""]
        if not hmac.compare_digest(secret, self.server.secret.encode()):
            self._refuse(HTTPStatus.NOT_FOUND, "Not the address that was printed.")
        elif rest == [b"", b""]:
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", page())
        elif rest == [b"data", b""]:
            text = json.dumps(self.server.document(), default=str, allow_nan=False)
            self._send(HTTPStatus.OK, "application/json", text.encode())
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "There is no such page.")

    def _only_get(self) -> None:
        self.close_connection = True  # a body may follow
        self._refuse(HTTPStatus.METHOD_NOT_ALLOWED, "Nothing here acts: GET only.", Allow="GET")

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _only_get

    def _refuse(self, status: HTTPStatus, text: str, **more: str) -> None:
        self._send(status, "text/plain; charset=utf-8", f"{text}\n".encode(), more)

    def _send(
        self, status: HTTPStatus, kind: str, body: bytes, more: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        sent = {"Content-Type": kind, "Content-Length": str(len(body)), **headers(), **(more or {})}
        for name, value in sent.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_words: object) -> None:
        """Nothing: the address has the secret in it."""
