"""What a node's desired state is made of: kernel settings, links, accounts, files, units.

Environments are files: one in /etc/orchestrate for each service, one in /etc/profile.d for people.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Step(StrEnum):
    """In the order of ``up``."""

    BASE = "base"
    RAY = "ray"
    SERVING = "serving"


@dataclass(frozen=True)
class Sysctl:
    """A kernel setting, named as sysctl(8) does."""

    step: Step
    name: str
    value: str


@dataclass(frozen=True)
class NetworkLink:
    """A network interface that is up with (at least) these addresses, each ADDRESS/BITS.

    ``file`` with ``content`` is systemd-networkd's, as the node had it at boot. An interface that
    is not there (yet) is pending, not a failure: a cable's other end may still boot.
    """

    step: Step
    name: str
    addresses: tuple[str, ...]
    file: str
    content: str


@dataclass(frozen=True)
class User:
    """An account; ``groups`` are joined where the node has them."""

    step: Step
    name: str
    uid: int
    shell: str = "/bin/bash"
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Directory:
    """A directory with its owner and mode; directories above it are made where missing.

    ``holds``: the files that come into it, and their sizes in bytes. Then there are no others, and
    there is room for them before the first comes: for that, what else is on ``shelf`` (a directory
    above) is removed, the oldest first. ``in_memory``: the room is memory.
    """

    step: Step
    path: str
    owner: str = "root"
    group: str = "root"
    mode: str = "0755"
    holds: tuple[tuple[str, int], ...] = ()
    shelf: str = ""
    in_memory: bool = False


@dataclass(frozen=True)
class File:
    """A file: its text, or where to fetch it from, its sha256 and its size in bytes."""

    step: Step
    path: str
    content: str | None = field(default=None, repr=False)
    url: str | None = None
    sha256: str | None = None
    size: int | None = None
    owner: str = "root"
    group: str = "root"
    mode: str = "0644"
    secret: bool = False

    @property
    def digest(self) -> str:
        return self.sha256 or hashlib.sha256((self.content or "").encode()).hexdigest()


@dataclass(frozen=True)
class Unit:
    """A systemd unit. It is restarted until it was started with ``revision``."""

    step: Step
    name: str
    restart_on: tuple[str, ...] = ()
    state: str = "running"
    revision: str = ""


Resource = Sysctl | NetworkLink | User | Directory | File | Unit


def service(
    step: Step, unit: str, files: Mapping[str, str], others: Sequence[str] = ()
) -> Iterable[Resource]:
    """A running unit with the files that are its own; ``others`` restart it too."""
    for path, content in files.items():
        yield File(step, path, content)
    yield Unit(step, unit, restart_on=(*files, *others))
