"""image.yml: the description of an image. Read once, checked, frozen."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import unquote, urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    model_validator,
)

from orchestrator.core import document, paths
from orchestrator.core.errors import BadInput, UserError
from orchestrator.image import tags

#: Locked like images, and used by the build of every image: build tools and loaders.
SHARED = ("tools", "loaders")
#: Locked like an image: the tools that make wheels, for images with source archives.
BUILDERS = "builders"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _requirement(text: str) -> str:
    try:
        Requirement(text)
    except InvalidRequirement as error:
        raise ValueError(f"{text!r}: {error}") from None
    return text


def _python_version(text: str) -> str:
    try:
        Version(text)
    except InvalidVersion as error:
        raise ValueError(str(error)) from None
    return text


def _specifier(text: str) -> str:
    try:
        if not SpecifierSet(text):
            raise ValueError("no version is given; allowed: a specifier such as ==1.2.3")
    except InvalidSpecifier:
        raise ValueError(f"{text!r} is no version specifier such as ==1.2.3") from None
    return text


def _reason(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty; say why")
    return text


def _trusted_url(text: str) -> str:
    parts = urlsplit(text)
    if not (parts.scheme in ("http", "https") and parts.netloc and file_of(text)):
        raise ValueError(f"{text!r} is no address such as https://example.org/FILE.whl")
    if parts.fragment and not re.fullmatch(r"sha256=[0-9a-f]{64}", parts.fragment):
        raise ValueError(f"{text!r}: after '#' only sha256= and 64 hexadecimal digits are allowed")
    if parts.scheme == "http" and not parts.fragment:
        raise ValueError(
            f"{text!r}: anybody on the way can change what plain http brings; use https, or append "
            "#sha256=HASH"
        )
    return text


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Address = Annotated[str, Field(pattern=r"^https?://[^\s/]+/\S+$")]
#: As dpkg and apt know it: vendors use "_" too; capitals count as small letters.
DebName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+._-]+$")]
DebVersion = Annotated[str, Field(pattern=r"^[A-Za-z0-9.+~:-]+$")]
#: A field of a Debian control file, on one line.
Relation = Annotated[str, Field(pattern=r"^[^\n]*$")]
Dependency = Annotated[str, AfterValidator(_requirement)]
PythonVersion = Annotated[str, AfterValidator(_python_version)]
Specifier = Annotated[str, AfterValidator(_specifier)]
Reason = Annotated[str, AfterValidator(_reason)]
#: Of a file whose hash is not known before it is locked: https, or http with a hash.
TrustedUrl = Annotated[str, AfterValidator(_trusted_url)]


def file_of(url: str) -> str:
    """The name of the file at an address."""
    return unquote(urlsplit(url).path).rpartition("/")[2]


class Elsewhere(_Part):
    """A file that neither a suite nor an index has; image.yml declares its metadata."""

    url: Address
    sha256: Sha256
    size: int | None = Field(default=None, gt=0)

    @property
    def file(self) -> str:
        """The file's published name."""
        return file_of(self.url)


class ElsewhereDeb(Elsewhere):
    """A Debian package from elsewhere, with the fields of its control file."""

    version: DebVersion
    depends: Relation = ""
    provides: Relation = ""
    breaks: Relation = ""

    @property
    def architecture(self) -> str:
        """The architecture in its file name, NAME_VERSION_ARCHITECTURE.deb."""
        return self.file.removesuffix(".deb").rpartition("_")[2]

    @model_validator(mode="after")
    def _named_as_debs_are(self) -> Self:
        if not re.fullmatch(r".+_.+_(amd64|all)\.deb", self.file):
            raise ValueError(f"url: {self.file!r} is not named NAME_VERSION_amd64.deb (or _all)")
        return self


class ElsewhereWheel(Elsewhere):
    """A wheel from elsewhere; ``requires``: its Requires-Dist."""

    version: PythonVersion
    requires: tuple[Dependency, ...] = ()


class Debian(_Part):
    """The Debian half: packages that apt resolves with their dependencies within one suite.

    ``also`` names further suites of the same mirror, and the roots that are taken from them;
    ``security`` the suite of the security archive whose newer packages are taken.
    """

    suite: str
    security: str | None = None
    components: tuple[str, ...]
    essential: bool = True
    packages: tuple[str, ...]
    also: dict[str, tuple[str, ...]] = {}
    exclude: dict[str, str] = {}
    elsewhere: dict[DebName, ElsewhereDeb] = {}

    @property
    def suites(self) -> tuple[str, ...]:
        """All suites that packages are taken from."""
        return (self.suite, *self.also, *([self.security] if self.security else []))

    @property
    def roots(self) -> tuple[str, ...]:
        """All packages that image.yml lists, from every suite."""
        return (*self.packages, *(name for names in self.also.values() for name in names))


class Rename(_Part):
    """Another name and version to install a distribution under."""

    name: str
    version: str


class Source(_Part):
    """A distribution whose wheel is built from the index's source archive.

    ``requires``: the file in the archive with the wheel's requirements; by default they are read
    from its metadata, if no build can change them. ``environment``: variables for the build.
    """

    version: PythonVersion
    requires: str | None = None
    environment: dict[str, str] = {}


class Override(_Part):
    """What replaces the versions that a distribution requires of another one, and why."""

    to: Specifier
    because: Reason


class Python(_Part):
    """The Python half: requirements that pip resolves for the image's Python."""

    version: str = Field(pattern=r"^3\.\d+$")
    glibc: str = Field(pattern=r"^2\.\d+$")
    requirements: tuple[Dependency, ...]
    exclude: dict[str, str] = {}
    urls: dict[str, TrustedUrl] = {}
    elsewhere: dict[str, ElsewhereWheel] = {}
    sources: dict[str, Source] = {}
    rename: dict[str, Rename] = {}
    #: Of a distribution: what it requires, and by what that is replaced.
    override: dict[str, dict[str, Override]] = {}

    @model_validator(mode="after")
    def _declared_files_are_what_they_say(self) -> Self:
        for name, wheel in self.elsewhere.items():
            where = f"elsewhere.{name}.url"
            try:
                of, version, _, _ = parse_wheel_filename(wheel.file)
            except InvalidWheelFilename as error:
                raise ValueError(f"{where}: {error}") from None
            if (of, version) != (canonicalize_name(name), Version(wheel.version)):
                raise ValueError(f"{where}: {wheel.file} is not {name} {wheel.version}")
            if problem := tags.misfit(wheel.file, self.version, self.glibc):
                raise ValueError(f"{where}: {problem}")
        both = self.elsewhere.keys() & self.sources.keys()
        if both:
            raise ValueError(f"in 'elsewhere' and in 'sources': {', '.join(sorted(both))}")
        return self

    @model_validator(mode="after")
    def _overrides_do_not_contradict(self) -> Self:
        _require_one_spelling("override", self.override)
        excluded = {canonicalize_name(name) for name in self.exclude}
        for name, changes in self.override.items():
            _require_one_spelling(f"override.{name}", changes)
            for requirement in changes:
                if canonicalize_name(requirement) in excluded:
                    raise ValueError(
                        f"override.{name}.{requirement}: {requirement} is in 'exclude', so no "
                        "version of it is taken; remove one of the two"
                    )
        return self


def _require_one_spelling(where: str, names: Iterable[str]) -> None:
    """Raises ValueError where two of ``names`` are one name to Python."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(canonicalize_name(name), name)
        if other != name:
            raise ValueError(f"{where}: {other!r} and {name!r} are the same name; keep one")


class Seed(_Part):
    """The program that unpacks all others: a file of a package."""

    package: str
    file: str


class Exceptions(_Part):
    """Findings of 'orchestrate image check' that are intentional: name -> reason.

    ``unmet``: dependencies of packages and wheels. ``needed``: libraries of ELF files that are not
    in the image. For libraries that are in the image but not in the loader's directories:
    ``loaded``, libraries that something loads before they are needed; ``library_path``, directories
    in LD_LIBRARY_PATH.
    """

    unmet: dict[str, str] = {}
    needed: dict[str, str] = {}
    loaded: dict[str, str] = {}
    library_path: dict[str, str] = {}


class Spec(_Part):
    """The content of an image.yml."""

    description: str
    date: AwareDatetime
    debian: Debian
    python: Python | None = None
    system: dict[str, Any] = {}
    capabilities: dict[str, Any] = {}
    check: Exceptions = Exceptions()
    seed: Seed | None = None

    @property
    def epoch(self) -> int:
        """The date in seconds since 1970."""
        return int(self.date.timestamp())

    def digest(self) -> str:
        """The sha256 of everything that the lock depends on, to detect a stale lock.

        Defaults are left out, so that a new key in this class does not make old locks stale.
        """
        parts = self.model_dump(
            mode="json", exclude={"description", "capabilities", "check"}, exclude_defaults=True
        )
        return _digest(parts)

    def debian_digest(self) -> str:
        """The same for the Debian half alone."""
        return _digest(self.debian.model_dump(mode="json", exclude_defaults=True))


def _digest(document: Any) -> str:
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def directory(name: str) -> Path:
    """The directory of the image ``name``. Raises UserError if there is none."""
    found = paths.checkout() / "images" / name
    if not (found / "image.yml").is_file():
        known = ", ".join(names()) or "none"
        raise UserError(
            f"there is no image {name!r}: {found}/image.yml is missing", f"Known: {known}"
        )
    return found


def names() -> list[str]:
    """All images of the checkout, shared parts included."""
    return sorted(path.parent.name for path in (paths.checkout() / "images").glob("*/image.yml"))


def load(name: str) -> Spec:
    """Read image.yml of ``name``. Raises BadInput with every mistake and its key."""
    path = directory(name) / "image.yml"
    found = document.load(Spec, path, "Every key is explained in docs/reference/image.md.")
    parts = {each.name for each in (paths.checkout() / "images/parts").glob("*")}
    if unknown := sorted(set(found.system.get("parts", ())) - parts):
        raise BadInput(
            f"{path}: system.parts: {', '.join(unknown)}: no such directory of images/parts",
            f"Known: {', '.join(sorted(parts))}",
        )
    return found
