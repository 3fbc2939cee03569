"""Which nodes and steps a verb is about, and how many nodes are named in few words. Pure."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from orchestrator.core.errors import BadInput
from orchestrator.core.nearest import nearest
from orchestrator.node.resources import Step

if TYPE_CHECKING:
    from orchestrator.profile import Node, Profile

_Key = TypeVar("_Key", bound=Hashable)

#: Between the first and the last name of a range, as it is printed and read.
TO = ".."
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
    """All nodes, all steps."""
    return Selection(profile.nodes)


def select(
    profile: Profile,
    wanted: Sequence[str] = (),
    excluded: Sequence[str] = (),
    only: Step | None = None,
) -> Selection:
    """The nodes of ``wanted`` (none: all) without those of ``excluded``; one step or all.

    Each word is a node's name, a compute node's index (from 0), a range FIRST..LAST, or several of
    these with commas between. Raises BadInput that names all unknown words, and where nothing is
    left.
    """
    chosen = _found(profile, "--node", wanted) or {node.name for node in profile.nodes}
    without = _found(profile, "--exclude", excluded)
    nodes = tuple(node for node in profile.nodes if node.name in chosen - without)
    if not nodes:
        raise BadInput("no node is left: --exclude takes out all that --node chose")
    steps = (only,) if only else tuple(Step)
    return Selection(nodes, steps, whole=nodes == profile.nodes and not only)


def find(profile: Profile, word: str) -> Node:
    """One node by its name or index. Raises BadInput for another word."""
    found = _indexed(profile).get(word)
    if found is None:
        raise BadInput(f"there is no node {word!r}", _known(profile, word))
    return found


def _found(profile: Profile, option: str, words: Iterable[str]) -> set[str]:
    parts = [part.strip() for word in words for part in word.split(",")]
    found: set[str] = set()
    unknown = []
    for part in parts:
        if names := list(_names(profile, part)):
            found.update(names)
        else:
            unknown.append(part)
    if unknown:
        listed = ", ".join(repr(word) for word in unknown)
        raise BadInput(f"{option}: there is no node {listed}", _known(profile, unknown[0]))
    return found


def _names(profile: Profile, part: str) -> Iterator[str]:
    """The nodes of a name, an index or a range; none for what is none of them."""
    known = _indexed(profile)
    first, dots, last = part.partition(TO)
    if part in known:
        yield known[part].name
    elif dots and first in known and last in known:
        names = [node.name for node in profile.nodes]
        start, end = names.index(known[first].name), names.index(known[last].name)
        yield from names[start : end + 1]


def _indexed(profile: Profile) -> dict[str, Node]:
    """By name, and by index where no node has it as its name."""
    by_index = {str(index): node for index, node in enumerate(profile.compute_nodes)}
    return by_index | {node.name: node for node in profile.nodes}


def _known(profile: Profile, word: str) -> str:
    names = [node.name for node in profile.nodes]
    if len(names) <= LISTED:
        return nearest(word, names)
    return f"known: {ranges(names)}"


def ranges(names: Iterable[str]) -> str:
    """``control, compute0..compute63``: three or more names that count on are a range."""
    runs: list[list[str]] = []
    for name in names:
        if runs and _follows(runs[-1][-1], name):
            runs[-1].append(name)
        else:
            runs.append([name])
    parts: list[str] = []
    for run in runs:
        parts += [f"{run[0]}{TO}{run[-1]}"] if len(run) > 2 else run
    return ", ".join(parts)


def _follows(one: str, other: str) -> bool:
    """Whether a name is another one's with its last number counted on."""
    match = re.fullmatch(r"(.*?)([0-9]+)", one)
    if match is None:
        return False
    head, digits = match.groups()
    counted = str(int(digits) + 1)
    return other == head + (counted.zfill(len(digits)) if digits[0] == "0" else counted)


def grouped(keys: Mapping[str, _Key]) -> dict[_Key, list[str]]:
    """By key, the names that have it, both in the order in which they come first."""
    found: dict[_Key, list[str]] = {}
    for name, key in keys.items():
        found.setdefault(key, []).append(name)
    return found
