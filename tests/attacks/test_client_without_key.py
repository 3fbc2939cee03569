"""A client without a key at the endpoint: a real nginx before a server that guards what vLLM does.

It reaches no path that vLLM gives to anybody, however the path is spelled.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from support.golden import GOLDEN, states
from support.web import NGINX, SPACE, Web, start, stop, until_it_listens

from orchestrator.models.profiles import load
from orchestrator.provision.machines import netns

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(NGINX is None, reason="needs nginx (Debian: nginx-light)"),
]

KEY = "API KEY"  # the golden context's
METRICS = "vllm:num_requests_running"


@dataclass
class Upstream:
    """Stands where vLLM does, with the same server below it; notes each path as it was sent."""

    paths: list[str] = field(default_factory=list)

    def application(self) -> Starlette:
        routes = [
            Route("/health", self.health),
            Mount("/metrics", app=Starlette(routes=[Route("/{rest:path}", self.metrics)])),
            Route("/invocations", self.metrics, methods=["GET", "POST"]),
            Route("/v1/{rest:path}", self.guarded, methods=["GET", "POST"]),
        ]
        return Starlette(routes=routes)

    def note(self, request: Request) -> None:
        raw = request.scope["raw_path"].decode("latin-1")
        query = request.scope["query_string"].decode("latin-1")
        self.paths.append(f"{raw}?{query}" if query else raw)

    async def health(self, request: Request) -> Response:
        self.note(request)
        return PlainTextResponse("healthy")

    async def metrics(self, request: Request) -> Response:
        self.note(request)
        return PlainTextResponse(METRICS)

    async def guarded(self, request: Request) -> Response:
        self.note(request)
        has_key = request.headers.get("authorization") == f"Bearer {KEY}"
        return PlainTextResponse(f"{await request.body()!r}", 200 if has_key else 401)


@dataclass
class Endpoint:
    web: Web
    upstream: Upstream

    def ask(
        self, target: str, method: str = "GET", headers: str = "", source: str = "127.0.0.1"
    ) -> tuple[int, bytes]:
        """Status and answer; the target goes out byte for byte, as no library would send it."""
        host, port = self.web.address.split(":")
        with netns.entered(SPACE):
            connection = socket.create_connection((host, int(port)), 10, source_address=(source, 0))
        with connection:
            request = f"{method} {target} HTTP/1.1\r\nHost: x\r\n{headers}Connection: close\r\n\r\n"
            connection.sendall(request.encode())
            answer = b""
            while part := connection.recv(65536):
                answer += part
        found = re.match(rb"HTTP/1.1 (\d+)", answer)
        return (int(found[1]) if found else 0), answer


@pytest.fixture(params=["sim", "copies"])
def endpoint(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Endpoint]:
    """Before one server, and before one of two copies."""
    netns.delete(SPACE)
    netns.create(SPACE)
    profile = load(GOLDEN / request.param / "profile.yml")
    control, server = profile.control, profile.server
    upstream = Upstream()
    servers = start(profile, states(profile)[control.name], tmp_path)
    with netns.entered(SPACE):
        listener = socket.create_server((str(profile.ray_address(server)), profile.serving.port))
    running = uvicorn.Server(
        uvicorn.Config(upstream.application(), log_level="error", lifespan="off")
    )
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    address = f"{profile.ray_address(control)}:{profile.serving.endpoint_port}"
    web = Web(address, tmp_path)
    try:
        until_it_listens(web)
        deadline = time.monotonic() + 30
        while not running.started and time.monotonic() < deadline:
            time.sleep(0.05)
        yield Endpoint(web, upstream)
    finally:
        running.should_exit = True
        thread.join(30)
        listener.close()
        stop(servers)
        netns.delete(SPACE)


#: Spellings by which a path that vLLM does not guard may be taken for one that is passed on.
UNGUARDED = ("metrics", "metrics/", "metrics/x", "invocations")
AROUND = (
    "/{}", "//{}", "/{}/../health", "//{}/../health", "/{}//../health", "/{}/./../health",
    "/{}/..//health", "/{}/%2e%2e/health", "/{}/%2E%2E/health", "/{}/.%2e/health",
    "/{}/..%2fhealth", "/{}/..%2Fhealth", "/{}%2f..%2fhealth", "/{}/%2e%2e%2fhealth",
    "/{}/../v1/models", "/{}/%2e%2e/v1/models", "/{}/..%2fv1/models", "//{}/../v1/models",
    "/v1/../{}", "/v1/%2e%2e/{}", "/v1/..%2f{}", "/v1%2f..%2f{}", "/v1/%2e%2e%2f{}", "/v1//../{}",
    "/v1/./../{}", "/v1/x/../../{}", "/v1/%252e%252e/{}", "/v1/..%252f{}", "/v1/%2f..%2f..%2f{}",
    "/health/../{}", "/health%2f..%2f{}", "/health/%2e%2e/{}", "/health%3f/../{}",
    "/v1/..;/{}", "/{}/..;/health", "/v1/..\\{}", "/{}\\..\\health", "\\{}", "/v1\\..\\{}",
    "/{}%00/../health", "/{}%0a/../health", "/{}%23/../health", "/{}%3f/../health",
    "/{}#/../health",
    "http://x/{}", "http://x/{}/../health", "http://x//{}/../health", "http://x/v1/../{}",
    "/session/{}", "/session/../{}", "/v1/../session/{}", "/copies/node-a/{}",
    "/copies/node-a/v1/../{}", "/copies/node-a/health/../{}", "/copies/node-a/v1/..%2f{}",
    "/V1/../{}", "/%76%31/../{}", "/{}/%c0%ae%c0%ae/health", "/{}/%u002e%u002e/health",
)  # fmt: skip


def test_no_spelling_reaches_what_vllm_gives_to_anybody(endpoint: Endpoint) -> None:
    targets = [around.format(path) for around in AROUND for path in UNGUARDED]
    for number, target in enumerate(targets):
        for method in ("GET", "POST"):
            # With the key, nginx passes on what it would refuse otherwise.
            for headers in ("", f"Authorization: Bearer {KEY}\r\nX-Session-ID: x\r\n"):
                # From many addresses: each may ask for /health so often.
                source = f"127.0.1.{number + 1}"
                status, answer = endpoint.ask(target, method, headers, source)
                assert METRICS.encode() not in answer, (method, target)
                assert status in (0, 200, 301, 400, 401, 404, 405), (method, target, answer)
    # What was passed on is what nginx had matched: nothing of it means another path to the server.
    assert endpoint.upstream.paths
    for path in endpoint.upstream.paths:
        assert path == "/health" or path.startswith("/v1/"), path
        assert not re.search(r"//|/\.{1,2}(/|$)|%2f|%2e", path, re.IGNORECASE), path


def test_what_is_meant_to_be_reached_is(endpoint: Endpoint) -> None:
    assert endpoint.ask("/health")[0] == 200
    assert endpoint.ask("/v1/models")[0] == 401
    assert not any(path.startswith("/v1") for path in endpoint.upstream.paths)
    headers = {"Authorization": f"Bearer {KEY}"}
    for path in ("/v1/models", "/v1/models?limit=2&after=a%2Fb", "/v1/models/a%20b", "/v1/"):
        assert endpoint.web.get(path, **headers)[0] == 200, path
        assert endpoint.upstream.paths[-1] == path
