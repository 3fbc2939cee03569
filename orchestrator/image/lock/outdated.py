"""What the suites have newer than a lock. Reads the lists that locking reads; changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from debian.debian_support import Version

from orchestrator.core import paths
from orchestrator.core.errors import UserError
from orchestrator.image import lockfile, spec
from orchestrator.image.lock import apt, publishers
from orchestrator.image.lock.mirrors import Mirrors
from orchestrator.image.lock.publishers import Moved

#: Suites by package and version.
Listed = Mapping[tuple[str, str], set[str]]


@dataclass(frozen=True)
class Newer:
    """A locked package that has a newer version: ``suite`` has ``newest``.

    ``security``: the update closes what a security update closed. ``listed``: a suite still has the
    locked version; a mirror removes the file of one that none has.
    """

    package: str
    locked: str
    newest: str
    suite: str
    security: bool
    listed: bool


@dataclass(frozen=True)
class Outdated:
    """What is newer for one image, of ``looked_at`` packages in ``suites``; ``security`` is the one
    of security updates."""

    name: str
    suites: tuple[str, ...]
    security: str | None
    looked_at: int
    packages: tuple[Newer, ...]
    #: Newer wheels that somebody else published.
    publishers: tuple[Moved, ...] = ()

    def lines(self) -> list[str]:
        """For people: a line a package, and the command that takes the security updates."""
        moved = [f"{self.name}: another publisher than in the lock: {e}" for e in self.publishers]
        return [*self._packages(), *moved]

    def _packages(self) -> list[str]:
        where = ", ".join(self.suites)
        if not self.packages:
            return [f"{self.name}: nothing is newer than its {self.looked_at} packages in {where}"]
        security = sum(each.security for each in self.packages)
        told = [
            f"{self.name}: {len(self.packages)} of {self.looked_at} packages have a newer version "
            f"in {where}; security updates: {security or 'none'}"
        ]
        told += [f"  {_line(each)}" for each in self.packages]
        if any(not each.listed for each in self.packages):
            told.append(
                "Mirrors remove the files of versions that no suite has. Keep yours: orchestrate "
                f"image export {self.name} DIRECTORY"
            )
        one = f"orchestrate image lock {self.name} --update"
        if security:
            told.append(f"Take the security updates and nothing else: {one} {self.security}")
        told.append(f"Take one of these: {one} PACKAGE")
        return told


def _line(newer: Newer) -> str:
    marks = ["security"] if newer.security else []
    marks += [] if newer.listed else ["no suite has the locked version"]
    mark = f" [{', '.join(marks)}]" if marks else ""
    return f"{newer.package} {newer.locked} → {newer.newest} ({newer.suite}){mark}"


def outdated(name: str, mirrors: Mirrors) -> Outdated:
    """Compare the lock of the image ``name`` with what a new lock could have.

    Raises UserError where the image is not locked or a mirror cannot be used.
    """
    image, lock = spec.load(name), lockfile.read(name)
    if lock is None:
        raise UserError(f"the image {name!r} is not locked", f"Run: orchestrate image lock {name}")
    locked = {deb.name: deb.version for deb in lock.debs if not deb.elsewhere}
    root = apt.Root(paths.cache() / "apt" / name)
    root.prepare(image.debian, mirrors)
    root.update()
    debian = image.debian
    found = newer(locked, root.candidates(locked), root.listed(locked), debian.security)
    moved = publishers.moved(lock)
    return Outdated(name, debian.suites, debian.security, len(locked), tuple(found), moved)


def newer(
    locked: Mapping[str, str],
    candidates: Mapping[str, str],
    listed: Listed,
    security: str | None,
) -> list[Newer]:
    """Each of ``locked`` (name: version) of which apt would take a newer version now. Pure.

    ``candidates`` are the versions that apt would take; ``security`` is the suite of security
    updates. An update is one of these, too, where another suite has taken the security fix over.
    """
    found = []
    for name, version in sorted(locked.items()):
        newest = candidates.get(name, version)
        if Version(newest) <= Version(version):
            continue
        suites = listed.get((name, newest), set())
        fixed = any(
            security in of and Version(version) < Version(fix)
            for (package, fix), of in listed.items()
            if package == name
        )
        found.append(
            Newer(
                package=name,
                locked=version,
                newest=newest,
                # Once another suite has it, it is there for longer.
                suite=min(suites, key=lambda suite: (suite == security, suite), default="?"),
                security=fixed,
                listed=(name, version) in listed,
            )
        )
    return found
