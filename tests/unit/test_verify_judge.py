"""Every judge with a cluster that is right, and with each way of being wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.attach import verify as attached
from orchestrator.core import paths
from orchestrator.models.catalog import Answer
from orchestrator.models.profiles import load
from orchestrator.models.serving import Layout
from orchestrator.verify import judge
from orchestrator.verify.facts import Clock, Generated, NodeFacts, RankFacts, RayFacts, RayNode
from orchestrator.verify.layers import LAYERS
from orchestrator.verify.probe_node import loopback

PROFILE = load(paths.checkout() / "profiles" / "sim.yml")
COMPUTE0, COMPUTE1 = PROFILE.compute_nodes
ADDRESSES = {node.name: PROFILE.ray_address(node) for node in PROFILE.nodes}
LAYOUT = Layout(tensor=2, pipeline=1, expert=False, accelerators=2)

FACTS = NodeFacts(
    time=0,
    image="abc",
    hostname="compute0",
    loopback=["localhost", "compute-node"],
    names={name: [address] for name, address in ADDRESSES.items()},
    accounts={"compute": 1000},
    system="running",
    failed=[],
    units={"ray-worker.service": "active", "chrony.service": "declined"},
)
SIGHT = judge.NodeObservation(PROFILE, COMPUTE0, "abc", FACTS, Clock(offset=0.4, uncertainty=0.1))
RULES = {rule.name: verdict for rule, verdict in judge.NODE_RULES.items()}

RAY = RayFacts(
    nodes=[
        RayNode("a1", ADDRESSES["control"], head=True, accelerators=0),
        RayNode("b2", ADDRESSES["compute0"], head=False, accelerators=1),
        RayNode("c3", ADDRESSES["compute1"], head=False, accelerators=1),
    ],
    workers=[
        RankFacts("vllm_Worker_TP0", ADDRESSES["compute0"]),
        RankFacts("vllm_Worker_TP1", ADDRESSES["compute1"]),
    ],
)
STATUS = """======== Autoscaler status: 2026-11-24 03:22:54.407384 ========
Node status
---------------------------------------------------------------
Active:
 1 node_8b191b7f1552364d9fc86bceae7b6b47ed7fb5b753bdca495c8539a1
 1 node_2b191b7f1552364d9fc86bceae7b6b47ed7fb5b753bdca495c8539a1
 1 node_3b191b7f1552364d9fc86bceae7b6b47ed7fb5b753bdca495c8539a1
Pending:
 (no pending nodes)
Recent failures:
 (no failures)
"""
SAID = Generated("Paris.", "stop", ("Par", "is.", ""), (-0.1, -0.2, -0.01))
PARIS = Answer("Capital of France?", "Paris.")


@pytest.mark.parametrize("name", RULES)
def test_a_node_as_it_should_be(name: str) -> None:
    assert RULES[name](SIGHT).ok


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("image", {"image": "other"}, "other"),
        ("image", {"image": ""}, "no image id"),
        ("hostname", {"hostname": "debian"}, "debian"),
        ("loopback", {"loopback": ["localhost"]}, "localhost"),
        ("names", {"names": FACTS.names | {"compute1": ["127.0.1.1"]}}, "compute1 127.0.1.1"),
        ("names", {"names": FACTS.names | {"compute1": []}}, "compute1 unknown"),
        ("accounts", {"accounts": {"compute": 1001}}, "compute 1001"),
        ("accounts", {"accounts": {"compute": None}}, "compute missing"),
        ("units", {"system": "degraded", "failed": ["nginx.service"]}, "nginx.service failed"),
        ("units", {"system": "starting"}, "starting"),
        ("units", {"units": {"ray-worker.service": "inactive"}}, "ray-worker.service inactive"),
    ],
)
def test_a_node_that_is_wrong(name: str, change: dict[str, object], said: str) -> None:
    sight = replace(SIGHT, facts=replace(FACTS, **change))  # type: ignore[arg-type]
    verdict = RULES[name](sight)
    assert not verdict.ok
    assert said in verdict.seen
    assert verdict.expected not in verdict.seen
    others = {other for other, look in RULES.items() if not look(sight).ok}
    assert others == {name}


@pytest.mark.parametrize(("offset", "ok"), [(-5.1, False), (-4.9, True), (4.9, True), (5.1, False)])
def test_a_clock_may_be_off_by_the_tolerance_only(offset: float, ok: bool) -> None:
    verdict = judge.clock(replace(SIGHT, clock=Clock(offset, 0.25)))
    assert verdict.ok is ok
    assert verdict.seen == f"{offset:+.2f} s (± 0.25 s)"


def test_the_control_node_needs_no_compute_name() -> None:
    sight = replace(SIGHT, node=PROFILE.control, facts=replace(FACTS, loopback=["localhost"]))
    assert judge.loopback(sight).ok


def test_ray_as_the_profile_says() -> None:
    assert judge.ray_nodes(PROFILE, RAY).ok
    assert judge.ray_head(PROFILE, RAY).ok
    assert judge.ray_accelerators(PROFILE, RAY).ok
    assert judge.ranks(PROFILE, LAYOUT, RAY.workers).ok
    assert judge.ray_status(PROFILE, STATUS).ok


def test_ray_misses_a_node() -> None:
    verdict = judge.ray_nodes(PROFILE, replace(RAY, nodes=RAY.nodes[:2]))
    assert not verdict.ok
    assert verdict.seen == f"missing: compute1 {ADDRESSES['compute1']}"


def test_ray_has_a_node_that_is_not_in_the_profile() -> None:
    stranger = RayNode("d4", "10.77.0.99", head=False, accelerators=1)
    verdict = judge.ray_nodes(PROFILE, replace(RAY, nodes=[*RAY.nodes, stranger]))
    assert not verdict.ok
    assert verdict.seen == "not in the profile: 10.77.0.99"


def test_ray_counts_one_node_twice() -> None:
    verdict = judge.ray_nodes(PROFILE, replace(RAY, nodes=[*RAY.nodes, RAY.nodes[1]]))
    assert not verdict.ok


def test_the_head_is_elsewhere_or_nowhere() -> None:
    headless = [replace(node, head=False) for node in RAY.nodes]
    assert judge.ray_head(PROFILE, replace(RAY, nodes=headless)).seen == "no head"
    headless[1] = replace(headless[1], head=True)
    verdict = judge.ray_head(PROFILE, replace(RAY, nodes=headless))
    assert not verdict.ok
    assert "compute0" in verdict.seen


def test_ray_counts_an_accelerator_too_many() -> None:
    nodes = [replace(RAY.nodes[0], accelerators=1), *RAY.nodes[1:]]
    verdict = judge.ray_accelerators(PROFILE, replace(RAY, nodes=nodes))
    assert not verdict.ok
    assert verdict.seen == "control 1, compute0 1, compute1 1"


NOBODY = "Pending:\n (no pending nodes)\nRecent failures:\n (no failures)\n"


@pytest.mark.parametrize(
    "living",
    [
        "Active:\n (no active nodes)\nIdle:\n 1 headgroup\n 2 workergroup\n",
        "Active:\n 2 workergroup\nIdle:\n 1 headgroup\n",
        "Active:\n 3 node_a\nIdle:\n (no idle nodes)\n",
        "Healthy:\n 1 ray.head.default\n 2 ray.worker.default\n",
    ],
)
def test_ray_status_in_other_words(living: str) -> None:
    head = "======== Autoscaler status: 2026-01-01 00:00:00 ========\nNode status\n-----\n"
    assert judge.ray_status(PROFILE, head + living + NOBODY).ok
    assert judge.ray_status(PROFILE, head + living.strip()).ok


@pytest.mark.parametrize(
    "others",
    [
        "Pending:\n workergroup, 1 launching\n 10.0.0.9: workergroup, setting-up\n",
        "Pending:\n 1 workergroup\nRecent failures:\n 1 workergroup: NodeTerminated\n",
    ],
)
def test_what_does_not_live_is_not_counted(others: str) -> None:
    text = f"Active:\n 1 workergroup\nIdle:\n 1 headgroup\n{others}"
    verdict = judge.ray_status(PROFILE, text)
    assert (verdict.ok, verdict.seen) == (False, "2 active nodes")


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        (STATUS.replace(" 1 node_2b", "2b"), "active nodes"),
        (
            STATUS.replace(
                " 1 node_2b191b7f1552364d9fc86bceae7b6b47ed7fb5b753bdca495c8539a1\n", ""
            ),
            "2 active nodes",
        ),
        ("No cluster status. It may take a few seconds", "No cluster status"),
        ("", "no output"),
    ],
)
def test_ray_status_of_another_cluster(text: str, seen: str) -> None:
    verdict = judge.ray_status(PROFILE, text)
    assert not verdict.ok
    assert seen in verdict.seen


@pytest.mark.parametrize(
    ("places", "seen"),
    [
        ([], "no rank"),
        (["compute0"], "1 ranks: compute0 1; none on compute1"),
        (["compute0", "compute0"], "2 ranks: compute0 2; none on compute1"),
        (["control", "compute0"], "2 ranks: control 1, compute0 1; none on compute1"),
        (["compute0", "compute1", "compute1"], "3 ranks: compute0 1, compute1 2"),
    ],
)
def test_ranks_at_the_wrong_place(places: list[str], seen: str) -> None:
    workers = [RankFacts("w", ADDRESSES[name]) for name in places]
    verdict = judge.ranks(PROFILE, LAYOUT, workers)
    assert not verdict.ok
    assert verdict.seen == seen


def test_fewer_ranks_than_accelerators_may_lie_on_either_node() -> None:
    layout = replace(LAYOUT, tensor=1)
    for worker in RAY.workers:
        assert judge.ranks(PROFILE, layout, [worker]).ok


def test_each_copy_has_its_ranks_on_its_own_nodes() -> None:
    pair = replace(LAYOUT, tensor=1, data=2)
    both = [RankFacts("w", ADDRESSES["compute0"]), RankFacts("w", ADDRESSES["compute1"])]
    verdict = judge.ranks(PROFILE, pair, both)
    assert verdict.ok
    assert verdict.expected == "2 copies of 1 ranks: compute0 1, compute1 1"
    assert verdict.seen == "2 ranks: compute0 1, compute1 1"
    lost = judge.ranks(PROFILE, pair, both[:1])
    assert (lost.ok, lost.seen) == (False, "1 ranks: compute0 1; none on compute1")
    # As many as there have to be, and one copy's where the other's should be.
    nodes = [node.model_copy(update={"accelerators": 2}) for node in PROFILE.compute_nodes]
    roomy = PROFILE.model_copy(update={"compute_nodes": tuple(nodes)})
    assert not judge.ranks(roomy, pair, [both[0], both[0]]).ok


def test_a_node_without_its_rank_of_vllms_own_executor_is_named() -> None:
    serving = PROFILE.serving.model_copy(update={"executor": "mp"})
    nodes = [node.model_copy(update={"accelerators": 2}) for node in PROFILE.compute_nodes]
    own = PROFILE.model_copy(update={"serving": serving, "compute_nodes": tuple(nodes)})
    layout = replace(LAYOUT, tensor=4, accelerators=4)
    here = [RankFacts("VLLM::Worker_TP0", ADDRESSES["compute0"])] * 2
    verdict = judge.ranks(own, layout, here)
    assert (verdict.ok, verdict.seen) == (False, "2 ranks: compute0 2; none on compute1")


def test_the_model_is_listed() -> None:
    assert judge.listed(PROFILE, ["known-answers"]).ok
    assert not judge.listed(PROFILE, ["another"]).ok
    assert judge.listed(PROFILE, []).seen == "no model"


def test_the_key_is_needed() -> None:
    assert judge.key_needed(401).ok
    assert judge.key_needed(200).seen == "HTTP 200 without the API key"
    assert not judge.key_needed(200).ok


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        ({"text": "paris."}, "'paris.'"),
        ({"text": "Paris. "}, "'Paris. '"),
        ({"finish_reason": "length"}, "'Paris.' (ended by 'length', not by the model)"),
    ],
)
def test_an_answer_is_exact_or_wrong(change: dict[str, str], seen: str) -> None:
    assert judge.answer(PARIS, SAID).ok
    verdict = judge.answer(PARIS, replace(SAID, **change))  # type: ignore[arg-type]
    assert not verdict.ok
    assert verdict.seen == seen


def test_the_same_answer_again() -> None:
    near = replace(SAID, logprobs=(-0.1, -0.205, -0.01))
    assert judge.repeated([SAID, near, SAID], tolerance=0.01).ok


@pytest.mark.parametrize(
    ("other", "seen"),
    [
        (replace(SAID, logprobs=(-0.1, -0.25, -0.01)), "within 0.05"),
        (replace(SAID, tokens=("Pa", "ris.", "")), "answer 3"),
        (replace(SAID, text="Rome", tokens=("Rome",), logprobs=(-1.0,)), "'Rome'"),
    ],
)
def test_another_answer_the_third_time(other: Generated, seen: str) -> None:
    verdict = judge.repeated([SAID, SAID, other], tolerance=0.01)
    assert not verdict.ok
    assert seen in verdict.seen


def test_no_tokens_are_no_proof() -> None:
    nothing = replace(SAID, tokens=(), logprobs=())
    assert not judge.repeated([nothing, nothing], tolerance=0.01).ok


@pytest.mark.parametrize(
    ("said", "ok"), [("It is PARIS, of course", True), ("Lyon", False), ("", False)]
)
def test_an_answer_that_only_has_to_have_a_text(said: str, ok: bool) -> None:
    known = Answer("Capital of France?", "Paris", whole=False)
    verdict = judge.answer(known, replace(SAID, text=said, finish_reason="length"))
    assert verdict.ok is ok
    assert (verdict.expected, verdict.seen) == ("an answer with 'Paris'", repr(said))


def test_drift_names_what_differs() -> None:
    assert judge.drift([]).ok
    assert judge.drift(["file /etc/hosts: content"]).seen == "file /etc/hosts: content"
    assert not judge.drift(["file /etc/hosts: content"]).ok


def test_the_reference_lists_every_check() -> None:
    reference = Path(paths.checkout() / "docs/reference/checks.md").read_text(encoding="utf-8")
    every = [*vars(judge).values(), *vars(attached).values()]
    rules = [value for value in every if isinstance(value, judge.Rule)]
    names = {rule.name for rule in [*rules, *judge.NODE_RULES]} | {"answer: QUESTION"}
    names |= {layer.name for layer in LAYERS}
    listed = {line.split("|")[1].strip() for line in reference.splitlines() if line[:3] == "| `"}
    assert listed == {f"`{name}`" for name in names}


def test_names_on_loopback_are_those_that_count() -> None:
    hosts = "127.0.0.1 localhost # compute-node\n#127.0.0.1 other\n127.0.0.1 third\n::1 six\n"
    assert loopback(hosts) == ["localhost", "third"]
