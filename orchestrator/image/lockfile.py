"""lock.json: every file that an image is made of, by hash. Read, written, compared; no network."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from orchestrator.errors import UserError
from orchestrator.image import spec
from orchestrator.image.spec import Rename, Spec


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Deb(_Part):
    """A Debian package; ``path`` is its place on a mirror, ``size`` is in bytes."""

    name: str
    version: str
    architecture: str
    path: str
    size: int
    sha256: str
    store: str
    url: str | None = None

    @property
    def file(self) -> str:
        """The name of the file where it is published."""
        return self.path.rpartition("/")[2]


class Wheel(_Part):
    """A wheel of the package index; ``url`` only where it comes from elsewhere."""

    name: str
    version: str
    file: str
    size: int
    sha256: str
    store: str
    url: str | None = None


File = Deb | Wheel


class Seed(_Part):
    """``file`` of the package ``deb``; ``sha256`` is the store's hash of the seed's directory."""

    deb: str
    file: str
    sha256: str


class PythonPart(_Part):
    """What the build has to know about the image's Python."""

    version: str
    rename: dict[str, Rename]


class Lock(_Part):
    """The whole lock. ``inputs`` is the digest of the image.yml that it was made from."""

    schema_: Literal[1] = 1
    inputs: str
    epoch: int
    python: PythonPart | None
    system: dict[str, Any]
    seed: Seed | None = None
    debs: tuple[Deb, ...]
    wheels: tuple[Wheel, ...]

    @property
    def files(self) -> tuple[File, ...]:
        return (*self.debs, *self.wheels)


def store_name(file: str) -> str:
    """The store's name for a file: Nix allows fewer characters than Debian and wheels use."""
    return re.sub(r"[^A-Za-z0-9+\-._?=]", "_", file)


def path_of(name: str) -> Path:
    return spec.directory(name) / "lock.json"


def read(name: str) -> Lock | None:
    """The lock of the image ``name``; None where it has none. Raises UserError where unreadable."""
    path = path_of(name)
    if not path.exists():
        return None
    try:
        raw = json.loads(path.read_text())
        raw["schema_"] = raw.pop("schema")
        return Lock.model_validate(raw)
    except (ValueError, KeyError, AttributeError, ValidationError) as error:
        raise UserError(
            f"{path}: not a lock of this version: {error}", f"Run: orchestrate image lock {name}"
        ) from None


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
    return lock


def text(lock: Lock) -> str:
    """The lock as JSON, the same bytes for the same lock: one line a file, so that diffs read."""
    raw = lock.model_dump(mode="json", exclude_none=True)
    head = {"schema": raw.pop("schema_"), "inputs": raw.pop("inputs"), "epoch": raw.pop("epoch")}
    head["python"] = raw.pop("python", None)
    head["system"] = raw.pop("system")
    if "seed" in raw:
        head["seed"] = raw.pop("seed")
    parts = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    for key in ("debs", "wheels"):
        rows = ",\n".join(f"    {json.dumps(entry)}" for entry in raw[key])
        parts.append(f'  "{key}": [\n{rows}\n  ]' if rows else f'  "{key}": []')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def write(name: str, lock: Lock) -> None:
    """Write the lock beside and rename: a reader sees the old one or the new one."""
    path = path_of(name)
    beside = path.with_name(f".lock.json.{os.getpid()}")
    beside.write_text(text(lock))
    beside.replace(path)


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
        elif was != now:
            lines.append(f"~ {label}: same version, another file")
    if old and not lines and old != new:
        lines.append("~ settings of image.yml")
    return lines


def _key(file: File) -> tuple[str, str]:
    return ("deb" if isinstance(file, Deb) else "wheel", file.name)
