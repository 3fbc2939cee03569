"""What the agent's parts share: errors, commands, and files that are reached by descriptors.

Runs on a node as a part of the agent (agent.py): the standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import stat
import subprocess
from collections.abc import Iterable, Iterator
from io import BufferedReader
from pathlib import Path, PurePosixPath

COMMAND_TIMEOUT_S = 180.0


class Failed(Exception):
    """A resource cannot be made as desired; the text is for people."""


class Unsafe(Failed):
    """Another account could lead root astray on the way to a file."""


class FileTree:
    """Files below a root, by descriptors. A path is absolute, or relative to the root.

    Root never follows a name that somebody else can change: each directory on the way is opened
    by its parent's descriptor, has to be a directory and no link, and has to be root's alone.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextlib.contextmanager
    def directory(self, path: str, make: bool = False) -> Iterator[int]:
        """The directory's descriptor. It may be anybody's; those above it are root's.

        Raises FileNotFoundError where it is missing (unless told to ``make`` it), Unsafe or Failed.
        """
        with contextlib.ExitStack() as held:
            at = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
            held.callback(os.close, at)
            above = PurePosixPath("/")
            for name in PurePosixPath("/", path).parts[1:]:
                must_be_roots(at, above)
                above /= name
                at = self._enter(at, name, above, make)
                held.callback(os.close, at)
            yield at

    @contextlib.contextmanager
    def parent(self, path: str, make: bool = False) -> Iterator[tuple[int, str]]:
        """A file's directory as a descriptor, which has to be root's, and the name in it."""
        whole = PurePosixPath("/", path)
        with self.directory(str(whole.parent), make) as above:
            must_be_roots(above, whole.parent)
            yield above, whole.name

    def look(self, path: str) -> os.stat_result | None:
        """What is there, not following it; None where there is nothing."""
        try:
            with self.parent(path) as (above, name):
                return look_at(above, name)
        except FileNotFoundError:
            return None

    def read(self, path: str, most: int = -1) -> bytes:
        """A regular file's bytes. Raises OSError or Failed."""
        with self.parent(path) as (above, name), regular(above, name) as file:
            return file.read(most)

    def write(self, path: str, chunks: Iterable[bytes], uid: int, gid: int, mode: int) -> None:
        """Replace a file; the directories above are made where they are missing."""
        with self.parent(path, make=True) as (above, name):
            replace(above, name, chunks, uid, gid, mode)

    def remove(self, path: str) -> None:
        """Remove a file, whatever it is; one that is gone is fine."""
        with contextlib.suppress(FileNotFoundError), self.parent(path) as (above, name):
            os.unlink(name, dir_fd=above)

    @staticmethod
    def _enter(above: int, name: str, shown: PurePosixPath, make: bool) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        try:
            try:
                return os.open(name, flags, dir_fd=above)
            except FileNotFoundError:
                if not make:
                    raise
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o755, dir_fd=above)
                return os.open(name, flags, dir_fd=above)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise Failed(f"{shown} exists and is not a directory") from None
            raise


def must_be_roots(directory: int, shown: PurePosixPath) -> None:
    """Raises Unsafe where another account can change what the names in a directory mean."""
    found = os.fstat(directory)
    if found.st_uid not in (0, os.geteuid()):
        whose = f"belongs to {user_name(found.st_uid)}"
    elif found.st_mode & stat.S_IWOTH or (found.st_mode & stat.S_IWGRP and found.st_gid):
        whose = f"can be written by others (mode {stat.S_IMODE(found.st_mode):04o})"
    else:
        return
    raise Unsafe(f"{shown} {whose}: root does not act below it")


@contextlib.contextmanager
def regular(above: int, name: str) -> Iterator[BufferedReader]:
    """An existing file to read. Never blocks: a pipe, a device or a link raises Failed."""
    try:
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=above)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise Failed("not a regular file") from None
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise Failed("not a regular file")
    with os.fdopen(handle, "rb") as file:
        yield file


def look_at(above: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=above, follow_symlinks=False)
    except FileNotFoundError:
        return None


def replace(above: int, name: str, chunks: Iterable[bytes], uid: int, gid: int, mode: int) -> None:
    """Write beside, with owner and mode, then rename: readers see the old file or the new one.

    ``above`` is the descriptor of the file's directory. The new file is made here and nowhere
    else (O_EXCL): what an earlier run left, or somebody put there, is not written to.
    """
    new = f".{name}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new, dir_fd=above)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(new, flags, 0o600, dir_fd=above), "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fchown(file.fileno(), uid, gid)
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.rename(new, name, src_dir_fd=above, dst_dir_fd=above)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new, dir_fd=above)
        raise


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def command(argv: list[str]) -> str:
    done = subprocess.run(
        argv, check=False, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise Failed(f"{' '.join(argv)}: exit code {done.returncode}: {said}")
    return done.stdout
