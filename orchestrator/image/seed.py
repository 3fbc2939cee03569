"""The seed: one static program from a Debian package, the first program that a build can run.

Nix itself cannot unpack packages, so the seed is in the store unpacked, as a directory with one
executable file. Its hash is that of the directory's NAR, the store's archive format.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

from orchestrator.core.errors import UserError

#: The store's name of the directory, and the name of the file in it.
STORE_NAME = "seed"
PROGRAM = "busybox"


def extract(deb: Path, member: str) -> bytes:
    """The file ``member`` (bin/busybox) of a Debian package. Raises UserError if it lacks it."""
    for name, data in _ar(deb.read_bytes()):
        if name.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                try:
                    stream = archive.extractfile(f"./{member}")
                except KeyError:
                    stream = None
                if stream is not None:
                    return stream.read()
    raise UserError(f"{deb.name}: contains no file {member!r}", "Correct seed.file in image.yml.")


def _ar(archive: bytes) -> list[tuple[str, bytes]]:
    """Names and contents of an ar archive: 60 bytes of header per member, padded to even size."""
    if not archive.startswith(b"!<arch>\n"):
        raise UserError("not a Debian package: it is not an ar archive")
    members, at = [], 8
    while at + 60 <= len(archive):
        name = archive[at : at + 16].decode().rstrip(" /")
        size = int(archive[at + 48 : at + 58])
        members.append((name, archive[at + 60 : at + 60 + size]))
        at += 60 + size + size % 2
    return members


def lay_out(content: bytes, directory: Path) -> None:
    """Write the seed's directory."""
    directory.mkdir(parents=True)
    program = directory / PROGRAM
    program.write_bytes(content)
    program.chmod(0o555)


def nar_hash(content: bytes) -> str:
    """The sha256 (hexadecimal) of the NAR of the directory that ``lay_out`` writes."""
    file: list[str | bytes] = ["(", "type", "regular", "executable", "", "contents", content, ")"]
    words: list[str | bytes] = ["nix-archive-1", "(", "type", "directory"]
    words += ["entry", "(", "name", PROGRAM, "node", *file, ")", ")"]
    return hashlib.sha256(b"".join(_word(word) for word in words)).hexdigest()


def _word(word: str | bytes) -> bytes:
    """A string in NAR format: length in 8 bytes, the bytes, zeros up to a multiple of 8."""
    data = word.encode() if isinstance(word, str) else word
    return len(data).to_bytes(8, "little") + data + bytes(-len(data) % 8)
