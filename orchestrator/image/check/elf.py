"""Read ELF files from Debian packages and wheels, without unpacking them, by pyelftools."""

from __future__ import annotations

import posixpath
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import InterpSegment

from orchestrator.image.check import archives

#: The first bytes of an ELF file for 64-bit x86: magic, class, byte order.
MAGIC = b"\x7fELF\x02\x01"
#: Type and machine in the header: their places, and the values that the loader accepts (EXEC, DYN;
#: x86-64).
TYPE, MACHINE = slice(16, 18), slice(18, 20)
TYPES, X86_64 = (b"\x02\x00", b"\x03\x00"), b"\x3e\x00"
HEADER = 64
#: Files up to this size are read in memory, larger ones through a file on disk.
IN_MEMORY = 64 << 20

#: Directories of the root that are links into /usr in all images.
MERGED = ("bin", "sbin", "lib", "lib64")
#: Where parts of a wheel's .data go, below the environment; all others go to site-packages.
DATA = {"data": "", "scripts": "bin", "headers": "include"}


@dataclass(frozen=True)
class Object:
    """An ELF file that the loader can load, and what it needs.

    ``needed``: names of libraries; for a program also the path of the loader itself.
    """

    path: str
    is_program: bool = False
    needed: tuple[str, ...] = ()
    rpath: tuple[str, ...] = ()
    runpath: tuple[str, ...] = ()
    soname: str = ""


@dataclass(frozen=True)
class Content:
    """The files of a package, a wheel or a directory that matter to the loader, by path.

    ``links``: symbolic links -> their targets; ``same``: hard links -> the file's first path;
    ``broken``: unreadable ELF files -> the reason.
    """

    objects: tuple[Object, ...] = ()
    links: dict[str, str] = field(default_factory=dict)
    same: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    def placed(self, place: Callable[[str], str]) -> Content:
        """The same files at the paths that ``place`` returns."""
        return Content(
            tuple(replace(each, path=place(each.path)) for each in self.objects),
            {place(path): target for path, target in self.links.items()},
            {place(path): place(first) for path, first in self.same.items()},
            {place(path): reason for path, reason in self.broken.items()},
        )


def of_deb(path: Path) -> Content:
    """The content of a Debian package. Raises UserError if it cannot be read."""
    content = _Reading()
    with archives.deb(path) as deb:
        files = deb.data.tgz()
        for member in files:
            name = str(member.name)
            if member.issym():
                content.links[name] = member.linkname
            elif member.islnk():
                content.same[name] = member.linkname
            elif member.isreg() and (stream := files.extractfile(member)):
                content.take(name, stream)
    return content.done()


def of_wheel(path: Path) -> Content:
    """The content of a wheel, which has no links. Raises UserError if it cannot be read."""
    content = _Reading()
    with archives.wheel(path) as wheel:
        for info in wheel.infolist():
            with wheel.open(info) as stream:
                content.take(info.filename, stream)
    return content.done()


def of_tree(root: Path) -> Content:
    """The content of the directory ``root``."""
    content = _Reading()
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            content.links[name] = str(path.readlink())
        elif path.is_file():
            with path.open("rb") as stream:
                content.take(name, stream)
    return content.done()


def merged(name: str) -> str:
    """The path of a package's file in an image, where /bin, /lib and the like are in /usr."""
    path = name.removeprefix("./").strip("/")
    top, _, below = path.partition("/")
    return f"/usr/{path}" if top in MERGED and below else f"/{path}"


def installed(name: str, prefix: str, python: str) -> str:
    """The path of a wheel's file in the environment ``prefix`` of Python ``python``, like 3.11."""
    top, _, below = name.partition("/")
    kind, _, rest = below.partition("/")
    site = f"lib/python{python}/site-packages"
    if not top.endswith(".data"):
        return posixpath.join(prefix, site, name)
    return posixpath.normpath(posixpath.join(prefix, DATA.get(kind, site), rest))


class _Reading:
    """Collects the content of one package, file by file."""

    def __init__(self) -> None:
        self.objects: list[Object] = []
        self.links: dict[str, str] = {}
        self.same: dict[str, str] = {}
        self.broken: dict[str, str] = {}

    def take(self, name: str, stream: IO[bytes]) -> None:
        """Read a file's header, and the rest only if the loader could load it."""
        head = stream.read(HEADER)
        if not head.startswith(MAGIC) or head[TYPE] not in TYPES or head[MACHINE] != X86_64:
            return
        with SpooledTemporaryFile(IN_MEMORY) as file:
            file.write(head)
            shutil.copyfileobj(stream, file, 1 << 20)
            file.seek(0)
            try:
                self.objects.append(read(name, file))
            except (ELFError, ValueError) as error:
                self.broken[name] = f"not a whole ELF file: {error}"

    def done(self) -> Content:
        return Content(tuple(self.objects), self.links, self.same, self.broken)


def read(path: str, file: IO[bytes]) -> Object:
    """Read the ELF file at ``path``: what it needs of the loader. Raises ELFError if broken."""
    found: dict[str, list[str]] = {"needed": [], "rpath": [], "runpath": [], "soname": []}
    is_program = False
    for segment in ELFFile(file).iter_segments():
        if isinstance(segment, InterpSegment):
            is_program = True
            found["needed"].append(segment.get_interp_name())
        if isinstance(segment, DynamicSegment):
            for tag in segment.iter_tags():
                kind = str(tag.entry.d_tag).removeprefix("DT_").lower()
                if kind in found:
                    found[kind].append(getattr(tag, kind))
    return Object(
        path,
        is_program,
        tuple(found["needed"]),
        _directories(found["rpath"]),
        _directories(found["runpath"]),
        next(iter(found["soname"]), ""),
    )


def _directories(texts: list[str]) -> tuple[str, ...]:
    return tuple(each for text in texts for each in text.split(":") if each)
