"""image.yml: what people write about an image. Read once, checked, frozen."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import InvalidRequirement, Requirement
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator

from orchestrator import paths
from orchestrator.errors import BadInput, UserError

#: Locked like images, and part of the build of every one: its own tools, and the loaders.
SHARED = ("tools", "loaders")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Debian(_Part):
    """The Debian half: roots that apt resolves within one suite."""

    suite: str
    components: tuple[str, ...]
    essential: bool = True
    packages: tuple[str, ...]
    exclude: dict[str, str] = {}


class Rename(_Part):
    """The name and version that a distribution is installed under."""

    name: str
    version: str


class Python(_Part):
    """The Python half: roots that pip resolves for the image's Python."""

    version: str = Field(pattern=r"^3\.\d+$")
    glibc: str = Field(pattern=r"^2\.\d+$")
    requirements: tuple[str, ...]
    exclude: dict[str, str] = {}
    urls: dict[str, str] = {}
    rename: dict[str, Rename] = {}

    @field_validator("requirements")
    @classmethod
    def _parse(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            try:
                Requirement(text)
            except InvalidRequirement as error:
                raise ValueError(f"{text!r}: {error}") from None
        return value


class Seed(_Part):
    """The one program that unpacks all others: a file of a package."""

    package: str
    file: str


class Check(_Part):
    """What 'orchestrate image check' finds missing on purpose: NAME: reason.

    ``unmet``: dependencies of packages and wheels. ``needed``: libraries of ELF files that are not
    in the image; ``loaded``: those that are, and that are loaded before they are needed.
    """

    unmet: dict[str, str] = {}
    needed: dict[str, str] = {}
    loaded: dict[str, str] = {}


class Spec(_Part):
    """An image as image.yml describes it."""

    description: str
    date: AwareDatetime
    debian: Debian
    python: Python | None = None
    system: dict[str, Any] = {}
    capabilities: dict[str, Any] = {}
    check: Check = Check()
    seed: Seed | None = None

    @property
    def epoch(self) -> int:
        """The date in seconds since 1970."""
        return int(self.date.timestamp())

    def digest(self) -> str:
        """The sha256 of all that goes into the lock: it tells a stale lock.

        Defaults are left out, so that a key that is new in image.yml makes no old lock stale.
        """
        parts = self.model_dump(
            mode="json", exclude={"description", "capabilities", "check"}, exclude_defaults=True
        )
        canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def directory(name: str) -> Path:
    """The directory of the image ``name``. Raises UserError where there is none."""
    found = paths.checkout() / "images" / name
    if not (found / "image.yml").is_file():
        known = ", ".join(names()) or "none"
        raise UserError(
            f"there is no image {name!r}: {found}/image.yml is missing", f"Known: {known}"
        )
    return found


def names() -> list[str]:
    """All images of the checkout, and what they share."""
    return sorted(path.parent.name for path in (paths.checkout() / "images").glob("*/image.yml"))


def load(name: str) -> Spec:
    """Read image.yml of ``name``. Raises BadInput with every mistake and its key."""
    path = directory(name) / "image.yml"
    try:
        raw = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise BadInput(f"{path}: not YAML: {error}") from None
    try:
        return Spec.model_validate(raw)
    except ValidationError as error:
        lines = [
            f"{path}: {'.'.join(str(part) for part in each['loc'])}: {each['msg']}"
            for each in error.errors()
        ]
        raise BadInput("\n".join(lines), "The keys are listed in images/README.md") from None
