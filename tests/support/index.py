"""A package index over HTTP as PyPI answers: pages as JSON (PEP 691), provenance (PEP 740)."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PAGE = "application/vnd.pypi.simple.v1+json"
PROVENANCE = "application/vnd.pypi.integrity.v1+json"
GITHUB = {
    "kind": "GitHub",
    "repository": "makers/NAME",
    "workflow": "release.yml",
    "environment": None,
    "claims": {"ref": "refs/tags/v1"},
}


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def provenance(digest: str, publisher: dict[str, Any]) -> dict[str, Any]:
    """As an index gives it; the signature is none, and nobody here looks at it."""
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "a file", "digest": {"sha256": digest}}],
        "predicateType": "https://index.example/attestations/publish/v1",
        "predicate": None,
    }
    envelope = {"statement": base64.b64encode(json.dumps(statement).encode()).decode()}
    attestation = {"version": 1, "verification_material": {}, "envelope": envelope}
    bundle = {"publisher": publisher, "attestations": [attestation]}
    return {"version": 1, "attestation_bundles": [bundle]}


@dataclass
class Index:
    """Projects by name; the files of each, and what the index says of them, by file name."""

    url: str = ""
    files: dict[str, dict[str, Path]] = field(default_factory=dict)
    told: dict[str, dict[str, Any]] = field(default_factory=dict)
    gets: list[str] = field(default_factory=list)

    def publish(self, project: str, file: Path, publisher: dict[str, Any] | None = None) -> None:
        self.files.setdefault(project, {})[file.name] = file
        if publisher:
            self.told[file.name] = provenance(sha256(file), publisher)

    def page(self, project: str) -> dict[str, Any]:
        rows: list[dict[str, Any]] = []
        for name, file in self.files[project].items():
            row: dict[str, Any] = {"filename": name, "url": f"../../files/{name}"}
            row |= {"hashes": {"sha256": sha256(file)}}
            row |= {"provenance": f"/integrity/{name}"} if name in self.told else {}
            rows.append(row)
        return {"meta": {"api-version": "1.3"}, "name": project, "files": rows, "versions": []}

    def answer(self, path: str) -> tuple[str, bytes] | None:
        """The content type and the content."""
        self.gets.append(path)
        kind, _, name = path.strip("/").partition("/")
        if kind == "simple" and name in self.files:
            return PAGE, json.dumps(self.page(name)).encode()
        if kind == "integrity" and name in self.told:
            return PROVENANCE, json.dumps(self.told[name]).encode()
        found = {each: file for project in self.files.values() for each, file in project.items()}
        if kind == "files" and name in found:
            return "application/zip", found[name].read_bytes()
        return None


@contextmanager
def serving() -> Iterator[Index]:
    found = Index()

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self, body: bool = True) -> None:
            answer = found.answer(self.path)
            if answer is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Type", answer[0])
            self.send_header("Content-Length", str(len(answer[1])))
            self.end_headers()
            if body:
                self.wfile.write(answer[1])

        def do_HEAD(self) -> None:
            self.do_GET(body=False)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing on the terminal."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        found.url = f"http://127.0.0.1:{server.server_port}/simple"
        thread = threading.Thread(target=server.serve_forever, args=[0.05])
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()
