"""Network namespaces of the simulator: make them, remove them, enter them."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from orchestrator.core.errors import UserError
from orchestrator.core.run import run

CLONE_NEWNET = 0x40000000
DIRECTORY = Path("/run/netns")


def names() -> set[str]:
    return {path.name for path in DIRECTORY.iterdir()} if DIRECTORY.is_dir() else set()


def create(name: str) -> None:
    """Make a namespace with its loopback up, unless it exists."""
    if name not in names():
        run(["ip", "netns", "add", name], what=f"make the network namespace {name}")
        ip(name, "link", "set", "lo", "up")


def adopt(name: str, pid: int) -> None:
    """Call a process's namespace by this name; another one that was called so is removed."""
    delete(name)
    run(["ip", "netns", "attach", name, str(pid)], what=f"name the network namespace {name}")


def delete(name: str) -> None:
    """Remove a namespace and its links, if it exists.

    The veth links are deleted first, one by one. With the namespace alone, the kernel deletes them
    some time later, and until then the names of their other ends are taken.
    """
    if name in names():
        shown = run(["ip", "-n", name, "-json", "link", "show", "type", "veth"], ok=None)
        for link in json.loads(shown.out or "[]") if shown.code == 0 else []:
            run(["ip", "-n", name, "link", "delete", link["ifname"]], ok=None)
        run(["ip", "netns", "delete", name], what=f"remove the network namespace {name}")


def ip(name: str, *words: str) -> None:
    run(["ip", "-n", name, *words])


def has_link(name: str, link: str) -> bool:
    return run(["ip", "-n", name, "link", "show", link], ok=None).code == 0


def differ(pid: int, other: int) -> bool:
    """Whether two processes are in different namespaces; False if one has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        one, two = (Path(f"/proc/{each}/ns/net").stat().st_ino for each in (pid, other))
        return one != two
    return False


def is_called(pid: int, name: str) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/ns/net").samefile(DIRECTORY / name)
    return False


@cache
def host() -> Path:
    """A path to the network namespace that this process started in.

    Call it once before any thread enters another namespace, as drivers do when they are made: the
    first call opens the namespace, later ones return the same path.
    """
    return Path(f"/proc/{os.getpid()}/fd/{os.open('/proc/self/ns/net', os.O_RDONLY)}")


def enter(name: str | Path) -> None:
    """Move the calling thread, and the processes that it starts, into a namespace.

    Raises UserError if the namespace does not exist, or this user may not enter it. It calls libc,
    since os.setns needs Python 3.12.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        handle = os.open(DIRECTORY / name, os.O_RDONLY)  # a path from host() is absolute
    except FileNotFoundError:
        raise UserError(
            f"the cluster's network ({name}) does not exist", "Run: orchestrate up"
        ) from None
    try:
        if libc.setns(handle, CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise UserError(
                f"cannot enter the network {name}: {os.strerror(number)}", "Run as root."
            )
    finally:
        os.close(handle)


@contextmanager
def entered(name: str | Path) -> Iterator[None]:
    """Move the calling thread into the namespace for the body, and back afterwards."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        enter(name)
        yield
    finally:
        libc.setns(before, CLONE_NEWNET)
        os.close(before)
