"""What packages and wheels say of themselves: read from their files, or from image.yml."""

from __future__ import annotations

import zipfile
from pathlib import Path

from debian.debfile import DebError, DebFile
from packaging.metadata import parse_email
from packaging.utils import canonicalize_name
from packaging.version import Version

from orchestrator.errors import UserError
from orchestrator.image.dependencies import Distribution, Package
from orchestrator.image.findings import Finding

DEPENDS = ("Pre-Depends", "Depends")


def of_deb(path: Path) -> Package:
    """The control file of a Debian package. Raises UserError where there is none."""
    try:
        with DebFile(str(path)) as deb:
            control = deb.debcontrol()
        return Package(
            control["Package"],
            control["Version"],
            control["Architecture"],
            tuple(control[field] for field in DEPENDS if field in control),
            control.get("Provides", ""),
        )
    except (DebError, OSError, EOFError, KeyError) as error:
        raise UserError(f"{path.name}: not a Debian package: {error}") from None


def of_wheel(path: Path) -> Distribution:
    """The METADATA of a wheel. Raises UserError where there is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(
                name
                for name in archive.namelist()
                if name.endswith(".dist-info/METADATA") and name.count("/") == 1
            )
            raw, _ = parse_email(archive.read(name))
        return Distribution(
            raw["name"],
            raw["version"],
            tuple(raw.get("requires_dist", ())),
            raw.get("requires_python", ""),
        )
    except (zipfile.BadZipFile, OSError, EOFError, KeyError) as error:
        raise UserError(f"{path.name}: not a wheel: {error}") from None
    except StopIteration:
        raise UserError(f"{path.name}: not a wheel: it has no METADATA") from None


def differences(locked: Package | Distribution, file: Package | Distribution) -> list[Finding]:
    """What a file says of itself otherwise than the lock does."""
    if _identity(locked) == _identity(file):
        return []
    return [Finding(locked.name, f"to be {_words(locked)}", f"its file is {_words(file)}")]


def _identity(each: Package | Distribution) -> tuple[str, ...]:
    if isinstance(each, Package):
        return (each.name, each.version, each.architecture)
    return (canonicalize_name(each.name), str(Version(each.version)))


def _words(each: Package | Distribution) -> str:
    return " ".join(_identity(each))
