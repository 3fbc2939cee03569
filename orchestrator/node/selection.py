"""Which nodes and steps a verb is about. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orchestrator.core.errors import BadInput
from orchestrator.core.nearest import nearest
from orchestrator.core.nodeset import fold, unfold
from orchestrator.node.resources import Step
from orchestrator.profile import Node, Profile

#: So many known names are listed in an error.
LISTED = 12


@dataclass(frozen=True)
class Selection:
    """Nodes in the profile's order, and steps; ``whole``: all of both."""

    nodes: tuple[Node, ...]
    steps: tuple[Step, ...] = tuple(Step)
    whole: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(node.name for node in self.nodes)

    def __contains__(self, node: Node) -> bool:
        return node.name in self.names


def everything(profile: Profile) -> Selection:
    return Selection(profile.nodes)


def select(
    profile: Profile,
    wanted: Sequence[str] = (),
    excluded: Sequence[str] = (),
    only: Step | None = None,
) -> Selection:
    """The nodes of ``wanted`` (none: all) without those of ``excluded``; one step or all.

    A word is a node set (core.nodeset) of names and of compute nodes' indexes (from 0). Raises
    BadInput that names all unknown nodes, and where nothing is left.
    """
    chosen = _found(profile, "--node", wanted) or {node.name for node in profile.nodes}
    without = _found(profile, "--exclude", excluded)
    nodes = tuple(node for node in profile.nodes if node.name in chosen - without)
    if not nodes:
        raise BadInput("no node is selected: --exclude removes every node that --node chose")
    steps = (only,) if only else tuple(Step)
    return Selection(nodes, steps, whole=nodes == profile.nodes and not only)


def find(profile: Profile, word: str) -> Node:
    """One node by its name or index. Raises BadInput for another word."""
    found = _indexed(profile).get(word)
    if found is None:
        raise BadInput(f"there is no node {word!r}", _known(profile, word))
    return found


def _found(profile: Profile, option: str, words: Iterable[str]) -> set[str]:
    known = _indexed(profile)
    names = [name for word in words for name in unfold(word)]
    if unknown := [name for name in names if name not in known]:
        listed = ", ".join(repr(name) for name in unknown)
        raise BadInput(f"{option}: there is no node {listed}", _known(profile, unknown[0]))
    return {known[name].name for name in names}


def _indexed(profile: Profile) -> dict[str, Node]:
    """By name, and by index where no node has it as its name."""
    by_index = {str(index): node for index, node in enumerate(profile.compute_nodes)}
    return by_index | {node.name: node for node in profile.nodes}


def _known(profile: Profile, word: str) -> str:
    names = [node.name for node in profile.nodes]
    if len(names) <= LISTED:
        return nearest(word, names)
    return f"known: {fold(names)}"
