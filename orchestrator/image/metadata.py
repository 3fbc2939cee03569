"""What packages and wheels say of themselves: read from their files, or from image.yml."""

from __future__ import annotations

import re
from pathlib import Path

from packaging.metadata import parse_email
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from orchestrator.errors import UserError
from orchestrator.image import archives
from orchestrator.image.dependencies import Distribution, Package
from orchestrator.image.findings import Finding

#: The path of a wheel's metadata.
METADATA = r"[^/]+\.dist-info/METADATA"
#: The fields of a control file that say what has to be there.
DEPENDS = ("Pre-Depends", "Depends")


def of_deb(path: Path) -> Package:
    """The control file of a Debian package. Raises UserError where it cannot be read."""
    with archives.deb(path) as deb:
        control = deb.debcontrol()
        return Package(
            control["Package"],
            control["Version"],
            control["Architecture"],
            tuple(control[field] for field in DEPENDS if field in control),
            control.get("Provides", ""),
        )


def of_wheel(path: Path) -> Distribution:
    """The METADATA of a wheel. Raises UserError where it cannot be read, or has none."""
    with archives.wheel(path) as wheel:
        names = [name for name in wheel.namelist() if re.fullmatch(METADATA, name)]
        raw, _ = parse_email(wheel.read(names[0])) if names else ({}, {})
    try:
        return Distribution(
            raw["name"],
            str(Version(raw["version"])),
            tuple(raw.get("requires_dist", ())),
            raw.get("requires_python", ""),
        )
    except (KeyError, InvalidVersion) as error:
        raise UserError(f"{path.name}: this wheel's METADATA lacks its {error}") from None


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
