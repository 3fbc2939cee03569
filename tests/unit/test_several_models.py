"""Several models in a profile: a view for each, and what each node gets."""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from support.golden import GOLDEN, states

from orchestrator.cli.choice import must_be_alone, of_model
from orchestrator.cluster.front import Routed
from orchestrator.cluster.reconcile import answering
from orchestrator.cluster.status import served
from orchestrator.core.errors import BadInput, UserError
from orchestrator.core.run import Result
from orchestrator.models.catalog import Answer
from orchestrator.models.profiles import load
from orchestrator.models.serving import apart, resolve_all, ways
from orchestrator.node.programs import environment
from orchestrator.node.state import NodeState
from orchestrator.profile import Profile, services
from orchestrator.verify import judge
from orchestrator.verify.everything import verify
from orchestrator.verify.facts import RankFacts
from orchestrator.verify.gather import VerifyContext

FIRST, SECOND = "known-answers", "random-300m"


@pytest.fixture
def profile() -> Profile:
    return load(GOLDEN / "models/profile.yml")


def changed(tmp_path: Path, old: str, new: str) -> Profile:
    text = (GOLDEN / "models/profile.yml").read_text()
    assert old in text
    file = tmp_path / "models.yml"
    file.write_text(text.replace(old, new))
    return load(file)


def names(profile: Profile) -> list[str]:
    return [node.name for node in profile.compute_nodes]


def test_each_model_is_a_profile_of_its_own_nodes(profile: Profile) -> None:
    first, second = profile.services
    assert (first.serving.model, names(first)) == (FIRST, ["node-a", "node-b"])
    assert (second.serving.model, names(second)) == (SECOND, ["node-c"])
    # Its own sizes and flags, and the first one's ports.
    assert (first.serving.data_parallel, second.serving.data_parallel) == (2, 1)
    assert second.serving.args == {"max-model-len": 512} and not first.serving.args
    assert second.serving.endpoint_port == 8080 and not second.serving.also
    assert first.services == (first,) and second.whole is profile
    assert services.of_model(profile, SECOND) == second
    with pytest.raises(BadInput, match="serves no model 'other'"):
        services.of_model(profile, "other")
    nodes = {node.name: services.of_node(profile, node) for node in profile.nodes}
    assert nodes == {"head": None, "node-a": first, "node-b": first, "node-c": second,
                     "node-d": None}  # fmt: skip


def test_one_model_on_all_nodes_is_the_profile_itself(tmp_path: Path) -> None:
    one = load(GOLDEN / "copies/profile.yml")
    assert one.services == (one,) and one.services[0] is one
    text = "nodes: node-a,node-b\n"
    every = changed(tmp_path, text, "nodes: 'node-[a-b]'\n".replace("[a-b]", "a,node-b"))
    assert len(every.services) == 2


def test_the_first_model_has_the_nodes_that_no_other_names(tmp_path: Path) -> None:
    found = changed(tmp_path, "  nodes: node-a,node-b\n  data_parallel: 2\n", "")
    assert [names(view) for view in found.services] == [["node-a", "node-b", "node-d"], ["node-c"]]


def test_a_message_names_the_models_own_line(profile: Profile) -> None:
    first, second = profile.services
    for view, key, where in (
        (first, "model", "serving.model"),
        (second, "model", "serving.also[0].model"),
        (second, "executor", "serving.executor"),
    ):
        assert view.problem(("serving", key), "").key == where
        assert view.where("serving", key).endswith(f": {where}")
    problem = second.problem(("serving", "env", "OWN"), "")
    assert problem.key == "serving.also[0].env.OWN"
    assert "random-300m" in second.path.read_text().splitlines()[problem.line - 1]


def test_what_has_no_room_is_refused_for_all_models_at_once(tmp_path: Path) -> None:
    text = f"{{ model: {SECOND}, nodes: node-c,"
    wide = changed(tmp_path, text, f"{text} tensor_parallel: 2,")
    with pytest.raises(BadInput) as raised:
        resolve_all(wide)
    assert "serving.also[0].tensor_parallel: needs 2 x 1 accelerators" in raised.value.message
    assert "the model's nodes have 1" in raised.value.message
    both = changed(tmp_path, text, f"{text} tensor_parallel: 2,")
    sizes = both.serving.model_copy(update={"tensor_parallel": 3})
    two = both.model_copy(update={"serving": sizes})
    with pytest.raises(BadInput) as raised:
        resolve_all(two)
    assert "serving.tensor_parallel: " in raised.value.message
    assert "serving.also[0].tensor_parallel: " in raised.value.message


def test_each_server_has_a_way_of_its_own(profile: Profile, tmp_path: Path) -> None:
    layouts = resolve_all(profile)
    places = [ways(view, own) for view, own in zip(profile.services, layouts, strict=True)]
    assert places == [
        {"node-a": "/copies/node-a", "node-b": "/copies/node-b"},
        {"node-c": "/copies/node-c"},
    ]
    alone = load(GOLDEN / "sim/profile.yml")
    (layout,) = resolve_all(alone)
    assert apart(alone, layout) == {} and ways(alone, layout) == {"compute0": ""}


def content(state: NodeState, name: str) -> str:
    return next((file.content or "" for file in state.files if file.path.endswith(name)), "")


def test_a_node_gets_its_own_model_and_one_without_gets_none(profile: Profile) -> None:
    found = states(profile)
    for node, model, address in (
        ("node-a", FIRST, "192.168.10.100"),
        ("node-b", FIRST, "192.168.10.101"),
        ("node-c", SECOND, "192.168.10.102"),
    ):
        state = found[node]
        unit = content(state, "/vllm.service")
        assert f"--served-model-name \\\n    {model} " in unit
        # Its ranks are kept on its node, whatever else the same Ray has.
        assert f'ORCHESTRATE_NODES="{address}"' in content(state, "/vllm.env")
        assert [each.path for each in state.directories if each.holds] == [
            f"/var/lib/orchestrate/models/{model}"
        ]
    idle = found["node-d"]
    assert not content(idle, "/vllm.service") and not any(each.holds for each in idle.directories)
    assert "ray-worker.service" in {unit.name for unit in idle.units}


def test_the_variables_on_a_node_are_its_models(profile: Profile) -> None:
    nodes = {node.name: node for node in profile.compute_nodes}
    assert environment(profile, nodes["node-c"])["OWN"] == "192.168.10.102"
    assert "OWN" not in environment(profile, nodes["node-a"])


def test_the_endpoint_has_one_server_more_only_with_several_models(profile: Profile) -> None:
    several = states(profile)["head"]
    assert "RuntimeDirectory=" in content(several, "nginx.service.d/50-orchestrate.conf")
    config = content(several, "/nginx.conf")
    assert config.count("server {") == 2 and "client_body_buffer_size 64m" in config
    one = states(load(GOLDEN / "copies/profile.yml"))["head"]
    assert not content(one, "nginx.service.d/50-orchestrate.conf")
    assert "request_body" not in content(one, "/nginx.conf")


@pytest.mark.parametrize("name", ["a.b", "Own/er-1.2", "x_y"])
def test_a_name_in_the_body_is_matched_as_it_is(name: str) -> None:
    # nginx takes two backslashes in quotes as one.
    pattern = re.compile(Routed("", name, {}).pattern.replace("\\\\", "\\"))
    assert pattern.search(f'{{"model": "{name}"}}') and pattern.search(f'"model":"{name}"')
    assert pattern.search(f'"model" : "{name.replace("/", chr(92) + "/")}"')
    for other in (f'"model": "{name}x"', f'\\"model": "{name}"', f'"model": \\"{name}\\"'):
        assert not pattern.search(other), other
    assert not pattern.search(f'"model": "{name}"'.replace(".", "-").replace("_", "-")) or (
        "." not in name and "_" not in name
    )


def test_ranks_count_for_the_model_whose_nodes_they_are_on(profile: Profile) -> None:
    layouts = resolve_all(profile)
    ranks = [RankFacts("w", f"192.168.10.{number}") for number in (100, 101, 102)]

    def judged(found: list[RankFacts]) -> list[bool]:
        split = judge.of_models(profile, found)
        return [
            judge.ranks(view, own, mine).ok
            for (view, mine), own in zip(split, layouts, strict=True)
        ]

    assert judged(ranks) == [True, True]
    assert judged(ranks[:2]) == [True, False]
    # On a node that serves nothing: nobody else would tell.
    assert judged([*ranks, RankFacts("w", "192.168.10.103")]) == [False, True]
    named = [judge.RANKS.of(view).name for view in profile.services]
    assert named == [f"ranks ({FIRST})", f"ranks ({SECOND})"]
    alone = load(GOLDEN / "copies/profile.yml")
    assert judge.RANKS.of(alone) is judge.RANKS


def lost(request: httpx.Request) -> httpx.Response:
    """An endpoint whose second model is away."""
    return httpx.Response(503 if request.url.path.startswith("/copies/node-c/") else 200)


def client() -> httpx.Client:
    return httpx.Client(transport=httpx.MockTransport(lost), base_url="http://10.0.0.1:8080")


@pytest.fixture
def cluster(profile: Profile) -> Any:
    parts = [
        SimpleNamespace(profile=view, layout=layout, model=SimpleNamespace(name=view.serving.model))
        for view, layout in zip(profile.services, resolve_all(profile), strict=True)
    ]
    driver = SimpleNamespace(running=lambda _: True, network=nullcontext)
    return SimpleNamespace(services=parts, profile=profile, client=client, driver=driver)


def test_status_and_watch_name_the_model_that_is_lost(cluster: Any) -> None:
    found = served(cluster)
    assert (found.models, found.note) == ([FIRST], "")
    assert found.copies == {"node-a": "", "node-b": "", "node-c": "HTTP 503"}
    said = answering(cluster)
    assert said == f"1 of 3 models' copies do not answer: node-c ({SECOND}: HTTP 503)"


def test_verification_makes_each_check_for_each_model(profile: Profile) -> None:
    def nobody(*_: object) -> Result:
        raise UserError("no answer")

    layouts = resolve_all(profile)
    context = VerifyContext(nobody, client, nullcontext, dict, {}, layouts[0], [], "image")
    answers = [[Answer("Who?", "I")], []]
    each = [
        replace(context, layout=layout, answers=known)
        for layout, known in zip(layouts, answers, strict=True)
    ]
    report = verify(profile, replace(context, each=tuple(each)))
    made = [(check.node, check.name) for check in report.checks]
    assert len(made) == len(set(made))
    for name in (FIRST, SECOND):
        for rule in ("ranks", "model listed", "key needed", "same answer again"):
            assert ("head", f"{rule} ({name})") in made
    assert ("head", f"answer: Who? ({FIRST})") in made
    assert ("head", f"answer: Who? ({SECOND})") not in made
    assert {("node-a", "answer: Who?"), ("node-c", "model listed")} <= set(made)
    assert ("node-c", "answer: Who?") not in made


def test_a_command_about_one_model_takes_the_first_and_says_so(
    profile: Profile, capsys: pytest.CaptureFixture[str]
) -> None:
    assert of_model(profile, None).serving.model == FIRST
    said = capsys.readouterr().err
    assert said == f"model {FIRST}; --model NAME takes another one: {SECOND}\n"
    chosen = of_model(profile, SECOND)
    assert chosen.serving.model == SECOND and not capsys.readouterr().err
    with pytest.raises(BadInput, match="--dummy is only for a profile of one model"):
        must_be_alone(chosen, "--dummy")
    alone = load(GOLDEN / "sim/profile.yml")
    assert of_model(alone, None) is alone and not capsys.readouterr().err
    must_be_alone(alone, "--dummy")
