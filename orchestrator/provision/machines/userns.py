"""User namespaces of containers: root in one is an account without any rights on this machine.

A container's ids are one of the ranges that systemd reserves for containers. The image's layers
show their files as the range's root's by id-mapped mounts, so nothing is copied. Files that a
container keeps belong to its range on the disk too: a setuid file of its root is of nobody here.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: The range of ids that systemd keeps for containers, and the size of one container's.
FIRST, LAST, SIZE = 0x80000, 0x6FFF0000, 0x10000
#: What this machine's ids are: those of a container without a user namespace.
HOST = 0

# Linux's numbers, the same on every architecture (linux/mount.h, asm-generic/unistd.h).
OPEN_TREE, MOVE_MOUNT, MOUNT_SETATTR = 428, 429, 442
OPEN_TREE_CLONE, MOVE_MOUNT_F_EMPTY_PATH, MOUNT_ATTR_IDMAP = 1, 4, 0x00100000
AT_FDCWD, AT_EMPTY_PATH = -100, 0x1000


class Unmappable(Exception):
    """This machine cannot give a container ids of its own; the text says why."""


def base(name: str) -> int:
    """The first id of a container, by its name: the same at each start."""
    digest = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
    return FIRST + digest % ((LAST - FIRST) // SIZE + 1) * SIZE


class _Attributes(ctypes.Structure):
    """struct mount_attr"""

    _fields_ = tuple((name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns"))


def map_mount(source: Path, target: Path, first: int) -> None:
    """Mount what is mounted at `source` at `target` too, with its ids moved to begin at `first`.

    Raises Unmappable if the kernel or the file system cannot.
    """
    with _namespace(first) as namespace:
        tree = _call(OPEN_TREE, AT_FDCWD, os.fsencode(source), OPEN_TREE_CLONE | os.O_CLOEXEC)
        try:
            wanted = _Attributes(set=MOUNT_ATTR_IDMAP, userns=namespace)
            size = ctypes.sizeof(wanted)
            _call(MOUNT_SETATTR, tree, b"", AT_EMPTY_PATH, ctypes.byref(wanted), size)
            there = os.fsencode(target)
            _call(MOVE_MOUNT, tree, b"", AT_FDCWD, there, MOVE_MOUNT_F_EMPTY_PATH)
        finally:
            os.close(tree)


def _call(number: int, *words: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    found = [ctypes.c_long(word) if isinstance(word, int) else word for word in words]
    result = int(libc.syscall(ctypes.c_long(number), *found))
    if result < 0:
        names = {OPEN_TREE: "open_tree", MOVE_MOUNT: "move_mount", MOUNT_SETATTR: "mount_setattr"}
        raise Unmappable(f"{names[number]}: {os.strerror(ctypes.get_errno())}")
    return result


@contextmanager
def _namespace(first: int) -> Iterator[int]:
    """A descriptor of a user namespace whose ids begin at `first`. Raises Unmappable."""
    argv = ["unshare", "--user", "sh", "-c", "echo ready; read -r over"]
    holder = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    with holder:  # its end closes the holder's input, which ends it
        assert holder.stdout is not None
        if holder.stdout.readline() != "ready\n":
            raise Unmappable("this machine's kernel makes no user namespace")
        place = Path("/proc", str(holder.pid))
        try:
            for name in ("uid_map", "gid_map"):
                (place / name).write_text(f"0 {first} {SIZE}")
        except OSError as error:
            raise Unmappable(f"{name}: {error.strerror}") from None
        namespace = os.open(place / "ns/user", os.O_RDONLY)
        try:
            yield namespace
        finally:
            os.close(namespace)


def give(directory: Path, first: int) -> None:
    """Give all below a directory, and itself, to the same accounts of the range from `first`.

    No process may be able to change it meanwhile. Each file is reached by its directory's
    descriptor, and no link is followed. The directory comes last: where it is in the range, all is.
    """
    if directory.stat().st_uid - first in range(SIZE):
        return
    for _, directories, files, handle in os.fwalk(directory, topdown=False):
        for name in (*directories, *files, "."):
            found = os.stat(name, dir_fd=handle, follow_symlinks=False)
            owner, group = first + found.st_uid % SIZE, first + found.st_gid % SIZE
            os.chown(name, owner, group, dir_fd=handle, follow_symlinks=False)
