"""A hub on loopback, shaped as Hugging Face's: enough for huggingface_hub to pull a repository."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REPOSITORY = "owner/big"
RENAMED = "owner/small"
REVISION = "0123456789abcdef0123456789abcdef01234567"
NEWEST = "89abcdef0123456789abcdef0123456789abcdef"
LISTING = "listing"


def blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Hub:
    """Files by name, and what goes wrong. ``large``: names that are in LFS."""

    files: dict[str, bytes]
    large: tuple[str, ...] = ()
    #: Bytes after which the connection is cut, the first time that a file is asked for.
    cut: dict[str, int] = field(default_factory=dict)
    #: What is sent in place of a file.
    wrong: dict[str, bytes] = field(default_factory=dict)
    #: HTTP status and hub's error code of every answer, and its words (else the code).
    refuse: tuple[int, str] | tuple[int, str, str] | None = None
    #: Statuses of the next answers to a file's GET (or to a question, LISTING), before it is sent.
    first: dict[str, list[int]] = field(default_factory=dict)
    #: What these answers say of when to ask again.
    later: dict[str, str] = field(default_factory=lambda: {"Retry-After": "0"})
    #: Files that the listing names and the hub does not give: their status, or as in ``refuse``.
    withheld: dict[str, int | tuple[int, str, str]] = field(default_factory=dict)
    #: The same, by the other host that large files lie on.
    withheld_elsewhere: dict[str, int] = field(default_factory=dict)
    #: Whether the repository has another name now, to which the hub redirects.
    renamed: bool = False
    #: What its page says in its head.
    card: dict[str, object] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=lambda: {"main": NEWEST, "older": REVISION})
    gets: list[tuple[str, str]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    #: Those that the other host got, which large files are redirected to.
    tokens_elsewhere: set[str] = field(default_factory=set)
    url: str = ""
    elsewhere: str = ""

    def listing(self, revision: str) -> dict[str, object]:
        siblings = []
        for name, content in self.files.items():
            entry: dict[str, object] = {
                "rfilename": name, "size": len(content), "blobId": blob(content),
            }  # fmt: skip
            if name in self.large:
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        name = RENAMED if self.renamed else REPOSITORY
        return {"id": name, "sha": revision, "siblings": siblings, "private": False,
                "cardData": self.card}  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *words: object) -> None:
        self.hub = hub
        super().__init__(*words)  # type: ignore[arg-type]

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        token = self.headers.get("Authorization", "")
        if match := re.fullmatch(r"/blobs/(.+)", path):
            self.hub.tokens_elsewhere.add(token)
            self.blob(match.group(1), body)
            return
        if self.hub.renamed and REPOSITORY in path:
            self.reply(307, b"", {"Location": path.replace(REPOSITORY, RENAMED)}, body)
            return
        path = path.replace(RENAMED, REPOSITORY)
        if REPOSITORY in path:  # the library asks the hub for other things too
            self.hub.tokens.add(token)
        if self.hub.refuse:
            self.refuse(*self.hub.refuse, body)
        elif match := re.fullmatch(rf"/api/models/{REPOSITORY}(?:/revision/(\w+))?", path):
            name = match.group(1) or "main"
            self.list(self.hub.branches.get(name, name), body)
        elif match := re.fullmatch(rf"/{REPOSITORY}/resolve/(?:{REVISION}|{NEWEST})/(.+)", path):
            self.resolve(match.group(1), body)
        else:
            self.refuse(404, "RepoNotFound", body)

    def list(self, revision: str, body: bool) -> None:
        if self.hub.first.get(LISTING):
            self.refuse(self.hub.first[LISTING].pop(0), "", body)
        elif revision not in (REVISION, NEWEST):
            self.refuse(404, "RevisionNotFound", body)
        else:
            content = json.dumps(self.hub.listing(revision)).encode()
            self.reply(200, content, {"Content-Type": "application/json"}, body)

    def resolve(self, name: str, body: bool) -> None:
        if name in self.hub.withheld:
            why = self.hub.withheld[name]
            self.refuse(*((why, "") if isinstance(why, int) else why), body)
        elif name in self.hub.large:
            where = {"Location": f"{self.hub.elsewhere}/blobs/{name}?signature=secret"}
            self.reply(302, b"", self.described(name) | where, body)
        else:
            self.file(name, body)

    def blob(self, name: str, body: bool) -> None:
        if name in self.hub.withheld_elsewhere:
            self.reply(self.hub.withheld_elsewhere[name], b"<Error/>", {}, body)
        else:
            self.file(name, body)

    def refuse(self, status: int, code: str, *rest: Any) -> None:
        *words, body = rest
        said = words[0] if words else code
        headers = {"X-Error-Code": code} if code else {}
        headers |= {"X-Error-Message": said} if said else {}
        later = self.hub.later if status in (429, 503) else {}
        self.reply(status, b"{}", headers | later, body)

    def described(self, name: str) -> dict[str, str]:
        content = self.hub.files[name]
        etag = hashlib.sha256(content).hexdigest() if name in self.hub.large else blob(content)
        return {
            "X-Repo-Commit": REVISION,
            "ETag": f'"{etag}"',
            "X-Linked-Etag": f'"{etag}"',
            "X-Linked-Size": str(len(content)),
            "Accept-Ranges": "bytes",
        }

    def file(self, name: str, body: bool) -> None:
        if name not in self.hub.files:
            return self.reply(404, b"{}", {"X-Error-Code": "EntryNotFound"}, body)
        if body and self.hub.first.get(name):
            return self.reply(self.hub.first[name].pop(0), b"{}", self.hub.later, body)
        headers = self.described(name)
        content = self.hub.wrong.get(name, self.hub.files[name])
        if not body:
            return self.reply(200, content, headers, body)
        asked = self.headers.get("Range", "")
        self.hub.gets.append((name, asked))
        start = int(re.sub(r"\D", "", asked.split("-")[0]) or 0) if asked else 0
        status = 206 if asked else 200
        if asked:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self.reply(status, content[start:], headers, body, self.hub.cut.pop(name, None))

    def reply(
        self, status: int, content: bytes, headers: dict[str, str], body: bool,
        cut: int | None = None,
    ) -> None:  # fmt: skip
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content[:cut])
        if cut is not None:
            self.close_connection = True


class Quiet(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A client that was interrupted is no news."""


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub at ``hub.url``, and the other host that its large files lie on."""
    with ExitStack() as stack:
        hub.url, hub.elsewhere = (stack.enter_context(_server(hub)) for _ in range(2))
        yield hub


@contextmanager
def _server(hub: Hub) -> Iterator[str]:
    server = Quiet(("127.0.0.1", 0), partial(Handler, hub))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
