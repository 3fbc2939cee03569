"""A control group for each container: two systemds in one would remove each other's groups.

Where this machine's PID 1 is systemd, nspawn asks it for a scope and none of this is needed.
"""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path

SYSTEMD_RUNS = Path("/run/systemd/system")
MOUNT = Path("/sys/fs/cgroup")


def hierarchies() -> list[Path]:
    """Where systemd keeps its tree: the unified hierarchy, or the named and the hybrid one."""
    if (MOUNT / "cgroup.controllers").exists():
        return [MOUNT]
    return [path for path in (MOUNT / "systemd", MOUNT / "unified") if path.is_dir()]


def starting_in(name: str, argv: list[str]) -> list[str]:
    """The argv that runs `argv` in the group `name` of each hierarchy, made where missing."""
    groups = [hierarchy / name for hierarchy in hierarchies()]
    for group in groups:
        group.mkdir(exist_ok=True)
    joins = [f"echo $$ >{shlex.quote(str(group / 'cgroup.procs'))}" for group in groups]
    # A shell, not preexec_fn: that is not safe in a process with threads.
    return ["/bin/sh", "-e", "-c", "\n".join([*joins, 'exec "$@"']), "sh", *argv]


def remove(name: str) -> None:
    """Remove the empty group `name`, and those below it that its container left."""
    for hierarchy in hierarchies():
        group = hierarchy / name
        if group.is_dir():
            below = [path for path in group.rglob("*") if path.is_dir()]
            for path in (*sorted(below, reverse=True), group):
                with suppress(OSError):  # a process that is just ending still holds it
                    path.rmdir()
