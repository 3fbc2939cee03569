"""Source archives of the package index: bring one, and read what its wheel will need."""

from __future__ import annotations

import posixpath
import re
import tarfile
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import Marker
from packaging.metadata import parse_email
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from orchestrator.core import download
from orchestrator.core.errors import BadInput
from orchestrator.image import downloads, lockfile, store
from orchestrator.image.lock import index
from orchestrator.image.spec import Source

#: The file of every source archive that says what the distribution is, and what it is made from.
METADATA, PROJECT = "PKG-INFO", "pyproject.toml"
#: From this version on METADATA says which of its fields a build may still change (PEP 643).
SAYS_WHAT_IS_DYNAMIC = Version("2.2")

#: Gives the text of a file by its path below the archive's directory.
Reader = Callable[[str], str]


class DecidedByBuild(Exception):
    """Only a build says what the wheel of a source archive will require."""

    def __str__(self) -> str:
        return "its metadata do not say what its wheel will require; only a build does"


@dataclass(frozen=True)
class Archive:
    """A source archive as it is locked, and the requirements that were read in it."""

    entry: lockfile.LockedSource
    requires: list[str]


def bring(image: str, name: str, source: Source) -> Archive:
    """Find the archive of ``source`` on the index, download it, read its requirements.

    Raises BadInput where the index has none, it lacks the file that ``requires`` names, or names
    none and only a build knows the requirements; UserError where it cannot be downloaded.
    """
    where = f"images/{image}/image.yml: python.sources.{name}"
    found = index.source_of(name, source.version, index.finder())
    if found is None:
        raise BadInput(
            f"{where}: the package index has no source archive of {name} {source.version}"
        )
    path = _download(found)
    entry = lockfile.LockedSource(
        name=canonicalize_name(name),
        version=source.version,
        file=found.file,
        size=path.stat().st_size,
        sha256=found.sha256 or download.digest(path),
        store=lockfile.store_name(found.file),
        environment=source.environment,
    )
    try:
        return Archive(entry, requirements(path, source.requires))
    except KeyError as error:
        raise BadInput(f"{where}.requires: {found.file} has no file {error.args[0]!r}") from None
    except InvalidRequirement as error:
        raise BadInput(f"{where}.requires: {found.file}: {error}") from None
    except DecidedByBuild as error:
        raise BadInput(
            f"{where}: {found.file}: {error}",
            f"Name the file of the archive that lists them: python.sources.{name}.requires",
        ) from None


def _download(found: index.IndexArchive) -> Path:
    """The archive's path: in the store where it is there, else in the cache of downloads."""
    name = lockfile.store_name(found.file)
    with downloads.alone() as place, download.client() as web:
        target = place / name
        if found.sha256 is None:
            if source := download.local_path(found.url):
                return source
            download.plain(web, found.url, target)
            return target
        stored = store.path_of(found.sha256, name)
        if stored.exists():
            return stored
        if not target.exists() or download.digest(target) != found.sha256:
            size = download.size_at(web, found.url)
            download.Downloader(web).fetch(found.url, target, size, found.sha256)
        return target


def requirements(path: Path, file: str | None) -> list[str]:
    """The requirements that ``file`` of the archive lists, with those of files that it includes;
    without ``file``, those of the archive's own metadata.

    Raises KeyError with the name of a file that the archive lacks, InvalidRequirement for a line
    that is none, DecidedByBuild where nothing in the archive says them for sure.
    """
    read = _reader(path)
    if file is None:
        return _static(read)
    return [str(Requirement(line)) for line in _lines(read, file)]


def _static(read: Reader) -> list[str]:
    """The requirements that no build can change: by PEP 643, else by PEP 621."""
    metadata, _ = parse_email(read(METADATA))
    dynamic = {field.lower() for field in metadata.get("dynamic", ())}
    says = Version(metadata.get("metadata_version", "1.0")) >= SAYS_WHAT_IS_DYNAMIC
    if says and "requires-dist" not in dynamic:
        return metadata.get("requires_dist", [])
    try:
        project = tomllib.loads(read(PROJECT))["project"]
    except (KeyError, tomllib.TOMLDecodeError):
        raise DecidedByBuild from None
    if {"dependencies", "optional-dependencies"} & {*project.get("dynamic", ())}:
        raise DecidedByBuild
    found = [str(Requirement(line)) for line in project.get("dependencies", ())]
    for extra, lines in project.get("optional-dependencies", {}).items():
        found += [_of_extra(Requirement(line), extra) for line in lines]
    return found


def _of_extra(requirement: Requirement, extra: str) -> str:
    """A requirement as Requires-Dist has it, for those only who ask for the extra."""
    marker = f"({requirement.marker}) and " if requirement.marker else ""
    requirement.marker = Marker(f"{marker}extra == '{canonicalize_name(extra)}'")
    return str(requirement)


def _reader(path: Path) -> Reader:
    """A function that reads a text file below the archive's one directory."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as zipped:
            return _members({name: zipped.read(name) for name in _texts(zipped.namelist())})
    with tarfile.open(path) as tarred:
        names = _texts(member.name for member in tarred if member.isfile())
        return _members({name: _read(tarred, name) for name in names})


def _read(tarred: tarfile.TarFile, name: str) -> bytes:
    stream = tarred.extractfile(name)
    assert stream is not None  # it is a regular file
    return stream.read()


def _texts(names: Iterable[str]) -> list[str]:
    """Of an archive's members those that can list requirements."""
    return [name for name in names if name.endswith((METADATA, PROJECT, ".txt", ".in"))]


def _members(contents: dict[str, bytes]) -> Reader:
    """Reads by the path below the first directory, whatever its name."""
    by_path = {name.partition("/")[2]: content for name, content in contents.items()}
    return lambda file: by_path[posixpath.normpath(file)].decode()


def _lines(read: Reader, file: str) -> Iterator[str]:
    """The requirements' lines of a requirements file; of options only '-r' counts."""
    text = read(file).replace("\\\n", "")
    for raw in text.splitlines():
        line = re.sub(r"(^|\s+)#.*$", "", raw).strip()
        if included := re.match(r"(?:-r|--requirement)[\s=]*(\S+)", line):
            yield from _lines(read, posixpath.join(posixpath.dirname(file), included[1]))
        elif line and not line.startswith("-"):
            yield line
