"""Copies of a model behind one endpoint: a real nginx with the control node's own configuration,
before servers that stand where the copies' vLLM do, and die."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from support import PROJECT
from support.golden import GOLDEN, context, states
from support.web import NGINX, serve, stop

from orchestrator.cluster.desired import desired
from orchestrator.core.run import run
from orchestrator.core.waiting import as_long_as
from orchestrator.models.profiles import load
from orchestrator.models.serving import copies
from orchestrator.node.trust import Secret
from orchestrator.profile import Profile
from orchestrator.provision.machines import netns

pytestmark = pytest.mark.skipif(NGINX is None, reason="needs nginx (Debian: nginx-light)")

KEY = "API KEY"  # the golden context's
MARKUP = "<b>\"model\" & 'more'</b>"
SERVER = PROJECT / "tests/support/openai_like.py"
REQUESTS, AT_ONCE = 500, 16


@dataclass
class Answer:
    """How one request went."""

    user: str
    began: float
    status: int = 0
    body: bytes = b""

    @property
    def whole(self) -> bool:
        return self.status == 200 and self.body.rstrip().endswith(b"[DONE]")


@dataclass
class Fleet:
    """The endpoint and the copies behind it, in a network namespace of their own."""

    space: str
    home: Path
    profile: Profile
    key: str = KEY
    front: list[subprocess.Popen[bytes]] = field(default_factory=list)
    servers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def addresses(self) -> dict[str, str]:
        """Of the copies, by name."""
        found = [copy.server for copy in copies(self.profile, 2)]
        return {node.name: self.profile.ray_address(node) for node in found}

    def start(self, *names: str) -> None:
        """Start copies, and wait until each listens."""
        for name in names or self.addresses:
            where = ("--host", self.addresses[name], "--port", str(self.profile.serving.port))
            argv = [sys.executable, str(SERVER), "serve", "m", *where, "--api-key", self.key]
            argv += ["--served-model-name", MARKUP, "--log", str(self.home / name)]
            with netns.entered(self.space):
                self.servers[name] = subprocess.Popen(argv, stdout=subprocess.PIPE)
            out = self.servers[name].stdout
            assert out and out.readline()

    def kill(self, *names: str) -> None:
        for name in names or tuple(self.servers):
            with self.servers.pop(name) as server:
                server.kill()

    def said(self) -> str:
        """The web servers' logs."""
        return "\n".join(log.read_text() for log in self.home.glob("*.conf.log"))

    def restart_front(self) -> None:
        """As systemd does when a file that the unit reads has changed."""
        stop(self.front)
        told = replace(context(self.profile), api_key=Secret(self.key))
        state = desired(self.profile, self.profile.control, told)
        self.front = serve(self.space, state, self.home)
        assert not as_long_as(lambda: self.ask("GET", "/v1/models")[0] == 0, 60, 0.1), self.said()

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, bytes]:
        """Status and body; 0 without an answer, and what came of a body that broke off."""
        control = self.profile.ray_address(self.profile.control)
        port = self.profile.serving.endpoint_port
        given = {"Authorization": f"Bearer {self.key}", **headers}
        sent = json.dumps(body) if body is not None else None
        status = 0
        with (
            netns.entered(self.space),
            closing(http.client.HTTPConnection(control, port, timeout=60)) as connection,
        ):
            try:
                connection.request(method, path, sent, given)
                answer = connection.getresponse()
                status = answer.status
                return status, answer.read()
            except http.client.IncompleteRead as error:
                return status, error.partial
            except (OSError, http.client.HTTPException):
                return status, b""

    def generate(self, user: str, **headers: str) -> Answer:
        body = {"prompt": "a", "max_tokens": 4, "stream": True, "user": user}
        answer = Answer(user, time.monotonic())
        answer.status, answer.body = self.ask("POST", "/v1/completions", body, **headers)
        return answer

    def served(self, name: str) -> list[str]:
        """What a copy was asked."""
        log = self.home / name
        return log.read_text().split() if log.exists() else []

    def load(self, prefix: str, count: int, at: int = 0, then: threading.Event | None = None
             ) -> list[Answer]:  # fmt: skip
        """So many requests, AT_ONCE at a time; ``then`` is set when ``at`` of them are begun."""
        left = iter(range(count))
        answers: list[Answer] = []
        lock = threading.Lock()

        def client() -> None:
            while True:
                with lock:
                    number = next(left, None)
                if number is None:
                    return
                if then and number == at:
                    then.set()
                answers.append(self.generate(f"{prefix}{number}"))

        clients = [threading.Thread(target=client) for _ in range(AT_ONCE)]
        for each in clients:
            each.start()
        for each in clients:
            each.join(120)
        return answers


@contextmanager
def fleet_at(home: Path, case: str) -> Iterator[Fleet]:
    space = f"copies-{os.getpid()}"
    profile = load(GOLDEN / case / "profile.yml")
    netns.create(space)
    made = Fleet(space, home, profile)
    try:
        run(["ip", "-n", space, "link", "set", "lo", "up"])
        for node in profile.nodes:
            address = f"{profile.ray_address(node)}/32"
            run(["ip", "-n", space, "address", "add", address, "dev", "lo"])
        made.front = serve(space, states(profile)[profile.control.name], home)
        made.start()
        assert not as_long_as(lambda: made.ask("GET", "/v1/models")[0] != 200, 60, 0.1), made.said()
        yield made
    finally:
        made.kill()
        stop(made.front)
        netns.delete(space)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with fleet_at(tmp_path, "copies") as made:
        yield made


def test_a_copy_that_dies_under_load_costs_its_own_requests_only(fleet: Fleet) -> None:
    dies, lives = fleet.addresses
    begun = threading.Event()
    killed: list[float] = []

    def kill() -> None:
        assert begun.wait(60)
        fleet.kill(dies)
        killed.append(time.monotonic())

    killer = threading.Thread(target=kill)
    killer.start()
    answers = fleet.load("r", REQUESTS, at=REQUESTS // 4, then=begun)
    killer.join(60)
    assert len(answers) == REQUESTS
    lost = {each.user for each in answers if not each.whole}
    # It had some at that moment, and nothing else is lost: neither what the other copy had, nor
    # what came when the dead one was still thought to be there.
    assert 0 < len(lost) <= AT_ONCE
    assert lost.isdisjoint(fleet.served(lives))
    assert all(each.began < killed[0] for each in answers if each.user in lost)
    # No request was given to a second copy after a first had it.
    asked = fleet.served(dies) + fleet.served(lives)
    assert len(asked) == len(set(asked))
    assert set(asked) | lost == {each.user for each in answers}
    # The load was shared: neither had nearly all of it before.
    assert len(fleet.served(dies)) > REQUESTS // 16
    # Back again, it gets requests again.
    before = len(fleet.served(dies))
    fleet.start(dies)

    def left_out() -> bool:
        assert all(each.whole for each in fleet.load("again", AT_ONCE))
        return len(fleet.served(dies)) == before

    assert not as_long_as(left_out, 60, 0.5)


def test_with_all_copies_lost_clients_are_told_so_and_strangers_nothing(fleet: Fleet) -> None:
    fleet.kill()
    for path in ("/v1/models", "/v1/completions"):
        status, body = fleet.ask("POST", path, {"prompt": "a"})
        assert status == 503
        error = json.loads(body)["error"]
        assert "does not answer" in error["message"] and error["code"] == 503
        assert fleet.ask("POST", path, {}, Authorization="Bearer no")[0] == 401
    assert fleet.ask("GET", "/health")[0] == 503
    fleet.start()
    assert not as_long_as(lambda: fleet.ask("GET", "/health")[0] != 200, 60, 0.2)
    assert not as_long_as(lambda: not fleet.generate("x").whole, 60, 0.2)


def test_one_copy_is_reached_by_its_name_and_with_the_key_only(fleet: Fleet) -> None:
    for name in fleet.addresses:
        body = {"prompt": "a", "max_tokens": 2, "stream": True, "user": f"to-{name}"}
        path = f"/copies/{name}/v1/completions"
        assert fleet.ask("POST", path, body)[0] == 200
        assert [each for each in fleet.addresses if f"to-{name}" in fleet.served(each)] == [name]
        assert fleet.ask("GET", f"/copies/{name}/health")[0] == 200
        for way in ("v1/models", "health", "v1/../metrics"):
            status, _ = fleet.ask("GET", f"/copies/{name}/{way}", Authorization="Bearer no")
            assert status in (401, 404)
        for way in ("metrics", "invocations", "v1/../metrics", "%2e%2e/metrics", ""):
            assert fleet.ask("GET", f"/copies/{name}/{way}")[0] == 404, way
    first, second = fleet.addresses
    fleet.kill(first)
    assert fleet.ask("GET", f"/copies/{first}/health")[0] == 503
    assert fleet.ask("GET", f"/copies/{second}/health")[0] == 200


def test_a_session_stays_with_its_copy_as_long_as_there_is_one(fleet: Fleet) -> None:
    sessions = {f"session {number}": {"X-Session-ID": f"s{number}"} for number in range(16)}
    homes: dict[str, str] = {}
    for turn in range(3):
        for session, headers in sessions.items():
            user = f"{headers['X-Session-ID']}-{turn}"
            assert fleet.generate(user, **headers).whole
            home = next(name for name in fleet.addresses if user in fleet.served(name))
            assert homes.setdefault(session, home) == home
    assert set(homes.values()) == set(fleet.addresses)
    dies, lives = fleet.addresses
    fleet.kill(dies)
    for session, headers in sessions.items():
        user = f"{headers['X-Session-ID']}-later"
        assert fleet.generate(user, **headers).whole, session
        assert user in fleet.served(lives)
    assert fleet.ask("GET", "/session/models")[0] == 404


def test_a_router_that_restarts_and_a_new_key(fleet: Fleet) -> None:
    fleet.restart_front()
    assert all(each.whole for each in fleet.load("a", 2 * AT_ONCE))
    assert all(fleet.served(name) for name in fleet.addresses)
    fleet.kill()
    fleet.key = "sk-new"
    fleet.start()
    fleet.restart_front()
    assert all(each.whole for each in fleet.load("b", 2 * AT_ONCE))
    assert fleet.ask("GET", "/v1/models", Authorization=f"Bearer {KEY}")[0] == 401


def test_a_models_name_with_markup_arrives_as_it_is(fleet: Fleet) -> None:
    for path in ("/v1/models", *(f"/copies/{name}/v1/models" for name in fleet.addresses)):
        status, body = fleet.ask("GET", path)
        assert (status, json.loads(body)["data"][0]["id"]) == (200, MARKUP)
