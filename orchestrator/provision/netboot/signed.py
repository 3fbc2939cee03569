"""A signed image of a node: kernel, initrd, command line and boot files in one file for firmware.

It is a unified kernel image (UKI): systemd's stub with sections behind it. Firmware with Secure
Boot checks the signature over all of it before it runs, whoever sent it. The stub then starts the
kernel with the command line inside, and takes no other one. So nobody on the network can change
what a node runs.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.core.errors import UserError

if TYPE_CHECKING:
    from orchestrator.provision.identity import BootFile

#: systemd's stub, in an image.
STUB = "loaders/linuxx64.efi.stub"
#: In the initrd: an archive of the node's boot files (images/initrd/init unpacks it).
BOOT_FILES = "boot-files.tar"
#: A section that firmware loads, and nothing executes or writes: initialized data, readable.
DATA = 0x4000_0040
#: Sizes in bytes: a section's header; the format's optional header begins so far behind "PE".
SECTION, OPTIONAL = 40, 24


@dataclass(frozen=True)
class SignedParts:
    """What signed images of all nodes have in common: files of one image. Get it from `read`."""

    stub: bytes
    kernel: bytes
    initrd: bytes

    def assemble(self, command_line: str, files: Mapping[str, BootFile]) -> bytes:
        """The unsigned program that boots them with this command line and boot files."""
        sections = {
            ".cmdline": command_line.encode(),
            ".linux": self.kernel,
            ".initrd": cpio(BOOT_FILES, archive(files)) + self.initrd,
        }
        return with_sections(self.stub, sections)


def read(directory: Path, image: str) -> SignedParts:
    """The parts of the image with this id, checked against it: a signature vouches for them.

    Raises UserError if a file is not what the id says, or the image was built without the stub.
    """
    known = json.loads(_checked(directory, "manifest.json", image))
    entries = [*known["loaders"], known["kernel"], known["initrd"]]
    hashes = {entry["file"]: entry["sha256"] for entry in entries}
    if STUB not in hashes:
        raise UserError(
            f"this image cannot be signed for Secure Boot: it has no {STUB}",
            "Build it again: orchestrate image fetch NAME, then orchestrate image build NAME",
        )
    return SignedParts(
        *(_checked(directory, name, hashes[name]) for name in (STUB, "kernel", "initrd"))
    )


def _checked(directory: Path, name: str, sha256: str) -> bytes:
    data = (directory / name).read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise UserError(
            f"{directory / name} is not what the image's id says; nothing was signed",
            f"Remove {directory}, then run: orchestrate up",
        )
    return data


def archive(files: Mapping[str, BootFile]) -> bytes:
    """A tar archive of boot files, the same for the same files; root owns all."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path, file in sorted(files.items()):
            header, data = tarfile.TarInfo(path.lstrip("/")), file.content.encode()
            header.size, header.mode = len(data), file.mode
            tar.addfile(header, io.BytesIO(data))
    return out.getvalue()


def cpio(name: str, data: bytes) -> bytes:
    """An initrd with one file in it. The kernel unpacks all archives that an initrd consists of."""
    entries = ((1, name, 0o100644, data), (0, "TRAILER!!!", 0, b""))
    return b"".join(_entry(*entry) for entry in entries)


def _entry(inode: int, name: str, mode: int, data: bytes) -> bytes:
    path = name.encode() + b"\0"
    fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
    return _padded(head, 4) + _padded(data, 4)


def with_sections(program: bytes, sections: Mapping[str, bytes]) -> bytes:
    """A PE program with further sections behind its own (Microsoft's "PE Format" has the fields).

    Its symbols, which nothing loads, are left out. Raises ValueError if its header has no room.
    """
    begin = _number(program, 0x3C)
    optional = begin + OPTIONAL
    count = _number(program, begin + 6, "H")
    table = optional + _number(program, begin + 20, "H")
    in_memory, in_file = _number(program, optional + 32), _number(program, optional + 36)
    headers = _number(program, optional + 60)
    if table + SECTION * (count + len(sections)) > headers:
        raise ValueError(f"no room for {len(sections)} sections in the program's header")
    own = [struct.unpack_from("<4I", program, table + SECTION * i + 8) for i in range(count)]
    address = max(start + size for size, start, _, _ in own)
    out = bytearray(_padded(program[: max(at + size for _, _, size, at in own)], in_file))
    for number, (name, data) in enumerate(sections.items(), count):
        address = _up(address, in_memory)
        place = (len(data), address, _up(len(data), in_file), len(out))
        header = struct.pack("<8s4I12xI", name.encode(), *place, DATA)
        out[table + SECTION * number : table + SECTION * (number + 1)] = header
        out += _padded(data, in_file)
        address += len(data)
    struct.pack_into("<H", out, begin + 6, count + len(sections))
    struct.pack_into("<2I", out, begin + 12, 0, 0)  # symbols
    added = sum(_up(len(data), in_file) for data in sections.values())
    struct.pack_into("<I", out, optional + 8, _number(program, optional + 8) + added)
    struct.pack_into("<I", out, optional + 56, _up(address, in_memory))  # its size in memory
    struct.pack_into("<I", out, optional + 64, 0)  # no checksum; firmware has no use for it
    return bytes(out)


def section(program: bytes, name: str) -> bytes:
    """The content of a section; empty if there is none of this name."""
    return next((data for each, data in _sections(program) if each == name), b"")


def _sections(program: bytes) -> Iterable[tuple[str, bytes]]:
    begin = _number(program, 0x3C)
    table = begin + OPTIONAL + _number(program, begin + 20, "H")
    for at in range(table, table + SECTION * _number(program, begin + 6, "H"), SECTION):
        name, size, _, _, start = struct.unpack_from("<8s4I", program, at)
        yield name.rstrip(b"\0").decode(), program[start : start + size]


def _number(data: bytes, at: int, kind: str = "I") -> int:
    (number,) = struct.unpack_from(f"<{kind}", data, at)
    return int(number)


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def _padded(data: bytes, unit: int) -> bytes:
    return data + b"\0" * (-len(data) % unit)
