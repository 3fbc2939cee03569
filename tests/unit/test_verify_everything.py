"""All checks at once: nodes by their own words, and a real HTTP server as the endpoint."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import httpx

from orchestrator.core import paths
from orchestrator.core.errors import UserError
from orchestrator.core.run import Result
from orchestrator.models import catalog
from orchestrator.models.profiles import load
from orchestrator.models.serving import resolve
from orchestrator.profile import Node
from orchestrator.verify import Report, VerifyContext, gather, judge, verify
from orchestrator.verify.facts import NodeFacts, RankFacts, RayFacts, RayNode

PROFILE = load(paths.checkout() / "profiles" / "sim.yml")
ANSWERS = catalog.find(PROFILE.serving.model).answers
KEY = "the-key"
IMAGE = "0123abcd"


@dataclass
class Cluster:
    """A cluster that is right, unless a test breaks something of it."""

    dead: set[str] = field(default_factory=set)
    facts: dict[str, Any] = field(default_factory=dict)
    ray_error: str = ""
    plan: Callable[[], dict[str, list[str]]] = lambda: {node.name: [] for node in PROFILE.nodes}
    answers: dict[str, str] = field(default_factory=lambda: {a.question: a.answer for a in ANSWERS})
    drift: float = 0.0  # added to the log probabilities at each answer
    hang_up: bool = False
    refuse: str = ""  # what every question is answered with, as an error
    needs_key: bool = True
    asked: int = 0

    def run_on(self, node: Node, argv: Sequence[str], stdin: str | None, timeout: float) -> Result:
        assert timeout > 0
        if node.name in self.dead:
            raise UserError(f"{node.name}: SSH does not answer\n  and more", "see its console")
        if stdin is None:
            return self.answer(argv, RAY_STATUS)
        if "RayFacts" in stdin:
            return self.answer(argv, json.dumps(asdict(ray_facts())))
        facts = asdict(node_facts(node, json.loads(argv[-1])))
        return Result(tuple(argv), 0, json.dumps(facts | self.facts), "")

    def answer(self, argv: Sequence[str], out: str) -> Result:
        return Result(tuple(argv), int(bool(self.ray_error)), out, self.ray_error)


RAY_STATUS = "Active:\n 1 node_a\n 1 node_b\n 1 node_c\nPending:\n (no pending nodes)\n"


def node_facts(node: Node, want: dict[str, Any]) -> NodeFacts:
    addresses = {other.name: [PROFILE.ray_address(other)] for other in PROFILE.nodes}
    uids = {account.name: account.uid for account in PROFILE.users.accounts}
    return NodeFacts(
        time=time.time(),
        image=IMAGE,
        hostname=node.name,
        loopback=["localhost", "compute-node"],
        names={name: addresses[name] for name in want["nodes"]},
        accounts={name: uids[name] for name in want["accounts"]},
        system="running",
        failed=[],
        units=dict.fromkeys(want["units"], "active"),
    )


def ray_facts() -> RayFacts:
    nodes = [
        RayNode(node.name, PROFILE.ray_address(node), PROFILE.is_control(node), node.accelerators)
        for node in PROFILE.nodes
    ]
    workers = [RankFacts(node.name, PROFILE.ray_address(node)) for node in PROFILE.compute_nodes]
    return RayFacts(nodes, workers)


@contextmanager
def endpoint(cluster: Cluster) -> Iterator[str]:
    """An OpenAI-like server on loopback that answers as ``cluster`` says."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Nothing on the terminal."""

        def do_GET(self) -> None:
            self.reply({"data": [{"id": PROFILE.serving.model}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert body["temperature"] == 0
            assert body["seed"] == PROFILE.verification.seed
            cluster.asked += 1
            if cluster.hang_up:
                self.close_connection = True
                return
            if cluster.refuse:
                self.send_error(503, cluster.refuse)
                return
            text = cluster.answers[body["messages"][-1]["content"]]
            logprob = -0.01 - cluster.drift * cluster.asked
            content = [{"token": character, "logprob": logprob} for character in text]
            choice = {"message": {"content": text}, "finish_reason": "stop"}
            self.reply({"choices": [choice | {"logprobs": {"content": content}}]})

        def reply(self, document: object) -> None:
            denied = cluster.needs_key and self.headers["Authorization"] != f"Bearer {KEY}"
            text = json.dumps({} if denied else document).encode()
            self.send_response(401 if denied else 200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def verified(
    cluster: Cluster,
    network: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Report:
    with endpoint(cluster) as url:
        context = VerifyContext(
            run_on=cluster.run_on,
            http=lambda: httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}),
            network=network,
            plan=cluster.plan,
            units={node.name: ["chrony.service"] for node in PROFILE.nodes},
            layout=resolve(PROFILE),
            answers=ANSWERS,
            image_id=IMAGE,
        )
        return verify(PROFILE, context)


def failures(report: Report) -> set[tuple[str, str]]:
    return {(check.node, check.name) for check in report.failed}


def test_a_cluster_as_it_should_be() -> None:
    report = verified(Cluster())
    assert failures(report) == set()
    assert report.ok
    assert len(report.checks) == 3 * (len(judge.NODE_RULES) + 1) + 4 + 1 + 3 + len(ANSWERS)


def test_every_thread_enters_the_network_first() -> None:
    inside = threading.local()

    @contextmanager
    def network() -> Iterator[None]:
        inside.here = True
        yield
        inside.here = False

    cluster = Cluster()
    plain, plan = cluster.run_on, cluster.plan

    def run_on(node: Node, argv: Sequence[str], stdin: str | None, timeout: float) -> Result:
        assert inside.here
        return plain(node, argv, stdin, timeout)

    def planned() -> dict[str, list[str]]:
        assert inside.here
        return plan()

    cluster.run_on, cluster.plan = run_on, planned  # type: ignore[method-assign]
    assert verified(cluster, network).ok


def test_a_dead_node_fails_its_own_checks_only() -> None:
    report = verified(Cluster(dead={"compute1"}))
    assert failures(report) == {("compute1", rule.name) for rule in judge.NODE_RULES}
    first, second, *_ = report.failed
    assert first.seen == "compute1: SSH does not answer\n  and more"
    assert second.seen == "not checked: compute1: SSH does not answer"


def test_a_node_that_answers_nonsense_is_no_traceback() -> None:
    report = verified(Cluster(facts={"names": "all of them"}))
    assert {node for node, _ in failures(report)} == {node.name for node in PROFILE.nodes}
    assert "names" in report.failed[0].seen


def test_a_wrong_image_is_named() -> None:
    report = verified(Cluster(facts={"image": "old"}))
    assert failures(report) == {(node.name, "image") for node in PROFILE.nodes}
    assert (report.failed[0].expected, report.failed[0].seen) == (IMAGE, "old")


def test_ray_that_is_down() -> None:
    report = verified(Cluster(ray_error="Traceback\nFailed to connect to GCS."))
    rules = ("ray nodes", "ray head", "ray accelerators", "ray status", "ranks")
    assert failures(report) == {("control", name) for name in rules}
    assert all("Failed to connect to GCS." in check.seen for check in report.failed)


def test_drift_is_by_node() -> None:
    plan = {"control": [], "compute0": ["file /etc/hosts: content"]}
    report = verified(Cluster(plan=lambda: plan))
    assert failures(report) == {("compute0", "drift"), ("compute1", "drift")}
    assert "does not include" in report.failed[1].seen


def test_a_plan_that_breaks_fails_drift_only() -> None:
    def broken() -> dict[str, list[str]]:
        raise RuntimeError("no plan")

    report = verified(Cluster(plan=broken))
    assert failures(report) == {(node.name, "drift") for node in PROFILE.nodes}
    assert report.failed[0].seen == "RuntimeError: no plan"


def test_one_wrong_answer_is_one_failure() -> None:
    wrong = ANSWERS[-1]
    cluster = Cluster()
    cluster.answers[wrong.question] = "42"
    (check,) = verified(cluster).failed
    assert (check.name, check.seen) == (f"answer: {wrong.question}", "'42'")
    assert check.expected == repr(wrong.answer)


def test_log_probabilities_that_wander() -> None:
    (check,) = verified(Cluster(drift=0.02)).failed
    assert check.name == "same answer again"
    assert check.seen.endswith("within 0.04")


def test_an_open_endpoint() -> None:
    (check,) = verified(Cluster(needs_key=False)).failed
    assert (check.name, check.seen) == ("key needed", "HTTP 200 without the API key")


def test_an_endpoint_that_hangs_up_is_asked_once_only() -> None:
    cluster = Cluster(hang_up=True)
    report = verified(cluster)
    assert cluster.asked == 1
    names = {f"answer: {answer.question}" for answer in ANSWERS} | {"same answer again"}
    assert failures(report) == {("control", name) for name in names}
    assert all("does not answer" in check.seen for check in report.failed)


def test_an_endpoint_that_refuses_says_why_each_time() -> None:
    cluster = Cluster(refuse="the engine is dead")
    report = verified(cluster)
    assert cluster.asked == len(ANSWERS) + 1
    assert len(report.failed) == len(ANSWERS) + 1
    assert all("HTTP 503" in check.seen for check in report.failed)


def test_a_slow_answer_is_no_wrong_clock() -> None:
    """A node says its time in the middle of a round trip of four seconds."""
    node = PROFILE.compute_nodes[0]
    facts = asdict(node_facts(node, {"nodes": [], "accounts": [], "units": []}))
    said = Result((), 0, json.dumps(facts | {"time": 1002.0}), "")
    context: Any = SimpleNamespace(units={}, run_on=lambda *words: said)
    times = iter([1000.0, 1004.0])
    _, clock = gather.node(context, PROFILE, node, lambda: next(times))
    assert (clock.offset, clock.uncertainty) == (0.0, 2.0)
