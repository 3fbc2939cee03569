"""Check an image before it is built: is all that its packages, wheels and ELF files need in it?"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator import paths
from orchestrator.image import (
    dependencies,
    findings,
    index,
    libraries,
    lockfile,
    metadata,
    spec,
    store,
    wheels,
)
from orchestrator.image.dependencies import Distribution, Package
from orchestrator.image.findings import Finding
from orchestrator.image.lockfile import File, Lock
from orchestrator.image.spec import Python, Spec


@dataclass(frozen=True)
class Report:
    """What was found, and how much was looked at.

    ``problems`` are met by no exception, ``allowed`` by one; ``stale`` are the keys of exceptions
    that allow nothing; ``unread`` are files that are not in the Nix store.
    """

    name: str
    problems: tuple[Finding, ...]
    allowed: tuple[Finding, ...]
    stale: tuple[str, ...]
    unread: tuple[str, ...]
    packages: int
    wheels: int
    objects: int
    seconds: dict[str, float]

    @property
    def ok(self) -> bool:
        """Whether all was looked at, and nothing is wrong."""
        return not (self.problems or self.stale or self.unread)

    def lines(self) -> list[str]:
        """The report for people: what is wrong, then what is allowed, then one line of summary."""
        told = [f"{self.name}: {line}" for line in _grouped(self.problems)]
        told += [
            f"{self.name}: {key} allows nothing: take it out of image.yml" for key in self.stale
        ]
        told += [
            f"{self.name}: not in the Nix store, so not looked at: {file}" for file in self.unread
        ]
        reasons = {each.key: each.reason for each in self.allowed}
        for key, reason in sorted(reasons.items()):
            count = sum(each.key == key for each in self.allowed)
            told.append(f"allowed by {key} ({count}): {reason}")
        looked = f"{self.packages} packages, {self.wheels} wheels, {self.objects} ELF files"
        wrong = len(self.problems) + len(self.stale)
        return [*told, f"{self.name}: {looked}: {wrong or 'no'} problem{'s' * (wrong != 1)}"]

    def document(self) -> dict[str, Any]:
        """The report as JSON types."""
        return {"ok": self.ok} | asdict(self)


def check(name: str) -> Report:
    """Check the lock of the image ``name`` as far as its files are in the Nix store.

    Raises UserError where the lock is missing or stale, names wheels for another Python or
    platform, or where a file cannot be read.
    """
    started = time.monotonic()
    store.require_nix()
    image, lock = spec.load(name), lockfile.current(name)
    here = _here(lock)
    found = _debian(image, lock, here)
    if image.python:
        found += _python(name, image, image.python, lock, here)
    read = time.monotonic()
    parts = libraries.read(here, lock, _trees(name))
    found += libraries.check(parts, image.check)
    unread = tuple(file.file for file in lock.files if file not in here)
    return Report(
        name=name,
        problems=tuple(each for each in found if not each.key),
        allowed=tuple(each for each in found if each.key),
        stale=() if unread else tuple(findings.stale(_exceptions(image), found)),
        unread=unread,
        packages=len(lock.debs),
        wheels=len(lock.wheels),
        objects=sum(len(part.content.objects) for part in parts),
        seconds={
            "dependencies": round(read - started, 1),
            "libraries": round(time.monotonic() - read, 1),
        },
    )


def _grouped(problems: Iterable[Finding]) -> list[str]:
    """One line for all that one file lacks in the same way."""
    wants: dict[tuple[str, str], list[str]] = {}
    for each in problems:
        wants.setdefault((each.who, each.problem), []).append(each.wants)
    return [f"{who} wants {', '.join(all_)}: {how}" for (who, how), all_ in wants.items()]


def _here(lock: Lock) -> dict[File, Path]:
    """The files of the lock that the store has, and where."""
    wanted = {file: store.path_of_file(file) for file in lock.files}
    absent = store.missing(wanted.values())
    return {file: path for file, path in wanted.items() if path not in absent}


def _trees(name: str) -> list[Path]:
    """The project's own files, as the config layer has them."""
    images = paths.checkout() / "images"
    return [tree for tree in (images / "config", images / name / "config") if tree.is_dir()]


def _exceptions(image: Spec) -> list[str]:
    """The keys of all exceptions."""
    sections = {
        "debian.exclude": image.debian.exclude,
        "python.exclude": image.python.exclude if image.python else {},
        **{f"check.{key}": reasons for key, reasons in image.check.model_dump().items()},
    }
    return [f"{section}.{name}" for section, reasons in sections.items() for name in reasons]


def _debian(image: Spec, lock: Lock, here: Mapping[File, Path]) -> list[Finding]:
    """Packages that are not what the lock says, and dependencies that are not met."""
    packages, found = [], []
    for deb in lock.debs:
        package = locked = Package(deb.name, deb.version, deb.architecture)
        if deb in here:
            package = metadata.of_deb(here[deb])
            found += metadata.differences(locked, package)
        packages.append(package)
    allowed = findings.exceptions(
        {"debian.exclude": image.debian.exclude, "check.unmet": image.check.unmet}
    )
    return found + dependencies.debian(packages, image.debian.packages, allowed)


def _python(
    name: str, image: Spec, python: Python, lock: Lock, here: Mapping[File, Path]
) -> list[Finding]:
    """Wheels that are not what the lock says, and requirements that are not met."""
    distributions, found = [], []
    for wheel in lock.wheels:
        distribution = locked = Distribution(wheel.name, wheel.version)
        if wheel in here:
            distribution = metadata.of_wheel(here[wheel])
            found += metadata.differences(locked, distribution)
        distributions.append(distribution)
    environment = index.environment(wheels.interpreter(name, python, lock.debs))
    renamed = {old: (new.name, new.version) for old, new in python.rename.items()}
    allowed = findings.exceptions(
        {"python.exclude": python.exclude, "check.unmet": image.check.unmet}
    )
    return found + dependencies.python(
        distributions, python.requirements, environment, renamed, allowed
    )
