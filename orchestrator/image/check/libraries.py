"""Find libraries that an image's ELF files need and that are missing, from the lock's files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath

from pydantic import TypeAdapter, ValidationError

from orchestrator.core import paths
from orchestrator.core.files import write
from orchestrator.image.check import elf, loader
from orchestrator.image.check.elf import Content, Object
from orchestrator.image.check.findings import Allowed, Finding
from orchestrator.image.lockfile import Deb, File, Lock
from orchestrator.image.spec import Exceptions

#: The version of the cache's format; entries of other versions are ignored.
FORMAT = 1
CONTENT = TypeAdapter(Content)

#: The path of the wheels' environment for locks that are not images; any path works.
ENVIRONMENT = "/environment"

ABSENT = "not in the image"


@dataclass(frozen=True)
class Brought:
    """One part's content at its paths in the image. ``owner``: package, wheel or config."""

    owner: str
    content: Content


def read(
    files: Mapping[Path, File], built: Mapping[str, Path], lock: Lock, trees: Iterable[Path]
) -> list[Brought]:
    """Read the content of ``files`` (by store path), ``built`` wheels (by name), and ``trees``.

    ``trees`` are copied over the root. Files are read in parallel; the results are cached by the
    file's hash. Raises UserError if a file cannot be read.
    """
    contents = {path: found for path, file in files.items() if (found := _load(file))}
    new = [path for path in files if path not in contents]
    new.sort(key=lambda path: path.stat().st_size, reverse=True)
    if new:
        with ProcessPoolExecutor() as pool:
            read_now = pool.map(_read, new, [isinstance(files[path], Deb) for path in new])
            for path, content in zip(new, read_now, strict=True):
                _keep(files[path], content)
                contents[path] = content
    parts = [
        Brought(file.name, contents[path].placed(_placing(lock, isinstance(file, Deb))))
        for path, file in files.items()
    ]
    parts += [
        Brought(name, elf.of_wheel(path).placed(_placing(lock, is_deb=False)))
        for name, path in built.items()
    ]
    return parts + [Brought("config", elf.of_tree(tree).placed(elf.merged)) for tree in trees]


def _read(path: Path, is_deb: bool) -> Content:
    return elf.of_deb(path) if is_deb else elf.of_wheel(path)


def _placing(lock: Lock, is_deb: bool) -> Callable[[str], str]:
    """The function from a file's path in a package or wheel to its path in the image."""
    if is_deb or lock.python is None:
        return elf.merged
    prefix = lock.system.get("environment", ENVIRONMENT)
    return partial(elf.installed, prefix=prefix, python=lock.python.version)


def _kept(file: File) -> Path:
    """The cache's path for a file's content."""
    return paths.cache() / "elf" / f"{file.sha256}.{FORMAT}.json"


def _load(file: File) -> Content | None:
    try:
        return CONTENT.validate_json(_kept(file).read_bytes())
    except (OSError, ValidationError):
        return None


def _keep(file: File, content: Content) -> None:
    write(_kept(file), CONTENT.dump_json(content))


def tree(parts: Iterable[Brought]) -> loader.Tree:
    """All parts together, as the loader sees them."""
    objects: list[Object] = []
    links = {f"/{name}": f"usr/{name}" for name in elf.MERGED}
    for part in parts:
        objects += part.content.objects
        links |= part.content.links | part.content.same
    return loader.Tree(objects, links)


def check(parts: Sequence[Brought], allowed: Exceptions) -> list[Finding]:
    """Each library that the loader would not find in an image of these parts. Pure.

    ``allowed``: the exceptions in image.yml.
    """
    image = tree(parts)
    owners = {each.path: part.owner for part in parts for each in part.content.objects}
    found = []
    for part in parts:
        for path, problem in part.content.broken.items():
            broken = Finding(f"{part.owner}: {path}", "to be read", problem)
            whole = loader.Missing(path, "", path)
            found.append(broken.allowed_by(_exception(image, allowed, part.owner, whole, False)))
    for each in loader.missing(image):
        places = image.by_name.get(PurePosixPath(each.library).name, [])
        problem = f"outside the loader's search path: {places[0]}" if places else ABSENT
        lacking = Finding(f"{owners[each.path]}: {each.path}", each.library, problem)
        exception = _exception(image, allowed, owners[each.path], each, bool(places))
        found.append(lacking.allowed_by(exception))
    return found


def _exception(
    image: loader.Tree, allowed: Exceptions, owner: str, missing: loader.Missing, is_here: bool
) -> Allowed | None:
    """The exception that allows a missing library, the most specific kind first; None if none."""
    kinds = {"loaded": allowed.loaded, "needed": allowed.needed}
    for kind, reasons in kinds.items():
        if (kind != "loaded" or is_here) and (name := _matching(owner, missing, reasons)):
            return Allowed(f"check.{kind}.{name}", reasons[name])
    for directory, reason in allowed.library_path.items():
        if image.at(f"{directory}/{missing.library}"):
            return Allowed(f"check.library_path.{directory}", reason)
    return None


def _matching(owner: str, missing: loader.Missing, names: Iterable[str]) -> str | None:
    """The first exception's name that matches: LIBRARY or WHO:LIBRARY, with wildcards * and ?."""
    file = PurePosixPath(missing.path).name
    for name in names:
        who, colon, library = name.rpartition(":")
        is_its = not colon or fnmatchcase(owner, who) or fnmatchcase(file, who)
        if is_its and fnmatchcase(missing.library, library):
            return name
    return None
