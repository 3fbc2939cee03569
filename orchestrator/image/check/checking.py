"""Check, before a build, that an image has all that its packages, wheels and ELF files need."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.core import paths
from orchestrator.image import lockfile, overrides, spec, store
from orchestrator.image.check import dependencies, findings, libraries, metadata
from orchestrator.image.check.findings import Finding
from orchestrator.image.lock import index, wheels
from orchestrator.image.lockfile import File, Lock, LockedSource, Overridden
from orchestrator.image.spec import Spec


@dataclass(frozen=True)
class ImageReport:
    """What was found, and how much was looked at.

    ``problems`` are allowed by no exception of image.yml, ``allowed`` by one; ``stale`` are the
    keys of exceptions that allow nothing, and of overrides that replace nothing. ``overridden`` are
    requirements that image.yml replaces. ``undecided`` is what a file that is not here may bring.
    Files that are not in the Nix store: of ``declared`` ones image.yml says what they need, of
    ``unbuilt`` wheels their source archives do, of ``unread`` ones nobody.
    """

    name: str
    problems: tuple[Finding, ...]
    allowed: tuple[Finding, ...]
    stale: tuple[str, ...]
    undecided: tuple[Finding, ...]
    declared: tuple[str, ...]
    unbuilt: tuple[str, ...]
    unread: tuple[str, ...]
    packages: int
    wheels: int
    objects: int
    seconds: dict[str, float]
    overridden: tuple[Overridden, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong, as far as this machine can fetch the files."""
        return not (self.problems or self.stale or self.unread)

    def document(self) -> dict[str, Any]:
        """The report as JSON types."""
        overridden = [each.document() for each in self.overridden]
        return {"ok": self.ok} | asdict(self) | {"overridden": overridden}

    def lines(self) -> list[str]:
        """The report for people: allowed findings, undecided ones, problems, a summary."""
        reasons = {each.key: each.reason for each in self.allowed}
        counts = Counter(each.key for each in self.allowed)
        told = [f"allowed: {key} ({counts[key]}): {reasons[key]}" for key in sorted(reasons)]
        told += [f"overridden: {each}" for each in self.overridden]
        told += [f"not in the Nix store, checked as declared: {file}" for file in self.declared]
        told += [f"not built, checked by its source archive: {wheel}" for wheel in self.unbuilt]
        told += [f"undecided: {line}" for line in _by_owner(self.undecided)]
        told += [f"not in the Nix store, not checked: {file}" for file in self.unread]
        if self.unread:
            told.append(f"Run: orchestrate image fetch {self.name}")
        told += [f"wrong: {line}" for line in _grouped(self.problems)]
        told += [f"wrong: {key} is unused: remove it from image.yml" for key in self.stale]
        looked = f"{self.packages} packages, {self.wheels} wheels, {self.objects} ELF files"
        wrong = len(self.problems) + len(self.stale)
        skipped = f", {len(self.unread)} files not checked" if self.unread else ""
        told.append(f"{self.name}: {looked}: {wrong or 'no'} problem{'s' * (wrong != 1)}{skipped}")
        return told


def check(name: str) -> ImageReport:
    """Check the lock of the image ``name``, as far as its files are in the Nix store.

    Raises UserError if the lock is missing or stale, has wheels for another Python or platform, or
    a file cannot be read.
    """
    started = time.monotonic()
    store.require_nix()
    image, lock = spec.load(name), lockfile.current(name)
    here = _here(lock)
    built = _built(name, lock)
    of_debs = _debian(image, lock, here)
    of_wheels, replaced = _python(name, image, lock, here, built)
    found = of_debs + of_wheels
    read = time.monotonic()
    parts = libraries.read(_unpackable(here), built, lock, _trees(name))
    needed = libraries.check(parts, image.check)
    found += needed
    absent = [file for file in lock.files if store.path_of_file(file) not in here]
    unread = tuple(file.file for file in absent if not file.elsewhere)
    undecided = [each for each in needed if absent and _is_nowhere(each)]
    undecided += [each for each in of_debs if unread and _is_nowhere(each)]
    unbuilt = tuple(each.name for each in lock.sources if each.name not in built)
    judged = [] if unread else _exceptions(image, of_libraries=not absent and not unbuilt)
    unused = () if unread else replaced.unused
    return ImageReport(
        name=name,
        problems=tuple(each for each in found if not each.key and each not in undecided),
        allowed=tuple(each for each in found if each.key),
        stale=(*findings.stale(judged, found), *unused),
        undecided=tuple(undecided),
        declared=tuple(file.file for file in absent if file.elsewhere),
        unbuilt=unbuilt,
        unread=unread,
        packages=len(lock.debs),
        wheels=len(lock.wheels) + len(lock.sources),
        objects=sum(len(part.content.objects) for part in parts),
        seconds={
            "dependencies": round(read - started, 1),
            "libraries": round(time.monotonic() - read, 1),
        },
        overridden=replaced.overridden,
    )


def _is_nowhere(finding: Finding) -> bool:
    """Whether a missing file may meet the need: nothing in the store has or provides it."""
    return not finding.key and finding.problem in (libraries.ABSENT, dependencies.MISSING)


def _grouped(problems: Iterable[Finding]) -> list[str]:
    """One line per file and kind of problem, with all that the file lacks."""
    wants: dict[tuple[str, str], list[str]] = {}
    for each in problems:
        wants.setdefault((each.who, each.problem), []).append(each.wants)
    return [f"{who} needs {', '.join(all_)}: {how}" for (who, how), all_ in wants.items()]


def _by_owner(undecided: Iterable[Finding]) -> list[str]:
    """One line per package, with all that its files lack."""
    wants: dict[str, set[str]] = {}
    for each in undecided:
        wants.setdefault(each.who.partition(":")[0], set()).add(each.wants)
    return [f"{who} needs {', '.join(sorted(all_))}" for who, all_ in wants.items()]


def _here(lock: Lock) -> dict[Path, File]:
    """The lock's files that the store has, by store path."""
    wanted = {store.path_of_file(file): file for file in lock.files}
    absent = store.missing(wanted)
    return {path: file for path, file in wanted.items() if path not in absent}


def _unpackable(here: dict[Path, File]) -> dict[Path, File]:
    """The files that are packages or wheels, not source archives."""
    return {path: file for path, file in here.items() if not isinstance(file, LockedSource)}


def _built(name: str, lock: Lock) -> dict[str, Path]:
    """Wheels that were built from source archives and are in the store, by name."""
    found = {}
    for source in lock.sources:
        directory = store.built_part(name, f"wheels.{source.name}")
        if directory and (wheels := sorted(directory.glob("*.whl"))):
            found[source.name] = wheels[0]
    return found


def _trees(name: str) -> list[Path]:
    """The directories of the project's own files, which form the config layer."""
    images = paths.checkout() / "images"
    return [tree for tree in (images / "config", images / name / "config") if tree.is_dir()]


def _exceptions(image: Spec, of_libraries: bool) -> list[str]:
    """The keys of exceptions; without `of_libraries`, only of those not about libraries."""
    sections = {
        "debian.exclude": image.debian.exclude,
        "python.exclude": image.python.exclude if image.python else {},
        "check.unmet": image.check.unmet,
    }
    if of_libraries:
        sections |= {"check.needed": image.check.needed, "check.loaded": image.check.loaded}
        sections |= {"check.library_path": image.check.library_path}
    return [f"{section}.{name}" for section, reasons in sections.items() for name in reasons]


def _debian(image: Spec, lock: Lock, here: Collection[Path]) -> list[Finding]:
    """Packages that differ from lock or image.yml, and dependencies that are not met."""
    packages, found = metadata.packages(lock, image.debian, here)
    allowed = findings.exceptions(
        {"debian.exclude": image.debian.exclude, "check.unmet": image.check.unmet}
    )
    return found + dependencies.debian(packages, image.debian.roots, allowed)


@dataclass(frozen=True)
class _Replaced:
    """What image.yml replaces of requirements, and the keys of what it replaces in vain."""

    overridden: tuple[Overridden, ...] = ()
    unused: tuple[str, ...] = ()


def _python(
    name: str, image: Spec, lock: Lock, here: Collection[Path], built: Mapping[str, Path]
) -> tuple[list[Finding], _Replaced]:
    """Wheels that are not what is said of them, and requirements that are not met, once image.yml
    has replaced some of them."""
    python = image.python
    if python is None:
        return [], _Replaced()
    environment = index.environment(wheels.interpreter(name, python, lock.debs))
    distributions, found = metadata.distributions(lock, python, environment, here, built)
    by = overrides.changes(python)
    requires = {each.name: each.requires for each in distributions}
    overridden, unused = overrides.found(by, requires, environment)
    distributions = [
        replace(each, requires=tuple(overrides.applied(each.name, each.requires, by)))
        for each in distributions
    ]
    renamed = {old: (new.name, new.version) for old, new in python.rename.items()}
    allowed = findings.exceptions(
        {"python.exclude": python.exclude, "check.unmet": image.check.unmet}
    )
    found += dependencies.python(distributions, python.requirements, environment, renamed, allowed)
    return found, _Replaced(tuple(overridden), tuple(each.key for each in unused))
