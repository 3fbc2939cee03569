"""Whose hash nobody knows does not come over plain http: a server of TLS that redirects to http."""

from __future__ import annotations

import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from orchestrator.core import download
from orchestrator.core.errors import BadInput, UserError
from orchestrator.image import spec
from orchestrator.models import hub_listing

IMAGE: dict[str, Any] = {
    "description": "a test",
    "date": "2026-07-11T00:00:00Z",
    "debian": {"suite": "s", "components": ["main"], "packages": ["a"]},
}


class Answers(BaseHTTPRequestHandler):
    """/to/URL redirects; everything else is a file."""

    def do_GET(self) -> None:
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"file")

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the terminal."""


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client that knows the server's certificate; its base is the server, as localhost."""
    home = tmp_path_factory.mktemp("tls")
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    argv += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    argv += ["-keyout", str(home / "key"), "-out", str(home / "cert")]
    subprocess.run(argv, check=True, capture_output=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(home / "cert", home / "key")
    server.socket = own.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=[0.05])
    thread.start()
    knows = ssl.create_default_context(cafile=str(home / "cert"))
    base = f"https://localhost:{server.server_port}"
    with httpx.Client(verify=knows, follow_redirects=True, base_url=base, trust_env=False) as made:
        yield made
    server.shutdown()
    thread.join()
    server.server_close()


def test_https_that_stays_with_it_is_taken(web: httpx.Client, tmp_path: Path) -> None:
    for path in ("/file", f"/to/{web.base_url}/file"):
        download.plain(web, f"{web.base_url}{path}", tmp_path / "file")
        assert (tmp_path / "file").read_bytes() == b"file"
        (tmp_path / "file").unlink()


@pytest.mark.parametrize("way", ["{other}", "{web}/to/{other}", "{web}/to/{web}/to/{other}"])
def test_plain_http_is_not_even_asked(web: httpx.Client, tmp_path: Path, way: str) -> None:
    """The other machine does not exist: nothing waits for it."""
    url = way.format(web=web.base_url, other="http://192.0.2.1/file")
    with pytest.raises(UserError, match=r"http://192\.0\.2\.1/file.*plain http"):
        download.plain(web, url, tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_redirects_end(web: httpx.Client, tmp_path: Path) -> None:
    class Turns(Answers):
        def do_GET(self) -> None:
            self.path = f"/to{self.path}"
            super().do_GET()

    with ThreadingHTTPServer(("127.0.0.1", 0), Turns) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.05])
        thread.start()
        with pytest.raises(UserError, match="redirects"):
            download.plain(web, f"http://127.0.0.1:{server.server_port}/x", tmp_path / "file")
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://example.org/x-1-py3-none-any.whl", "use https, or append #sha256="),
        ("https://example.org/x.whl#md5=1", "only sha256= and 64"),
        ("ftp://example.org/x.whl", "is no address such as"),
        ("https://example.org/", "is no address such as"),
    ],
)
def test_an_address_of_a_wheel_is_https_or_has_a_hash(
    url: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATE_CHECKOUT", str(tmp_path))
    python = {"version": "3.11", "glibc": "2.36", "requirements": ["x==1"], "urls": {"x==1": url}}
    file = tmp_path / "images/demo/image.yml"
    file.parent.mkdir(parents=True)
    file.write_text(yaml.safe_dump(IMAGE | {"python": python}))
    with pytest.raises(BadInput) as failed:
        spec.load("demo")
    message = f"{failed.value.message} {failed.value.hint}"
    assert said in message and "python.urls" in message and "image.yml:" in message


@pytest.mark.parametrize("end", ["", f"#sha256={'0' * 64}"])
def test_https_with_and_without_a_hash_is_right(end: str) -> None:
    python = {"version": "3.11", "glibc": "2.36", "requirements": ["x==1"]}
    url = f"https://example.org/x-1-py3-none-any.whl{end}"
    assert spec.Python.model_validate(python | {"urls": {"x==1": url}}).urls == {"x==1": url}


def test_the_hub_is_not_asked_over_plain_http(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://192.0.2.1")
    for ask in (hub_listing.listed, hub_listing.commit_of):
        with pytest.raises(UserError, match="HF_ENDPOINT is http://192"):
            ask("a/b", "0" * 40)
