"""Names of nodes, folded and unfolded as the field writes them: ``compute[0-7,9]`` (ClusterShell).

ClusterShell's other operators work too: ``compute[0-7]!compute3`` is seven nodes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet, NodeSetException

from orchestrator.core.errors import BadInput

_Key = TypeVar("_Key", bound=Hashable)


def fold(names: Iterable[str]) -> str:
    """``compute[0-63],control``; empty for no names."""
    return str(NodeSet.fromlist(list(names), resolver=RESOLVER_NOGROUP))


def unfold(text: str) -> list[str]:
    """The names that a text stands for, each once. Raises BadInput where it cannot be read."""
    try:
        return list(NodeSet(text, resolver=RESOLVER_NOGROUP))
    except NodeSetException as error:
        raise BadInput(
            f"Invalid node set {text!r}: {str(error).partition(':')[0]}.",
            "Examples: compute0 - compute[0-7] - control,compute[0-3,5]",
        ) from None


def grouped(keys: Mapping[str, _Key]) -> dict[_Key, list[str]]:
    """By key, the names that have it, both in the order in which they come first."""
    found: dict[_Key, list[str]] = {}
    for name, key in keys.items():
        found.setdefault(key, []).append(name)
    return found
