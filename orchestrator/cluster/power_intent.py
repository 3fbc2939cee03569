"""Which nodes the user switched off: `orchestrate watch` does not switch those on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import AbstractContextManager

from orchestrator.core import paths
from orchestrator.core.files import locked, write_json


def kept_off(cluster: str) -> frozenset[str]:
    """The names of nodes that are off on purpose."""
    try:
        return frozenset(json.loads(_record(cluster)))
    except (OSError, ValueError):
        return frozenset()


def keep_off(cluster: str, names: Iterable[str]) -> None:
    """Record that these nodes are off on purpose."""
    with _one_at_a_time(cluster):
        write_json(paths.cluster(cluster) / "kept-off", sorted(kept_off(cluster) | set(names)))


def want_on(cluster: str, names: Iterable[str]) -> None:
    """Record that these nodes should be on."""
    with _one_at_a_time(cluster):
        before = kept_off(cluster)
        if left := before - set(names):
            write_json(paths.cluster(cluster) / "kept-off", sorted(left))
        elif before:
            (paths.cluster(cluster) / "kept-off").unlink(missing_ok=True)


def forget_others(cluster: str, names: Iterable[str]) -> None:
    """Only these are in the profile: one that comes back later has not been switched off."""
    want_on(cluster, kept_off(cluster) - set(names))


def _one_at_a_time(cluster: str) -> AbstractContextManager[None]:
    """Hold the record's lock: several threads and commands switch nodes at the same time."""
    return locked(paths.cluster(cluster) / "kept-off.lock")


def _record(cluster: str) -> str:
    return (paths.cluster(cluster) / "kept-off").read_text()
