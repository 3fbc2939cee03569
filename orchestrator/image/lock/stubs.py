"""Stub wheels: metadata without content, for pip to resolve with what it cannot have."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from orchestrator.image.spec import Python


def write(directory: Path, file: str, requires: Iterable[str]) -> Path:
    """Write the wheel ``file`` with these Requires-Dist lines and nothing to install."""
    name, version, _, tags = parse_wheel_filename(file)
    info = "-".join(file.split("-", 2)[:2]) + ".dist-info"
    metadata = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    metadata += [f"Requires-Dist: {each}" for each in requires]
    wheel = ["Wheel-Version: 1.0", "Generator: orchestrate", "Root-Is-Purelib: true"]
    wheel += [f"Tag: {tag}" for tag in sorted(map(str, tags))]
    path = directory / file
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{info}/METADATA", "\n".join(metadata) + "\n")
        archive.writestr(f"{info}/WHEEL", "\n".join(wheel) + "\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def write_all(directory: Path, python: Python, sources: dict[str, list[str]]) -> dict[str, Path]:
    """Stubs of all wheels that lie elsewhere and of all that the build makes, by canonical name.

    ``sources`` maps a name of ``python.sources`` to its requirements. What ``python`` excludes is
    left out of the requirements, so that it need not be on the index.
    """
    excluded = {canonicalize_name(name) for name in python.exclude}

    def wanted(requires: Iterable[str]) -> list[str]:
        names = {each: canonicalize_name(Requirement(each).name) for each in requires}
        return [each for each, name in names.items() if name not in excluded]

    stubs: dict[str, Path] = {}
    for name, wheel in python.elsewhere.items():
        stubs[canonicalize_name(name)] = write(directory, wheel.file, wanted(wheel.requires))
    for name, source in python.sources.items():
        file = f"{canonicalize_name(name).replace('-', '_')}-{source.version}-py3-none-any.whl"
        stubs[canonicalize_name(name)] = write(directory, file, wanted(sources[name]))
    return stubs
