"""A control group for each container: two systemds in one group would remove each other's groups.

Not needed if this machine's PID 1 is systemd: then nspawn asks it for a scope.
"""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path

SYSTEMD_RUNS = Path("/run/systemd/system")
MOUNT = Path("/sys/fs/cgroup")


def hierarchies() -> list[Path]:
    """The cgroup hierarchies that systemd uses: cgroup v2, else v1's `systemd` and `unified`."""
    if (MOUNT / "cgroup.controllers").exists():
        return [MOUNT]
    return [path for path in (MOUNT / "systemd", MOUNT / "unified") if path.is_dir()]


def starting_in(name: str, argv: list[str]) -> list[str]:
    """The command line that runs `argv` in the group `name`, which this makes if it is missing."""
    groups = [hierarchy / name for hierarchy in hierarchies()]
    for group in groups:
        group.mkdir(exist_ok=True)
    joins = [f"echo $$ >{shlex.quote(str(group / 'cgroup.procs'))}" for group in groups]
    # By a shell, since preexec_fn is not safe in a process with threads.
    return ["/bin/sh", "-e", "-c", "\n".join([*joins, 'exec "$@"']), "sh", *argv]


def remove(name: str) -> None:
    """Remove the group `name` and the groups below it, as far as they are empty."""
    for hierarchy in hierarchies():
        group = hierarchy / name
        if group.is_dir():
            below = [path for path in group.rglob("*") if path.is_dir()]
            for path in (*sorted(below, reverse=True), group):
                with suppress(OSError):  # a process that is ending may still be in it
                    path.rmdir()
