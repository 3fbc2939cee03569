"""Metadata of packages and wheels: from their files, else from image.yml."""

from __future__ import annotations

import re
import tarfile
import zipfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from packaging.metadata import parse_email
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from orchestrator.core.errors import UserError
from orchestrator.image import store
from orchestrator.image.check import archives, dependencies
from orchestrator.image.check.dependencies import Distribution, Package
from orchestrator.image.check.findings import Finding
from orchestrator.image.lock import sdist
from orchestrator.image.lockfile import Lock, LockedSource
from orchestrator.image.spec import Debian, Python

#: The path of a wheel's metadata.
METADATA = r"[^/]+\.dist-info/METADATA"
#: The fields of a control file with dependencies.
DEPENDS = ("Pre-Depends", "Depends")


def of_deb(path: Path) -> Package:
    """The control file of a Debian package. Raises UserError if it cannot be read."""
    with archives.deb(path) as deb:
        control = deb.debcontrol()
        return Package(
            control["Package"],
            control["Version"],
            control["Architecture"],
            ", ".join(control[field] for field in DEPENDS if field in control),
            control.get("Provides", ""),
            control.get("Breaks", ""),
        )


def of_wheel(path: Path) -> Distribution:
    """The METADATA of a wheel. Raises UserError if it cannot be read or has none."""
    with archives.wheel(path) as wheel:
        names = [name for name in wheel.namelist() if re.fullmatch(METADATA, name)]
        raw, _ = parse_email(wheel.read(names[0])) if names else ({}, {})
    try:
        return Distribution(
            canonicalize_name(raw["name"]),
            str(Version(raw["version"])),
            tuple(raw.get("requires_dist", ())),
            raw.get("requires_python", ""),
        )
    except (KeyError, InvalidVersion) as error:
        raise UserError(f"{path.name}: this wheel's METADATA lacks its {error}") from None


def of_source(source: LockedSource, requires: str | None, path: Path) -> Distribution:
    """The metadata of the wheel of a source archive. Raises UserError if it cannot be read."""
    try:
        lines = sdist.requirements(path, requires)
    except sdist.DecidedByBuild as error:
        raise UserError(
            f"{source.file}: {error}",
            f"In image.yml: python.sources.{source.name}.requires; then lock again.",
        ) from None
    except (KeyError, InvalidRequirement, tarfile.TarError, zipfile.BadZipFile) as error:
        raise UserError(f"{source.file}: its requirements cannot be read: {error}") from None
    return Distribution(source.name, source.version, tuple(lines))


def packages(
    lock: Lock, debian: Debian, here: Collection[Path]
) -> tuple[list[Package], list[Finding]]:
    """Metadata of the lock's packages, and differences between files and lock or image.yml.

    ``here``: store paths of the files that exist. For other files: what image.yml declares, else
    the name only. Raises UserError if a file cannot be read.
    """
    described, found = [], []
    for deb in lock.debs:
        package = locked = Package(deb.name, deb.version, deb.architecture)
        if declared := debian.elsewhere.get(deb.name):
            package = Package(
                deb.name,
                declared.version,
                declared.architecture,
                declared.depends,
                declared.provides,
                declared.breaks,
            )
        if (path := store.path_of_file(deb)) in here:
            declaration, package = package, of_deb(path)
            found += _mistaken(locked, package)
            if declared:
                found += undeclared(declaration, package)
        described.append(package)
    return described, found


def distributions(
    lock: Lock,
    python: Python,
    environment: Mapping[str, str],
    here: Collection[Path],
    built: Mapping[str, Path],
) -> tuple[list[Distribution], list[Finding]]:
    """The same for the lock's wheels.

    ``built``: wheels that were built from source archives, by name. For those not built, the
    source archive's metadata are used. ``environment``: the target's marker values.
    """
    elsewhere = {canonicalize_name(name): wheel for name, wheel in python.elsewhere.items()}
    sources = {canonicalize_name(name): source for name, source in python.sources.items()}
    described, found = [], []
    for wheel in lock.wheels:
        distribution = locked = Distribution(wheel.name, wheel.version)
        if declared := elsewhere.get(canonicalize_name(wheel.name)):
            distribution = Distribution(wheel.name, wheel.version, declared.requires)
        if (path := store.path_of_file(wheel)) in here:
            declaration, distribution = distribution, of_wheel(path)
            found += _mistaken(locked, distribution)
            if declared:
                what = f"what python.elsewhere.{wheel.name}.requires says"
                found += unrequired(what, declaration, distribution, environment)
        described.append(distribution)
    for source in lock.sources:
        distribution = Distribution(source.name, source.version)
        if (path := store.path_of_file(source)) in here:
            wanted = sources.get(canonicalize_name(source.name))
            distribution = of_source(source, wanted.requires if wanted else None, path)
        if source.name in built:
            archive, distribution = distribution, of_wheel(built[source.name])
            # A build may add a local version: 0.30.0+xpu.
            plain = replace(distribution, version=Version(distribution.version).public)
            found += _mistaken(archive, plain)
            if path in here:
                what = f"what {source.file} requires"
                found += unrequired(what, archive, distribution, environment)
        described.append(distribution)
    return described, found


def _mistaken(locked: Package | Distribution, file: Package | Distribution) -> list[Finding]:
    """A finding if a file is another package or version than in the lock."""
    if _words(locked) == _words(file):
        return []
    return [Finding(locked.name, f"to be {_words(locked)}", f"its file is {_words(file)}")]


def _words(each: Package | Distribution) -> str:
    if isinstance(each, Package):
        return f"{each.name} {each.version} {each.architecture}"
    return f"{canonicalize_name(each.name)} {Version(each.version)}"


def undeclared(declared: Package, file: Package) -> list[Finding]:
    """The differences between a package and its declaration in image.yml. Pure."""
    fields = {
        "depends": (declared.depends, file.depends),
        "provides": (declared.provides, file.provides),
        "breaks": (declared.breaks, file.breaks),
    }
    return [
        finding
        for field, (said, real) in fields.items()
        for finding in _compared(
            declared.name,
            f"what debian.elsewhere.{declared.name}.{field} says",
            dependencies.normalized(said),
            dependencies.normalized(real),
        )
    ]


def unrequired(
    what: str, declared: Distribution, file: Distribution, environment: Mapping[str, str]
) -> list[Finding]:
    """The differences between a wheel's requirements and those that ``what`` declares. Pure.

    Only requirements that apply on the target's Python are compared.
    """
    said, real = (
        {
            _without_marker(text)
            for text in each.requires
            if dependencies.applies(text, {**environment, "extra": ""})
        }
        for each in (declared, file)
    )
    return _compared(declared.name, what, said, real)


def _without_marker(text: str) -> str:
    """A requirement in canonical spelling, without its marker."""
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        return text
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{canonicalize_name(requirement.name)}{extras}{requirement.specifier}"


def _compared(who: str, what: str, said: Iterable[str], real: Iterable[str]) -> list[Finding]:
    more, less = sorted(set(real) - set(said)), sorted(set(said) - set(real))
    problems = [f"its file also has {', '.join(more)}"] if more else []
    problems += [f"its file has no {', '.join(less)}"] if less else []
    return [Finding(who, what, "; ".join(problems))] if problems else []
