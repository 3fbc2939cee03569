"""Which nodes their user switched off: `orchestrate watch` leaves those alone."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from orchestrator.core import paths
from orchestrator.models.hub import write_json


def kept_off(cluster: str) -> frozenset[str]:
    """The names of nodes that are off on purpose."""
    try:
        return frozenset(json.loads(_record(cluster)))
    except (OSError, ValueError):
        return frozenset()


def keep_off(cluster: str, names: Iterable[str]) -> None:
    """From now on these are off on purpose."""
    with _one_at_a_time(cluster):
        write_json(paths.cluster(cluster) / "kept-off", sorted(kept_off(cluster) | set(names)))


def want_on(cluster: str, names: Iterable[str]) -> None:
    """From now on these are to be on."""
    with _one_at_a_time(cluster):
        before = kept_off(cluster)
        if left := before - set(names):
            write_json(paths.cluster(cluster) / "kept-off", sorted(left))
        elif before:
            (paths.cluster(cluster) / "kept-off").unlink(missing_ok=True)


@contextmanager
def _one_at_a_time(cluster: str) -> Iterator[None]:
    """Nodes are switched by threads at once, and by other commands: none forgets another's."""
    home = paths.cluster(cluster)
    home.mkdir(parents=True, exist_ok=True)
    with (home / "kept-off.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _record(cluster: str) -> str:
    return (paths.cluster(cluster) / "kept-off").read_text()
