"""The archive of the kernels that a node compiled: written by one node, read by others.

It is tar, but not all of it: ``key`` (image, kernel, driver and cards: kernel_cache.py), then files
with relative names below the known directories, nothing else. It comes from a node, which may be
hostile. So the control host that keeps it and the node that unpacks it read it with ``members``,
which refuses everything else, and neither does so with more rights than it needs.

Standard library only: this file is sent to nodes alone. ``pack JSON`` writes an archive to stdout,
``unpack JSON`` reads one from stdin; kernel_cache.py and cluster/kernels.py make the documents.
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
import stat
import sys
import tarfile
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

BLOCK = 512
CHUNK = 1 << 20
#: The first file of an archive: whose kernels these are.
KEY_FILE = "key"
KEY_LENGTH = 200
MOST_FILES, MOST_PARTS, LONGEST_NAME = 200_000, 16, 4096
#: Kinds of tar entries, for the message about one that is refused.
KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"5": "a directory",
    b"6": "a FIFO",
    b"S": "a sparse file",
}


class Refused(Exception):
    """An archive, or a cache, that is not what it should be; the text is for people."""


def members(
    file: BinaryIO, variables: Sequence[str], limit: int
) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Name and content of each file of an archive, in order; ``key`` is the first one.

    Raises Refused for anything else than an archive that ``pack`` could have written, whose files
    have at most ``limit`` bytes together.
    """
    seen: set[str] = set()
    total = 0
    while header := _header(file):
        kind, name, size = header
        if kind == b"L":  # the next one's name, where it is longer than a header's
            if not 0 < size <= LONGEST_NAME:
                raise Refused(f"the archive has a file name of {size} bytes")
            name = _decoded(b"".join(_content(file, size)).rstrip(b"\0"))
            kind, _, size = _header(file) or (b"", "", 0)
        if kind != b"0":
            what = KINDS.get(kind, f"an entry of kind {kind!r}")
            raise Refused(f"the archive holds {what}: {name!r}")
        _must_be_plain(name, variables, first=not seen)
        if name in seen or len(seen) > MOST_FILES:
            raise Refused(f"the archive has {name!r} twice, or too many files")
        seen.add(name)
        total += size
        if total > limit:
            raise Refused(f"the files of the archive have more than {limit} bytes together")
        content = _content(file, size)
        yield name, content
        for _ in content:  # what the caller left
            pass
    if not seen:
        raise Refused("the archive is empty")


def checked(file: BinaryIO, variables: Sequence[str], limit: int) -> tuple[str, int, int]:
    """Key, number of files and their bytes. Raises Refused as ``members`` does; writes nothing."""
    own, files, size = "", 0, 0
    for name, content in members(file, variables, limit):
        if name == KEY_FILE:
            own = _key_of(content)
        else:
            files += 1
            size += sum(map(len, content))
    return own, files, size


def _key_of(content: Iterator[bytes]) -> str:
    said = _decoded(b"".join(content))
    if not re.fullmatch(rf"[A-Za-z0-9.+_-]{{1,{KEY_LENGTH}}}", said):
        raise Refused(f"the archive's key is none: {said[:100]!r}")
    return said


def _header(file: BinaryIO) -> tuple[bytes, str, int] | None:
    """Kind, name and size of the next entry; None at the archive's end, which has to be empty."""
    block = _read(file, BLOCK)
    if not block.strip(b"\0"):
        while rest := file.read(CHUNK):
            if rest.strip(b"\0"):
                raise Refused("the archive goes on behind its end")
        return None
    total = sum(block[:148]) + sum(block[156:]) + 8 * 32
    if block[257:265] != b"ustar  \0" or _octal(block[148:156].rstrip(b"\0 ")) != total:
        raise Refused("the archive has an entry that cannot be read")
    size = _octal(block[124:136].rstrip(b"\0 "))
    return block[156:157], _decoded(block[:100].rstrip(b"\0")), size


def _octal(digits: bytes) -> int:
    if not re.fullmatch(rb"[0-7]{1,11}", digits):
        raise Refused("the archive has an entry with a number that cannot be read")
    return int(digits, 8)


def _content(file: BinaryIO, size: int) -> Iterator[bytes]:
    left = size
    while left:
        chunk = _read(file, min(left, CHUNK))
        left -= len(chunk)
        yield chunk
    _read(file, -size % BLOCK)


def _read(file: BinaryIO, size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (more := file.read(size - len(data))):
            raise Refused("the archive is cut off")
        data += more
    return data


def _decoded(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise Refused(f"the archive has a name that is no text: {name!r}") from None


def _must_be_plain(name: str, variables: Sequence[str], *, first: bool) -> None:
    """Raises Refused unless it is the key, or a path below one of the directories."""
    if first:
        if name != KEY_FILE:
            raise Refused(f"the archive does not begin with its key but with {name!r}")
        return
    parts = name.split("/")
    fine = (
        parts[0] in variables
        and 2 <= len(parts) <= MOST_PARTS
        and all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in parts)
        and name.isprintable()
    )
    if not fine:
        raise Refused(f"the archive has a file outside the caches: {name!r}")


def pack(want: dict[str, Any], out: BinaryIO) -> None:
    """Write the archive of this node's caches: the same files make the same bytes.

    ``link`` leads to the caches: the directory's name is the key (kernel_cache.py).
    """
    home, left = Path(want["link"]), int(want["max_bytes"])
    if not home.is_symlink():
        raise Refused(f"this node keeps no caches ({home} is missing): run 'orchestrate up' first")
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.GNU_FORMAT) as tar:
        _add(tar, KEY_FILE, home.resolve().name.encode())
        for name, path in _kept(home, want["variables"]):
            # Not by a link, and no FIFO that would never end.
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(handle, "rb") as file:
                if not stat.S_ISREG(os.fstat(handle).st_mode):
                    continue
                content = file.read(left + 1)
            left -= len(content)
            if left < 0:
                raise Refused(f"the caches hold more than {want['max_bytes']} bytes")
            _add(tar, name, content)


def _kept(home: Path, variables: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """The files of the caches, sorted, without those that are just being written."""
    for variable in sorted(variables):
        found = []
        for directory, below, names in os.walk(home / variable):
            below[:] = [each for each in below if not each.startswith("tmp.pid_")]
            found += [Path(directory, name) for name in names]
        for path in sorted(found):
            name = str(path.relative_to(home))
            if not path.is_symlink() and path.is_file() and len(name.encode()) < LONGEST_NAME:
                yield name, path


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o644
    tar.addfile(entry, BytesIO(content))


def unpack(want: dict[str, Any], file: BinaryIO) -> int:
    """Write an archive's files below ``home``; returns how many. Raises Refused for another key."""
    home, files = Path(want["home"]), 0
    for name, content in members(file, want["variables"], int(want["max_bytes"])):
        if name == KEY_FILE:
            if (theirs := _key_of(content)) != want["key"]:
                raise Refused(f"the archive is for {theirs}, this node is {want['key']}")
            continue
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(path, flags, 0o600), "wb") as new:
            for chunk in content:
                new.write(chunk)
        files += 1
    return files


def become(name: str) -> None:
    """Go on as the account: what it may not read is not packed."""
    account = pwd.getpwnam(name)
    if os.geteuid() != account.pw_uid:
        os.setgroups([group.gr_gid for group in grp.getgrall() if name in group.gr_mem])
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)


def main(verb: str, argument: str) -> None:
    want = json.loads(argument)
    try:
        if verb == "pack":
            become(want["account"])
            pack(want, sys.stdout.buffer)
        elif verb == "unpack":
            print(unpack(want, sys.stdin.buffer))
    except Refused as refused:
        sys.exit(str(refused))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
