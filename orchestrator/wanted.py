"""Which nodes their user switched off: `orchestrate watch` leaves those alone."""

from __future__ import annotations

import json
from collections.abc import Iterable

from orchestrator import paths
from orchestrator.hub import write_json


def kept_off(cluster: str) -> frozenset[str]:
    """The names of nodes that are off on purpose."""
    try:
        return frozenset(json.loads(_record(cluster)))
    except (OSError, ValueError):
        return frozenset()


def keep_off(cluster: str, names: Iterable[str]) -> None:
    """From now on these are off on purpose."""
    write_json(paths.cluster(cluster) / "kept-off", sorted(kept_off(cluster) | set(names)))


def want_on(cluster: str, names: Iterable[str]) -> None:
    """From now on these are to be on."""
    before = kept_off(cluster)
    if left := before - set(names):
        write_json(paths.cluster(cluster) / "kept-off", sorted(left))
    elif before:
        (paths.cluster(cluster) / "kept-off").unlink(missing_ok=True)


def _record(cluster: str) -> str:
    return (paths.cluster(cluster) / "kept-off").read_text()
