"""Lock an image: resolve what image.yml asks for into files with hashes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from orchestrator.core import download
from orchestrator.core.errors import BadInput, UserError
from orchestrator.image import downloads, lockfile, seed, spec
from orchestrator.image.lock import apt, publishers, wheels
from orchestrator.image.lock.mirrors import Mirrors
from orchestrator.image.lock.wheels import Resolved
from orchestrator.image.lockfile import Deb, Lock, Overridden, PythonPart
from orchestrator.image.spec import Python, Spec


@dataclass(frozen=True)
class Locked:
    """What locking came to: the lock, one line for each change against the old one, and notes on
    what did not change though it was asked for."""

    lock: Lock
    changes: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def overrides(self) -> tuple[Overridden, ...]:
        """The requirements of distributions that image.yml replaces."""
        return self.lock.python.overrides if self.lock.python else ()


def lock(
    name: str, mirrors: Mirrors, update: Collection[str] = (), accepted: Collection[str] = ()
) -> Locked:
    """Resolve the image ``name`` and write its lock.json; an unchanged one is left alone.

    With ``update`` (packages, distributions, suites) only these, and what has to move with them,
    get other versions than the old lock has. ``accepted``: distributions that may have another
    publisher than there. Raises BadInput where image.yml or the update cannot be resolved,
    UserError where a mirror or the package index cannot be used, or where a distribution has
    another publisher. The old lock is then untouched.
    """
    image = spec.load(name)
    old = lockfile.read(name)
    if update:
        _require_known(name, image, old, update)
    debs = _debs(name, image, old, mirrors, update)
    found = _wheels(name, image, old, debs, update)
    found = publishers.record(name, found, old, bool(update), accepted)
    new = Lock(
        inputs=image.digest(),
        debian_inputs=image.debian_digest(),
        listed=_listed(old, debs),
        epoch=image.epoch,
        python=PythonPart(
            version=image.python.version,
            rename=image.python.rename,
            overrides=found.overrides,
        )
        if image.python
        else None,
        system=image.system,
        seed=_seed(name, image, debs, mirrors),
        debs=tuple(debs),
        wheels=found.wheels,
        sources=found.sources,
    )
    lockfile.require_fitting_wheels(name, new, image)
    if old and old == new.model_copy(update={"debian_inputs": None}):
        new = old  # a lock from before there was this key
    if new != old:
        lockfile.write(name, new)
    changes = lockfile.changes(old, new)
    return Locked(new, tuple(changes), tuple(_notes(name, image, old, new, update)))


def _listed(old: Lock | None, debs: list[Deb]) -> datetime | None:
    """When the archives had all of ``debs``: now, unless they are those of the old lock."""
    if old and list(old.debs) == debs:
        return old.listed
    return datetime.now(UTC).replace(microsecond=0)


def _require_known(name: str, image: Spec, old: Lock | None, update: Collection[str]) -> None:
    """Raises UserError where there is nothing to update, BadInput for a name that is not there."""
    if old is None:
        raise UserError(
            f"the image {name!r} has no lock to update",
            f"Run: orchestrate image lock {name}",
        )
    known = {*image.debian.suites, *image.debian.roots, *(deb.name for deb in old.debs)}
    known |= _distributions(image.python, old)
    for each in update:
        if each not in known and canonicalize_name(each) not in known:
            close = get_close_matches(each, known, n=1)
            raise BadInput(
                f"--update {each}: neither a suite, a package nor a distribution of the image "
                f"{name!r}",
                f"Did you mean {close[0]!r}?" if close else "",
            )


def _distributions(python: Python | None, old: Lock) -> set[str]:
    """Canonical names of all that the old lock or image.yml's Python half names."""
    names = {file.name for file in (*old.wheels, *old.sources)}
    if python:
        names |= {*python.elsewhere, *python.sources}
        names |= {Requirement(each).name for each in python.requirements}
    return {str(canonicalize_name(each)) for each in names}


def _debs(
    name: str, image: Spec, old: Lock | None, mirrors: Mirrors, update: Collection[str]
) -> list[Deb]:
    """The Debian half; the old one where neither it nor what it is made from is to change."""
    if not update or old is None:
        return apt.resolve(name, image.debian, mirrors)
    same = old.debian_inputs == image.debian_digest() or not lockfile.is_stale(old, image)
    known = {*image.debian.suites, *image.debian.roots, *(deb.name for deb in old.debs)}
    named = known & set(update)
    if same and not named:
        return list(old.debs)
    return apt.resolve(name, image.debian, mirrors, old.debs, update)


def _wheels(
    name: str, image: Spec, old: Lock | None, debs: list[Deb], update: Collection[str]
) -> Resolved:
    """The Python half; the old one where neither it nor what it is made from is to change."""
    if image.python is None:
        return Resolved((), ())
    if not update or old is None:
        return wheels.resolve(name, image.python, debs)
    named = {str(canonicalize_name(each)) for each in update} & _distributions(image.python, old)
    if not (named or lockfile.is_stale(old, image)):
        interpreters = [wheels.interpreter(name, image.python, each) for each in (old.debs, debs)]
        if interpreters[0] == interpreters[1]:
            overridden = old.python.overrides if old.python else ()
            return Resolved(old.wheels, old.sources, overridden)
    locked = {file.name: file.version for file in (*old.wheels, *old.sources)}
    return wheels.resolve(name, image.python, debs, locked, named)


def _notes(
    name: str, image: Spec, old: Lock | None, new: Lock, update: Collection[str]
) -> list[str]:
    """Why what was to be updated has its old version: image.yml may name that one."""
    before = {file.name: file.version for file in old.files} if old else {}
    after = {file.name: file.version for file in new.files}
    notes = []
    for each in update:
        key = each if each in after else str(canonicalize_name(each))
        version = wheels.pinned(image.python, key) if image.python else None
        if version and key in after and before.get(key) == after[key]:
            notes.append(f"{each} stays at {after[key]}: images/{name}/image.yml pins this version")
    return notes


def _seed(name: str, image: Spec, debs: list[Deb], mirrors: Mirrors) -> lockfile.LockedSeed | None:
    """The seed with its hash, which only the package's content gives."""
    if image.seed is None:
        return None
    deb = next((deb for deb in debs if deb.name == image.seed.package), None)
    if deb is None:
        raise BadInput(
            f"images/{name}/image.yml: seed.package: {image.seed.package!r} is not installed"
        )
    content = seed.extract(_bring(deb, mirrors), image.seed.file)
    return lockfile.LockedSeed(deb=deb.name, file=image.seed.file, sha256=seed.nar_hash(content))


def _bring(deb: Deb, mirrors: Mirrors) -> Path:
    with downloads.alone() as place, download.client() as web:
        target = place / deb.store
        if not target.exists() or download.digest(target) != deb.sha256:
            download.Downloader(web).fetch(mirrors.url(deb), target, deb.size, deb.sha256)
    return target
