"""What is made of Ray's own words: which nodes live, which were not named, where ranks lie."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.attach import ray as rays
from orchestrator.attach.endpoint import EndpointFacts
from orchestrator.attach.facts import Address, EngineProcess, MachineFacts
from orchestrator.attach.find import ClusterFound, NodeFound
from orchestrator.attach.ray import RayCluster, RayMachine, RayRank
from orchestrator.attach.verify import Looked, checks
from orchestrator.profile.existing import Attached, AttachedNode, AttachedServing, Endpoint
from orchestrator.verify.facts import Clock

HEAD = "10.0.0.1:6379"


def node(number: int, **more: Any) -> RayMachine:
    given = {"alive": True, "resources": {"CPU": 8.0, "GPU": 1.0}, **more}
    return RayMachine(
        id=f"id{number}", address=f"10.0.0.{number}", hostname=f"box{number}", head=number == 1,
        **given,
    )  # fmt: skip


def rank(number: int, job: str = "01", what: str = "RayWorkerProc") -> RayRank:
    return RayRank(what, f"id{number}", f"10.0.0.{number}", 100 + number, job)


def found(*nodes: RayMachine, ranks: list[RayRank] | None = None, **more: Any) -> RayCluster:
    return RayCluster(HEAD, "2.60.0", list(nodes), ranks or [], **more)


def facts(number: int, *engines: EngineProcess) -> MachineFacts:
    address = Address("eth0", f"10.0.0.{number}", None, 1500, "")
    return MachineFacts(0.0, f"box{number}", "u", "6.1", "3.11", 8, 1 << 34, [address], [], [],
                        list(engines), [["raylet", f"--gcs-address={HEAD}"]])  # fmt: skip


def server(pid: int) -> EngineProcess:
    return EngineProcess(pid, [], "u", ["vllm", "serve", "m", "-tp", "2"], "", {}, None, "")


def test_a_node_that_died_and_came_back_is_alive() -> None:
    told = found(node(1), node(2, alive=False, reason="lost"), node(2), node(3, alive=False))
    assert [each.address for each in told.dead] == ["10.0.0.3"]
    lines = list(rays.missing(told, [facts(1), facts(2)], silent=False))
    assert lines == ["Ray's node 10.0.0.3 (box3) is dead: no reason is told"]


def test_a_node_that_was_not_named_is_told_with_what_to_add() -> None:
    told = found(node(1), node(2), node(4, resources={"CPU": 8.0}))
    (line,) = rays.missing(told, [facts(1)], silent=False)
    assert line.startswith("Ray's node 10.0.0.2 (box2) was not named: add --node 10.0.0.2")
    # One that was named and did not answer may be that one.
    assert list(rays.missing(told, [facts(1)], silent=True)) == []
    # Without accelerators, but with a rank: on processors.
    told = replace(told, ranks=[rank(4)])
    assert len(list(rays.missing(told, [facts(1)], silent=False))) == 2


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (
            "AuthenticationError: Token authentication is enabled but no token",
            "did not let this user in",
        ),
        ("RaySystemError: Failed to connect to GCS", "did not let this user in"),
        ("box: the Python of vLLM is not known", "could not be asked: box: the Python"),
        ("evil \x1b[2J", r"evil \x1b[2J"),
    ],
)
def test_why_ray_does_not_answer(error: str, wanted: str) -> None:
    told = RayCluster(HEAD, error=error)
    (line,) = rays.missing(told, [facts(1)], silent=False)
    assert wanted in line and "\x1b" not in line


def test_ranks_are_those_of_the_servers_own_job() -> None:
    """Two models on one Ray: the job whose driver is this server counts."""
    told = found(
        node(1), node(2), ranks=[rank(1), rank(2), rank(1, "02"), rank(1, "02")],
        drivers={"01": ("10.0.0.1", 7), "02": ("10.0.0.1", 8)},
    )  # fmt: skip
    nodes = [facts(1, server(7)), facts(2)]
    assert rays.job_of(told, nodes) == "01"
    assert [len(told.on(each, told.of_job("01"))) for each in nodes] == [1, 1]
    assert rays.job_of(told, [facts(1), facts(2)]) is None
    engines = [rank(1, what="DPMoEEngineCoreActor"), rank(2)]
    assert len(replace(told, ranks=engines).of_job("01")) == 1
    assert len(replace(told, ranks=engines[:1]).of_job("01")) == 1


def test_ranks_that_no_process_shows_are_rays() -> None:
    """Ray's workers are in a container that the user cannot look into."""
    told = found(node(1), node(2), ranks=[rank(1), rank(2)])
    nodes = tuple(
        NodeFound(AttachedNode(name=f"b{n}", host=f"b{n}"), facts(n, *engines))
        for n, engines in ((1, [server(7)]), (2, []))
    )
    said = EndpointFacts(("m",), None, {}, "", True, {}, 401)
    cluster = ClusterFound(Endpoint(url="http://x:1"), "m", said, nodes, ray=told)
    assert [cluster.ranks(each) for each in nodes] == [1, 1]
    assert [replace(cluster, ray=None).ranks(each) for each in nodes] == [0, 0]


def judged(ray: RayCluster, gone: int | None = None) -> dict[tuple[str, str], tuple[bool, str]]:
    """The checks of Ray, for a profile of a rank on each of two nodes; on ``gone`` nothing of
    Ray's runs."""
    named = [AttachedNode(name=f"b{n}", host=f"b{n}", ranks=1) for n in (1, 2)]
    profile = Attached(
        name="it", machines="existing", endpoint=Endpoint(url="http://x:1"), nodes=tuple(named),
        serving=AttachedServing(model="m"),
    )  # fmt: skip
    seen = tuple(
        NodeFound(each, replace(facts(n), ray=[]) if n == gone else facts(n), Clock(0.0, 0.1))
        for n, each in enumerate(named, start=1)
    )
    every = checks(profile, Looked(None, "nothing", seen, ray), whole=True)
    return {(c.name, c.node): (c.ok, c.seen) for c in every if "Ray" in c.name}


def test_verify_of_ray() -> None:
    good = judged(found(node(1), node(2), ranks=[rank(1), rank(2)]))
    assert set(good) == {
        ("Ray's nodes", "nodes"),
        *((name, each) for name in ("alive in Ray", "ranks by Ray") for each in ("b1", "b2")),
    }
    assert all(ok for ok, _ in good.values()), good
    for gone in (None, 2):
        dead = judged(found(node(1), node(2, alive=False), ranks=[rank(1)]), gone)
        assert dead["Ray's nodes", "nodes"] == (False, "1 alive; dead: 10.0.0.2 (box2)")
        assert not dead["alive in Ray", "b2"][0] and dead["alive in Ray", "b1"][0]
    unknown = judged(found(node(1), ranks=[rank(1)]), gone=2)
    assert unknown["alive in Ray", "b2"] == (False, "it has not")
    moved = judged(found(node(1), node(2), ranks=[rank(1), rank(1)]))
    assert moved["ranks by Ray", "b1"] == (False, "2")
    assert moved["ranks by Ray", "b2"] == (False, "0")
    closed = judged(RayCluster(HEAD, error="no token"))
    assert list(closed) == [("Ray's nodes", "nodes")]
    assert "did not let this user in" in closed["Ray's nodes", "nodes"][1]
