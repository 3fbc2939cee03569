"""lock.json: every file that an image is made of, by hash. Read, written, compared; no network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from orchestrator.core.document import read_json
from orchestrator.core.errors import UserError
from orchestrator.core.files import write as write_file
from orchestrator.image import spec, tags
from orchestrator.image.spec import Rename, Spec


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Locked(_Part):
    """What all locked files have. ``size`` is in bytes, None where nobody knows it; ``elsewhere``
    means that no mirror and no index has the file: it comes from ``url`` only."""

    name: str
    version: str
    size: int | None
    sha256: str
    store: str
    url: str | None = None
    elsewhere: bool = False


class Deb(_Locked):
    """A Debian package; ``path`` is its place on a mirror (elsewhere: its file's name), of
    ``security`` in the archive of security updates."""

    architecture: str
    path: str
    security: bool = False

    @property
    def file(self) -> str:
        """The name of the file where it is published."""
        return self.path.rpartition("/")[2]


class Published(_Locked):
    """A file of the package index. ``publisher``: who published it, where the index says so."""

    file: str
    publisher: str | None = None


class Wheel(Published):
    """A wheel; ``url`` only where it comes from elsewhere."""


class LockedSource(Published):
    """A source archive; the build makes a wheel of it."""

    environment: dict[str, str] = {}


File = Deb | Wheel | LockedSource


class LockedSeed(_Part):
    """``file`` of the package ``deb``; ``sha256`` is the store's hash of the seed's directory."""

    deb: str
    file: str
    sha256: str


class Overridden(_Part):
    """A requirement of a distribution that image.yml replaces: what it says, and what is taken."""

    distribution: str
    requirement: str
    from_: str = Field(alias="from")
    to: str
    because: str

    @property
    def key(self) -> str:
        return f"python.override.{self.distribution}.{self.requirement}"

    def document(self) -> dict[str, str]:
        """The same as JSON types."""
        return self.model_dump(by_alias=True)

    def __str__(self) -> str:
        return (
            f"{self.distribution} requires {self.requirement}{self.from_}, overridden by "
            f"{self.to}: {self.because}"
        )


class PythonPart(_Part):
    """What the build has to know about the image's Python."""

    version: str
    rename: dict[str, Rename]
    overrides: tuple[Overridden, ...] = ()


class Lock(_Part):
    """The whole lock. ``inputs`` is the digest of the image.yml that it was made from,
    ``debian_inputs`` that of its Debian half: an update leaves an unchanged half alone. At the time
    ``listed``, Debian's archives had all of ``debs``: Debian's history is asked by time."""

    schema_: Literal[1] = 1
    inputs: str
    debian_inputs: str | None = None
    listed: AwareDatetime | None = None
    epoch: int
    python: PythonPart | None
    system: dict[str, Any]
    seed: LockedSeed | None = None
    debs: tuple[Deb, ...]
    wheels: tuple[Wheel, ...]
    sources: tuple[LockedSource, ...] = ()

    @property
    def files(self) -> tuple[File, ...]:
        return (*self.debs, *self.wheels, *self.sources)

    def available(self) -> Lock:
        """The lock without the files that no mirror and no index has."""
        kept = {
            "debs": tuple(deb for deb in self.debs if not deb.elsewhere),
            "wheels": tuple(wheel for wheel in self.wheels if not wheel.elsewhere),
        }
        return self.model_copy(update=kept)


def store_name(file: str) -> str:
    """The store's name for a file: Nix allows fewer characters than Debian and wheels use."""
    return re.sub(r"[^A-Za-z0-9+\-._?=]", "_", file)


def known_size(files: Iterable[File]) -> int:
    """The bytes of ``files`` together, as far as sizes are known."""
    return sum(file.size or 0 for file in files)


def path_of(name: str) -> Path:
    return spec.directory(name) / "lock.json"


def read(name: str) -> Lock | None:
    """The lock of the image ``name``; None where it has none. Raises UserError where unreadable."""
    path = path_of(name)
    if not path.exists():
        return None
    hint = f"Run: orchestrate image lock {name}"
    raw = read_json(path, hint)
    try:
        raw["schema_"] = raw.pop("schema")
        return Lock.model_validate(raw)
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        raise UserError(f"{path}: not a lock of this version: {error}", hint) from None


def is_stale(lock: Lock, image: Spec) -> bool:
    """Has image.yml changed in what the lock depends on, since it was locked?"""
    return lock.inputs != image.digest()


def current(name: str) -> Lock:
    """The lock of ``name``. Raises UserError where there is none, or where it is stale."""
    image = spec.load(name)
    lock = read(name)
    if lock is None:
        raise UserError(f"the image {name!r} is not locked", f"Run: orchestrate image lock {name}")
    if is_stale(lock, image):
        raise UserError(
            f"{spec.directory(name)}/image.yml changed since its lock was made",
            f"Run: orchestrate image lock {name}",
        )
    require_fitting_wheels(name, lock, image)
    return lock


def with_shared(name: str) -> dict[str, Lock]:
    """The lock of the image ``name``, last, and of all that it is built with. Raises as
    ``current``."""
    lock = current(name)
    builders = (spec.BUILDERS,) if lock.sources else ()
    shared = {each: current(each) for each in (*spec.SHARED, *builders) if each != name}
    return {**shared, name: lock}


def require_fitting_wheels(name: str, lock: Lock, image: Spec) -> None:
    """Raises UserError where a wheel of ``lock`` is for another Python or platform."""
    if image.python is None:
        return
    python, glibc = image.python.version, image.python.glibc
    found = [tags.misfit(wheel.file, python, glibc) for wheel in lock.wheels]
    if problems := [problem for problem in found if problem]:
        raise UserError(
            f"{path_of(name)}: wheels that this image cannot use:\n"
            + "\n".join(f"  {problem}" for problem in problems),
            f"Run: orchestrate image lock {name}",
        )


def text(lock: Lock) -> str:
    """The lock as JSON, the same bytes for the same lock: one line a file, so that diffs read."""
    raw = lock.model_dump(mode="json", exclude_none=True, by_alias=True)
    if lock.python and not lock.python.overrides:  # a key that only few images have
        del raw["python"]["overrides"]
    head = {"schema": raw["schema_"], "inputs": raw["inputs"]}
    head |= {key: raw[key] for key in ("debian_inputs", "listed") if key in raw}
    head |= {"epoch": raw["epoch"], "python": raw.get("python"), "system": raw["system"]}
    head |= {key: raw[key] for key in ("seed",) if key in raw}
    parts = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    lists: dict[str, Sequence[File]] = {"debs": lock.debs, "wheels": lock.wheels}
    if lock.sources:  # a key that only few images have
        lists["sources"] = lock.sources
    for key, files in lists.items():
        rows = ",\n".join(f"    {json.dumps(_row(file))}" for file in files)
        parts.append(f'  "{key}": [\n{rows}\n  ]' if rows else f'  "{key}": []')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _row(file: File) -> dict[str, Any]:
    """A file's entry: what identifies it first, an unknown size as null, no other empty values."""
    raw = file.model_dump(mode="json")
    first = ("name", "version", "architecture", "path", "file", "size", "sha256", "store")
    row = {key: raw[key] for key in first if key in raw}
    return row | {key: value for key, value in raw.items() if key not in row and value}


def write(name: str, lock: Lock) -> None:
    """Replace the lock: a reader sees the old one or the new one."""
    write_file(path_of(name), text(lock))


def changes(old: Lock | None, new: Lock) -> list[str]:
    """What differs, one line each: '+ name version', '- name version', '~ name old → new'."""
    before = {_key(file): file for file in old.files} if old else {}
    after = {_key(file): file for file in new.files}
    lines = []
    for key in sorted(before.keys() | after.keys()):
        was, now = before.get(key), after.get(key)
        label = f"{key[0]} {key[1]}"
        if was is None and now is not None:
            lines.append(f"+ {label} {now.version}")
        elif now is None and was is not None:
            lines.append(f"- {label} {was.version}")
        elif was is not None and now is not None and was.version != now.version:
            lines.append(f"~ {label} {was.version} → {now.version}")
        elif was != now and not (was and now and was.sha256 == now.sha256 and _moved(was, now)):
            lines.append(f"~ {label}: same version, another file")
        if was and now and (moved := _moved(was, now)):
            lines.append(f"~ {label}: publisher: {moved}")
    if old and not lines and old != new:
        lines.append("~ settings of image.yml")
    return lines


def _moved(was: File, now: File) -> str:
    """The old and the new publisher; empty where there is no other one."""
    before, after = (file.publisher if isinstance(file, Published) else None for file in (was, now))
    return f"{before or 'unknown'} → {after or 'unknown'}" if before != after else ""


def _key(file: File) -> tuple[str, str]:
    return (type(file).__name__.lower(), file.name)
