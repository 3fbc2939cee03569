"""Install wheels into a tar stream for mksquashfs, by `installer`, which usually writes to disk."""

import base64
import hashlib
import io
import posixpath
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from installer import install
from installer.destinations import SchemeDictionaryDestination
from installer.records import Hash, RecordEntry
from installer.scripts import Script
from installer.sources import WheelFile
from metadata import with_name, with_requirements

#: Bytes per write to the stream.
BLOCK = 1 << 20
#: Directories of a wheel's .data that go to site-packages.
LIBRARIES = ("purelib", "platlib")


class Tree:
    """A tar stream of a file tree, all owned by root. It writes each path once, parents first."""

    def __init__(self, stream: BinaryIO, epoch: int) -> None:
        self.epoch = epoch
        self.who = "the build"  # the owner of the paths that are added now
        self.tar = tarfile.open(  # noqa: SIM115
            fileobj=stream, mode="w|", bufsize=BLOCK, copybufsize=BLOCK, format=tarfile.PAX_FORMAT
        )
        self.paths: dict[str, str] = {"": self.who}

    def file(self, path: str, content: BinaryIO, size: int, executable: bool = False) -> None:
        header = self._header(path, 0o755 if executable else 0o644)
        header.size = size
        self.tar.addfile(header, content)

    def link(self, path: str, target: str) -> None:
        header = self._header(path, 0o777)
        header.type, header.linkname = tarfile.SYMTYPE, target
        self.tar.addfile(header)

    def directory(self, path: str) -> None:
        """Add a directory and its parents, unless they exist."""
        if path not in self.paths:
            header = self._header(path, 0o755)
            header.type = tarfile.DIRTYPE
            self.tar.addfile(header)

    def _header(self, path: str, mode: int) -> tarfile.TarInfo:
        if path in self.paths:
            both = f"{self.paths[path]} and by {self.who}"
            raise SystemExit(
                f"/{path} is brought by {both}: say in image.yml, system.owners, whose it is"
            )
        self.directory(posixpath.dirname(path))
        self.paths[path] = self.who
        header = tarfile.TarInfo(path)
        header.mode, header.mtime = mode, self.epoch
        return header


class Hashing:
    """A stream that computes its sha256 while it is read."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.sha256 = hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.sha256.update(data)
        return data

    def digest(self) -> str:
        """The sha256 in RECORD's format: URL-safe base64 without padding."""
        return base64.urlsafe_b64encode(self.sha256.digest()).decode().rstrip("=")


@dataclass(frozen=True)
class Environment:
    """Where wheels go: below `prefix`, importable ones in `site` there.

    `renamed` has other names and versions for wheels' metadata; `overrides` what replaces their
    requirements; `owners` the wheels whose files are kept where several bring them, by paths below
    the prefix.
    """

    tree: Tree
    prefix: str
    site: str
    renamed: dict[str, dict]
    owners: dict[str, str]
    overrides: list[dict]


class Destination(SchemeDictionaryDestination):
    """`installer`'s destination for one wheel: writes its files into the tree."""

    def __init__(self, environment: Environment, wheel: dict):
        prefix, site = environment.prefix, environment.site
        root = prefix.lstrip("/")
        schemes = {
            "purelib": f"{root}/{site}",
            "platlib": f"{root}/{site}",
            "scripts": f"{root}/bin",
            "data": root,
            "headers": f"{root}/include/{wheel['name']}",
        }
        super().__init__(schemes, interpreter=f"{prefix}/bin/python", script_kind="posix")
        self.tree, self.renamed = environment.tree, environment.renamed.get(wheel["name"])
        self.replaced = {
            each["requirement"]: each["to"]
            for each in environment.overrides
            if each["distribution"] == wheel["name"]
        }
        owners = {f"{root}/{path}": owner for path, owner in environment.owners.items()}
        self.left_out = {path for path, owner in owners.items() if owner != wheel["name"]}
        self.tree.who = wheel["name"]
        with zipfile.ZipFile(wheel["file"]) as archive:
            self.sizes = {info.filename: info.file_size for info in archive.infolist()}

    def write_to_fs(self, scheme, path, stream, is_executable) -> RecordEntry:
        path = self._named(path)
        if self.renamed and path.endswith(".dist-info/METADATA"):
            stream = io.BytesIO(with_name(stream.read(), self.renamed))
        if self.replaced and path.endswith(".dist-info/METADATA"):
            stream = io.BytesIO(with_requirements(stream.read(), self.replaced))
        if isinstance(stream, io.BytesIO):
            size = len(stream.getbuffer())
        else:
            size = self.sizes[stream.name]
        content = Hashing(stream)
        if path.endswith(".pyc"):  # compiled by the author's Python; the build compiles its own
            return RecordEntry(path, None, None)
        place = posixpath.normpath(posixpath.join(self.scheme_dict[scheme], path))
        if not place.startswith(f"{self.scheme_dict[scheme]}/"):
            raise ValueError(f"a path outside of {self.scheme_dict[scheme]}: {path}")
        if place in self.left_out:
            return RecordEntry(path, None, None)
        self.tree.file(place, content, size, is_executable)
        return RecordEntry(path, Hash("sha256", content.digest()), size)

    def write_script(self, name, module, attr, section) -> RecordEntry:
        script, data = Script(name, module, attr, section).generate(
            self.interpreter, self.script_kind
        )
        return self.write_to_fs("scripts", script, io.BytesIO(data), is_executable=True)

    def finalize_installation(self, scheme, record_file_path, records) -> None:
        named = [
            (each, RecordEntry(self._named(entry.path), entry.hash_, entry.size))
            for each, entry in records
        ]
        super().finalize_installation(scheme, record_file_path, named)

    def _named(self, path: str) -> str:
        top, slash, below = path.partition("/")
        if not (self.renamed and top.endswith(".dist-info")):
            return path
        name = self.renamed["name"].replace("-", "_")
        return f"{name}-{self.renamed['version']}.dist-info{slash}{below}"


def install_wheel(environment: Environment, wheel: dict) -> None:
    """Install one wheel: files, scripts, data, RECORD."""
    try:
        destination = Destination(environment, wheel)
        with WheelFile.open(wheel["file"]) as source:
            install(source, destination, additional_metadata={"INSTALLER": b"orchestrate\n"})
    except Exception as error:
        raise SystemExit(f"{wheel['file']}: {error}") from error


def sources(wheel: dict, into: str) -> Iterator[tuple[str, str, str]]:
    """A wheel's importable Python files: the wheel, the name in it, the path in the image."""
    with zipfile.ZipFile(wheel["file"]) as archive:
        for name in archive.namelist():
            top, _, below = name.partition("/")
            kind, _, rest = below.partition("/")
            is_data = top.endswith(".data")
            if name.endswith(".py") and (not is_data or kind in LIBRARIES):
                yield (
                    str(Path(wheel["file"]).absolute()),
                    name,
                    f"{into}/{rest if is_data else name}",
                )
