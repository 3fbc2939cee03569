"""What is still needed once distributions are left out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.image.lock.closure import closure
from orchestrator.image.lock.index import environment

ENV = environment("3.11.2")


def test_markers_are_read_for_the_target() -> None:
    requires = {
        "root": (
            'old; python_version < "3.12"',
            'patch; python_full_version < "3.11.3"',
            'new; python_version >= "3.12"',
            'other; sys_platform == "win32"',
        ),
    }
    assert closure(["root==1"], requires, [], ENV) == {"root", "old", "patch"}


def test_extras_count_where_somebody_asks_for_them() -> None:
    requires = {
        "root": ["tool[fast]"],
        "tool": ['speed; extra == "fast"', 'slow; extra == "slow"', "base"],
    }
    assert closure(["root"], requires, [], ENV) == {"root", "tool", "speed", "base"}
    assert closure(["tool"], requires, [], ENV) == {"tool", "base"}


def test_an_extra_asked_for_later_is_not_forgotten() -> None:
    requires = {"a": ["tool", "b"], "b": ["tool[x]"], "tool": ['more; extra == "x"']}
    assert "more" in closure(["a"], requires, [], ENV)


def test_names_are_compared_as_the_index_does() -> None:
    requires = {"root": ["Left.Out", "Kept_One"], "left-out": ["only"], "kept-one": []}
    assert closure(["Root"], requires, ["left_out"], ENV) == {"root", "kept-one"}


def test_circles_end() -> None:
    assert closure(["a"], {"a": ["b"], "b": ["a"]}, [], ENV) == {"a", "b"}


names = st.sampled_from([f"p{number}" for number in range(8)])
graphs = st.dictionaries(names, st.lists(names, max_size=4))


@given(graphs, st.sets(names, min_size=1), st.sets(names))
def test_all_that_stays_is_needed_and_all_that_is_needed_stays(
    graph: dict[str, list[str]], roots: set[str], left_out: set[str]
) -> None:
    kept = closure(roots, graph, left_out, ENV)
    assert not kept & left_out
    assert roots - left_out <= kept
    for name in kept:
        assert set(graph.get(name, ())) - left_out <= kept
        assert name in roots or any(name in graph.get(parent, ()) for parent in kept)
