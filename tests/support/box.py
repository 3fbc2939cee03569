"""A box for a test of images, with its own checkout, cache, state and Nix store, and the real
commands in it; a web server whose replies can break."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import yaml

from support import PROJECT


@dataclass
class Box:
    """Directories of one test, and the command line run in them."""

    root: Path
    env: dict[str, str]

    def write(self, name: str, **sections: Any) -> None:
        """Write images/NAME/image.yml."""
        directory = self.root / "checkout/images" / name
        directory.mkdir(parents=True, exist_ok=True)
        document = {"description": "a test", "date": "2026-01-01T00:00:00Z", **sections}
        (directory / "image.yml").write_text(yaml.safe_dump(document))

    def lock(self, name: str) -> Path:
        return self.root / "checkout/images" / name / "lock.json"

    def run(self, *words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "orchestrator", "image", *map(str, words)]
        return subprocess.run(
            argv,
            env=self.env | env,
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def json(self, *words: str | Path, **env: str) -> Any:
        done = self.run(*words, "--json", **env)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def stored(self) -> list[str]:
        """Names of the valid paths of the box's store."""
        argv = ["sh", "-c", 'nix-store --option build-users-group "" -qR "$NIX_STORE_DIR"/*-*']
        done = subprocess.run(argv, env=self.env, capture_output=True, text=True, check=False)
        return sorted(Path(line).name[33:] for line in done.stdout.split())


@dataclass
class Hold:
    """A reply that stops in the middle: ``reached`` by the server, ``released`` by the test."""

    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)


@dataclass
class Site:
    """A web server over a directory, which can break the first replies of a path."""

    url: str
    root: Path
    truncate: dict[str, int] = field(default_factory=dict)  # path -> bytes to send, once
    holds: dict[str, Hold] = field(default_factory=dict)
    ranges: list[str] = field(default_factory=list)  # Range headers seen
    gets: list[str] = field(default_factory=list)
    tells_sizes: bool = True


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, site: Site, *args: Any) -> None:
        self.site = site
        super().__init__(*args)

    def do_GET(self) -> None:
        site, name = self.site, self.path.lstrip("/")
        site.gets.append(name)
        file = site.root / name
        if not file.is_file():
            self.send_error(404)
            return
        data, start = file.read_bytes(), 0
        if wanted := self.headers.get("Range"):
            site.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        cut = site.truncate.pop(name, None)
        if hold := site.holds.pop(name, None):
            self.wfile.write(data[start : len(data) // 2])
            start = len(data) // 2
            hold.reached.set()
            hold.released.wait(60)
        with suppress(OSError):  # a client that went away
            self.wfile.write(data[start:cut])
        if cut is not None:
            self.close_connection = True

    def do_HEAD(self) -> None:
        file = self.site.root / self.path.lstrip("/")
        if not (self.site.tells_sizes and file.is_file()):
            self.send_error(405 if file.is_file() else 404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(file.stat().st_size))
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass
