"""Which nodes are meant, and how they are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core import paths
from orchestrator.core.errors import BadInput
from orchestrator.core.nodeset import fold, grouped, unfold
from orchestrator.models.profiles import load
from orchestrator.node.resources import Step
from orchestrator.node.selection import everything, find, select
from orchestrator.profile import Profile

SIM = paths.checkout() / "profiles" / "sim.yml"
PROFILE = load(SIM)


def large(tmp_path: Path, count: int) -> Profile:
    document = yaml.safe_load(SIM.read_text())
    node = document["compute_nodes"][0]
    link = node["links"]["cluster"]
    document["compute_nodes"] = [
        node
        | {
            "name": f"compute{number}",
            "links": {
                "cluster": link
                | {"mac": f"02:00:0a:4d:01:{number:02x}", "address": f"10.77.0.{100 + number}"}
            },
        }
        for number in range(count)
    ]
    document["serving"] |= {"tensor_parallel": 1}
    path = tmp_path / "large.yml"
    path.write_text(yaml.safe_dump(document | {"name": "large"}))
    return load(path)


def test_without_words_it_is_everything() -> None:
    assert select(PROFILE) == everything(PROFILE)
    assert select(PROFILE).whole


@pytest.mark.parametrize(
    ("wanted", "excluded", "names"),
    [
        (["compute1", "control"], [], "control compute1"),
        (["compute1,compute0"], [], "compute0 compute1"),
        (["1"], [], "compute1"),
        (["[0-1]"], [], "compute0 compute1"),
        (["compute[0-1]!compute0,control"], [], "control compute1"),
        ([], ["control"], "compute0 compute1"),
        (["compute0", "compute1"], ["0"], "compute1"),
        ([], ["control", "compute1"], "compute0"),
    ],
)
def test_words_in_any_form_and_the_profiles_order(
    wanted: list[str], excluded: list[str], names: str
) -> None:
    chosen = select(PROFILE, wanted, excluded)
    assert " ".join(chosen.names) == names
    assert not chosen.whole


def test_one_step_is_not_the_whole() -> None:
    chosen = select(PROFILE, only=Step.RAY)
    assert (chosen.nodes, chosen.steps, chosen.whole) == (PROFILE.nodes, (Step.RAY,), False)


def test_all_unknown_words_are_one_error_with_the_known_names() -> None:
    with pytest.raises(BadInput) as caught:
        select(PROFILE, ["compute0", "compute7", "head,compute[1-2]"])
    assert caught.value.message == "--node: there is no node 'compute7', 'compute2', 'head'"
    assert "known: control, compute0, compute1" in caught.value.hint
    with pytest.raises(BadInput, match="--exclude: there is no node '2'"):
        select(PROFILE, [], ["2"])


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(BadInput, match="no node is selected"):
        select(PROFILE, ["compute0"], ["0"])


def test_one_node_by_name_or_index() -> None:
    assert find(PROFILE, "control") == PROFILE.control
    assert find(PROFILE, "1").name == "compute1"
    with pytest.raises(BadInput, match="there is no node '3'"):
        find(PROFILE, "3")


def test_many_names_are_short_in_errors(tmp_path: Path) -> None:
    profile = large(tmp_path, 64)
    with pytest.raises(BadInput) as caught:
        select(profile, ["compute64"])
    assert caught.value.hint == "known: compute[0-63],control"
    assert len(select(profile, ["compute[60-63]"]).nodes) == 4


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ("", ""),
        ("control", "control"),
        ("compute0 compute1", "compute[0-1]"),
        ("control compute0 compute1 compute2 compute4", "compute[0-2,4],control"),
        ("node08 node09 node10", "node[08-10]"),
        ("n9 n10 n11 x", "n[9-11],x"),
        ("a1 b2 c3", "a1,b2,c3"),
    ],
)
def test_names_are_folded(names: str, text: str) -> None:
    assert fold(names.split()) == text


@given(st.sets(st.from_regex(r"[a-z]([a-z0-9-]{0,4}[a-z0-9])?", fullmatch=True)))
def test_what_is_printed_can_be_read_back(names: set[str]) -> None:
    assert set(unfold(fold(names))) == names


@pytest.mark.parametrize("text", ["compute[0-", "compute[3-1]", "compute[a]"])
def test_what_cannot_be_read_is_one_error(text: str) -> None:
    with pytest.raises(BadInput, match="Invalid node set"):
        select(PROFILE, [text])


def test_grouped_keeps_the_order() -> None:
    assert list(grouped({"a": 1, "b": 2, "c": 1}).items()) == [(1, ["a", "c"]), (2, ["b"])]
