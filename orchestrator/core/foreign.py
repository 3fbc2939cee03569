"""Files of a directory that somebody else made: a stick, a cache, an archive.

A link in it may lead anywhere, and what it leads to may change meanwhile. So each file is reached
from the directory's descriptor, component by component, and used by its own descriptor. Links are
followed as long as they stay inside (the hub's cache has such); devices, FIFOs and sockets are not
opened at all.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from orchestrator.core.errors import UserError

#: How many links one path may lead through, as in the kernel.
LINKS = 40
#: How deep directories are searched for files.
DEPTH = 32


@dataclass(frozen=True)
class ForeignDirectory:
    """A directory of somebody else's; paths are below it, with slashes."""

    root: Path

    def is_file(self, inside: str) -> bool:
        """Whether a regular file is there. Raises UserError as ``open`` does for what is no such
        file and no directory."""
        try:
            return stat.S_ISREG(self.look(inside).st_mode)
        except FileNotFoundError:
            return False

    def look(self, inside: str) -> os.stat_result:
        """What is at a path. Raises FileNotFoundError, or UserError as ``open`` does."""
        with closing(_Walk(self.root, inside)) as walk:
            return os.fstat(walk.to_the_end())

    def open(self, inside: str) -> BufferedReader:
        """A regular file. Raises FileNotFoundError, or UserError where the path leads out of the
        directory, or to what is neither a file nor a directory."""
        with closing(_Walk(self.root, inside)) as walk:
            handle = walk.to_the_end()
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise FileNotFoundError(inside)
            # What O_PATH found, and nothing that has come to its place since.
            return Path(f"/proc/self/fd/{handle}").open("rb")

    def read(self, inside: str, most: int) -> bytes:
        """A small file. Raises as ``open`` does, and UserError where it has more bytes."""
        with self.open(inside) as file:
            found = file.read(most + 1)
        if len(found) > most:
            raise UserError(f"{self.root / inside}: is larger than {most} bytes")
        return found

    def target(self, inside: str) -> str:
        """The name of the file that a path leads to in the end."""
        with closing(_Walk(self.root, inside)) as walk:
            walk.to_the_end()
            return walk.last

    def names(self, inside: str = "") -> list[str]:
        """What a directory holds, sorted. Raises FileNotFoundError where there is none, or
        UserError as ``open`` does."""
        with closing(_Walk(self.root, inside)) as walk:
            handle = walk.to_the_end()
            if not stat.S_ISDIR(os.fstat(handle).st_mode):
                raise FileNotFoundError(inside)
            return sorted(path.name for path in Path(f"/proc/self/fd/{handle}").iterdir())

    def files(self, inside: str = "", depth: int = DEPTH) -> Iterator[str]:
        """The paths of all files whose names do not begin with a dot, in directories that do not
        either and are no links. Raises UserError as ``open`` does."""
        if depth == 0:
            raise UserError(f"{self.root / inside}: directories are more than {DEPTH} deep")
        for name in self.names(inside):
            path = f"{inside}/{name}" if inside else name
            if name.startswith("."):
                continue
            if stat.S_ISREG((found := self.look(path)).st_mode):
                yield path
            elif stat.S_ISDIR(found.st_mode) and not (self.root / path).is_symlink():
                yield from self.files(path, depth - 1)


class _Walk:
    """The way from a directory to a path below it, by descriptors; ``last`` is the last name."""

    def __init__(self, root: Path, inside: str) -> None:
        self.root, self.inside = root, inside
        self.last = ""
        self._handles = [os.open(root, os.O_PATH | os.O_DIRECTORY)]
        self._left = [*reversed(inside.split("/"))]
        self._links = 0

    def close(self) -> None:
        self._back(0)

    def to_the_end(self) -> int:
        """The descriptor (O_PATH) of what is there: a file or a directory."""
        while self._left:
            name = self._left.pop()
            if name in ("", "."):
                continue
            if name == "..":
                if len(self._handles) == 1:
                    raise self._refused("leads out of the directory")
                self._back(len(self._handles) - 1)
                continue
            self._step(name)
        return self._handles[-1]

    def _step(self, name: str) -> None:
        flags = os.O_PATH | os.O_NOFOLLOW
        try:
            handle = os.open(name, flags, dir_fd=self._handles[-1])
        except NotADirectoryError:
            raise FileNotFoundError(self.inside) from None
        except ValueError:  # a NUL
            raise self._refused("is no name of a file") from None
        self._handles.append(handle)
        mode = os.fstat(handle).st_mode
        if stat.S_ISLNK(mode):
            self._follow(os.readlink("", dir_fd=handle))
        elif stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            self.last = name
        else:
            raise self._refused("is neither a file nor a directory")

    def _follow(self, target: str) -> None:
        self._links += 1
        if self._links > LINKS:
            raise self._refused("leads through too many links")
        self._back(len(self._handles) - 1)
        if target.startswith("/"):
            for root in (self.root.absolute(), self.root.resolve()):
                with suppress(ValueError):
                    target = str(Path(target).relative_to(root))
                    break
            else:
                raise self._refused(f"leads out of the directory, to {target}")
            self._back(1)
        self._left += reversed(target.split("/"))

    def _back(self, count: int) -> None:
        """Only the first ``count`` descriptors stay open."""
        while len(self._handles) > count:
            os.close(self._handles.pop())

    def _refused(self, why: str) -> UserError:
        return UserError(
            f"{self.root / self.inside}: {why}",
            f"Only files inside {self.root} are taken. If it is a part of a larger directory whose"
            " other parts it needs, as in the hub's cache, name that one.",
        )
