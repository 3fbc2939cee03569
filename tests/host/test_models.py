"""Several models behind one endpoint: a real nginx with the control node's own configuration finds
the model in a request's body. Servers that say who they are stand where vLLM does."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from support.golden import GOLDEN, states
from support.web import NGINX, serve, stop

from orchestrator.core.run import run
from orchestrator.core.waiting import as_long_as
from orchestrator.models.profiles import load
from orchestrator.profile import Profile
from orchestrator.provision.machines import netns

pytestmark = pytest.mark.skipif(NGINX is None, reason="needs nginx (Debian: nginx-light)")

KEY = "API KEY"  # the golden context's
FIRST, SECOND = "known-answers", "random-300m"


class Stub(BaseHTTPRequestHandler):
    """Answers with its node's name, the path, and the length of the body; a stream in two parts,
    the second when it is let go."""

    protocol_version = "HTTP/1.1"
    node: str
    heads: list[dict[str, str]]
    go_on: threading.Event

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        self.heads.append(dict(self.headers))
        said = json.dumps({"node": self.node, "path": self.path, "bytes": length}).encode()
        self.send_response(200)
        if b'"stream": true' in body:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"5\r\nfirst\r\n")
            self.wfile.flush()
            self.go_on.wait(20)
            self.wfile.write(b"4\r\nlast\r\n0\r\n\r\n")
            return
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    do_GET = do_OPTIONS = do_POST

    def log_message(self, *_: object) -> None:
        """Nothing."""


@dataclass
class Served:
    """The endpoint, and a server on each node, in a network namespace of their own."""

    space: str
    profile: Profile
    servers: dict[str, ThreadingHTTPServer] = field(default_factory=dict)
    #: The headers that each server got.
    heads: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    go_on: threading.Event = field(default_factory=threading.Event)

    def start(self, *names: str) -> None:
        for node in self.profile.compute_nodes:
            if node.name in names:
                told = {
                    "node": node.name,
                    "heads": self.heads.setdefault(node.name, []),
                    "go_on": self.go_on,
                }
                address = (self.profile.ray_address(node), self.profile.serving.port)
                with netns.entered(self.space):
                    server = ThreadingHTTPServer(address, type("Own", (Stub,), told))
                server.daemon_threads = True
                threading.Thread(target=server.serve_forever, daemon=True).start()
                self.servers[node.name] = server

    def kill(self, *names: str) -> None:
        for name in names:
            server = self.servers.pop(name)
            server.shutdown()
            server.server_close()

    def connection(self) -> http.client.HTTPConnection:
        control = self.profile.ray_address(self.profile.control)
        made = http.client.HTTPConnection(control, self.profile.serving.endpoint_port, timeout=30)
        with netns.entered(self.space):
            made.connect()
        return made

    def ask(
        self, body: object, path: str = "/v1/completions", method: str = "POST", **headers: str
    ) -> tuple[int, str]:
        """Status and answer; 0 where there is none. A body that is no text is sent as JSON."""
        text = body if isinstance(body, str | None) else json.dumps(body)
        given = {"Authorization": f"Bearer {KEY}", **headers}
        try:
            with closing(self.connection()) as connection:
                connection.request(method, path, text, given)
                answer = connection.getresponse()
                return answer.status, answer.read().decode()
        except (OSError, http.client.HTTPException):
            return 0, ""

    def node(self, body: object, **headers: str) -> str:
        """Which node answers."""
        status, said = self.ask(body, **headers)
        assert status == 200, (body, status, said)
        return str(json.loads(said)["node"])


@pytest.fixture(scope="module")
def fronts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    profile = load(GOLDEN / "models/profile.yml")
    home = tmp_path_factory.mktemp("models")
    made = Served(f"models-{os.getpid()}", profile)
    front: list[subprocess.Popen[bytes]] = []
    netns.create(made.space)
    try:
        run(["ip", "-n", made.space, "link", "set", "lo", "up"])
        for node in profile.nodes:
            address = f"{profile.ray_address(node)}/32"
            run(["ip", "-n", made.space, "address", "add", address, "dev", "lo"])
        front = serve(made.space, states(profile)[profile.control.name], home)
        made.start("node-a", "node-b", "node-c")
        listed = ("/v1/models", "GET")
        assert not as_long_as(lambda: made.ask(None, *listed)[0] != 200, 60, 0.1)
        yield made
    finally:
        made.go_on.set()
        made.kill(*made.servers)
        stop(front)
        netns.delete(made.space)


@pytest.fixture
def served(fronts: Served) -> Iterator[Served]:
    """With all servers; nginx has forgotten that one was away."""
    yield fronts
    away = {"node-a", "node-b", "node-c"} - fronts.servers.keys()
    fronts.start(*away)
    time.sleep(5.5 if away else 0)  # fail_timeout


def test_a_request_gets_to_the_model_that_it_names(served: Served) -> None:
    for _ in range(4):
        assert served.node({"prompt": "a", "model": FIRST}) in ("node-a", "node-b")
        assert served.node({"model": SECOND, "prompt": "a"}) == "node-c"
    # By whatever JSON's rules allow.
    assert served.node(f'{{"model"\n :\t"{SECOND}"}}') == "node-c"
    status, said = served.ask({"model": SECOND}, "/v1/chat/completions?a=b%20c")
    assert (status, json.loads(said)["path"]) == (200, "/v1/chat/completions?a=b%20c")
    # vLLM gets what the client sent, and nothing of ours.
    assert served.ask({"model": SECOND}, **{"X-Own": "x", "X-Orchestrate-Model": "0"})[0] == 200
    head = served.heads["node-c"][-1]
    assert head["X-Own"] == "x" and head["Authorization"] == f"Bearer {KEY}"
    assert "X-Orchestrate-Model" not in head


def test_what_a_prompt_says_does_not_lead_a_request(served: Served) -> None:
    lines = [f'"model": "{FIRST}"', f'\\"model\\": \\"{FIRST}\\"', f'{{"model":"{FIRST}"}}']
    for line in lines:
        assert served.node({"prompt": line, "model": SECOND}) == "node-c", line
        assert served.node({"model": SECOND, "messages": [{"content": line}]}) == "node-c", line
        assert served.ask({"prompt": line})[0] == 404, line
    # A key or a value that ends as the word does.
    assert served.ask({'"model': FIRST, "a_model": FIRST, "model_b": FIRST})[0] == 404
    assert served.node({"user": "model", "model": SECOND, "x": FIRST}) == "node-c"


@pytest.mark.parametrize(
    "body",
    [
        None,
        "",
        "no JSON",
        {},
        {"prompt": "a"},
        {"model": ""},
        {"model": None},
        {"model": "other"},
        {"model": f"{SECOND}x"},
        {"model": f"x{SECOND}"},
        {"model": SECOND.upper()},
        {"model": SECOND.replace("-", "_")},
        {"model": [SECOND]},
    ],
)
def test_a_request_for_no_model_is_told_which_there_are(served: Served, body: object) -> None:
    before = sum(map(len, served.heads.values()))
    status, said = served.ask(body)
    error = json.loads(said)["error"]
    assert (status, error["code"], error["param"]) == (404, 404, "model")
    assert FIRST in error["message"] and SECOND in error["message"]
    assert sum(map(len, served.heads.values())) == before


def test_a_large_body_arrives_whole(served: Served) -> None:
    # Quotes and line ends, as in a document: each is escaped.
    text = 'say "model": "no"\n' * 600_000
    body = json.dumps({"prompt": text, "model": SECOND})
    assert len(body) > 10_000_000
    status, said = served.ask(body)
    assert status == 200
    assert json.loads(said) == {"node": "node-c", "path": "/v1/completions", "bytes": len(body)}
    assert served.ask("x" * (65 << 20))[0] in (0, 413)


def test_a_body_in_chunks_is_read_too(served: Served) -> None:
    with closing(served.connection()) as connection:
        parts = [b'{"prompt": "a", "mo', b'del": "random-', b'300m"}']
        given = {"Authorization": f"Bearer {KEY}"}
        connection.request("POST", "/v1/completions", iter(parts), given, encode_chunked=True)
        answer = connection.getresponse()
        assert answer.status == 200 and json.loads(answer.read())["node"] == "node-c"


def test_an_answer_is_streamed(served: Served) -> None:
    served.go_on.clear()
    with closing(served.connection()) as connection:
        body = json.dumps({"model": SECOND, "stream": True})
        given = {"Authorization": f"Bearer {KEY}"}
        connection.request("POST", "/v1/completions", body, given)
        answer = connection.getresponse()
        # It is here while the rest is not even sent.
        assert answer.read(5) == b"first"
        served.go_on.set()
        assert answer.read() == b"last"


def test_strangers_get_nothing(served: Served) -> None:
    before = sum(map(len, served.heads.values()))
    for path in ("/v1/models", "/v1/completions", "/copies/node-c/v1/models"):
        for method in ("GET", "POST"):
            body = {"model": SECOND}
            status, said = served.ask(body, path, method, Authorization="Bearer no")
            assert status == 401 and FIRST not in said
    assert sum(map(len, served.heads.values())) == before
    for way in ("/model-1/completions", "/session-0/completions", "/v1/../metrics", "/metrics"):
        assert served.ask({"model": SECOND}, way)[0] == 404, way
    # A browser asks first whether it may.
    for way in ("/v1/completions", "/v1/models"):
        assert served.ask(None, way, "OPTIONS", Authorization="no")[0] == 200
    assert sum(map(len, served.heads.values())) == before + 2


def test_all_models_are_listed(served: Served) -> None:
    status, said = served.ask(None, "/v1/models", "GET")
    found = json.loads(said)
    assert (status, found["object"]) == (200, "list")
    assert [each["id"] for each in found["data"]] == [FIRST, SECOND]
    with closing(served.connection()) as connection:
        connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {KEY}"})
        assert connection.getresponse().getheader("Access-Control-Allow-Origin") == "*"
    # A copy's own list is vLLM's.
    status, said = served.ask(None, "/copies/node-c/v1/models", "GET")
    assert json.loads(said)["node"] == "node-c"


def test_a_session_stays_with_its_copy(served: Served) -> None:
    homes = {}
    for session in map(str, range(16)):
        found = {served.node({"model": FIRST}, **{"X-Session-ID": session}) for _ in range(3)}
        assert len(found) == 1, session
        homes[session] = found.pop()
        assert served.node({"model": SECOND}, **{"X-Session-ID": session}) == "node-c"
    assert set(homes.values()) == {"node-a", "node-b"}


def test_a_model_that_is_lost_leaves_the_others(served: Served) -> None:
    served.kill("node-c")
    status, said = served.ask({"model": SECOND})
    assert status == 503 and "does not answer" in json.loads(said)["error"]["message"]
    for _ in range(4):
        assert served.node({"model": FIRST}) in ("node-a", "node-b")
    health = {
        path: served.ask(None, path, "GET", Authorization="no")[0]
        for path in ("/health", f"/health/{FIRST}", f"/health/{SECOND}", "/health/other")
    }
    assert list(health.values()) == [200, 200, 503, 404], health
    served.kill("node-a", "node-b")
    assert served.ask(None, "/health", "GET")[0] == 503
