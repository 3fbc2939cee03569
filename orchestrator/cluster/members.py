"""Which machines have been given the cluster's keys, and which of them have left the profile.

A node that left still knows Ray's token, and its host certificate is valid until it ends. Only new
keys end that, and they restart Ray and the model: `up` says so, and `trust rotate` does it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from orchestrator.core import paths
from orchestrator.core.files import locked, write_json
from orchestrator.core.nodeset import fold

if TYPE_CHECKING:
    from orchestrator.profile import Profile


def given(cluster: str) -> frozenset[str]:
    """The names of the nodes that got the current keys."""
    try:
        return frozenset(json.loads((paths.cluster(cluster) / "members").read_text()))
    except (OSError, ValueError):
        return frozenset()


def give(cluster: str, names: Iterable[str]) -> None:
    """These get the current keys, before they do."""
    with locked(paths.cluster(cluster) / "members.lock"):
        before = given(cluster)
        if more := before | set(names):
            _write(cluster, before, more)


def renewed(profile: Profile) -> None:
    """All keys are new: who has left the profile does not have them."""
    with locked(paths.cluster(profile.name) / "members.lock"):
        before = given(profile.name)
        _write(profile.name, before, before & {node.name for node in profile.nodes})


def left(profile: Profile) -> tuple[str, ...]:
    """Nodes that have the current keys and are in the profile no more."""
    return tuple(sorted(given(profile.name) - {node.name for node in profile.nodes}))


def told(names: Iterable[str]) -> str:
    """What that means, in words; empty where there are none."""
    names = list(names)
    if not names:
        return ""
    return (
        f"not in the profile any more, but with the cluster's keys: {fold(names)}; switch it off,"
        " then run: orchestrate trust rotate"
    )


def _write(cluster: str, before: frozenset[str], after: Iterable[str]) -> None:
    if before != set(after):
        write_json(paths.cluster(cluster) / "members", sorted(after))
