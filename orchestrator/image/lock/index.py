"""Where wheels are: the package index, extra indexes and directories that pip is set up for."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from packaging.utils import parse_sdist_filename, parse_wheel_filename

from orchestrator.core.errors import UserError
from orchestrator.core.run import CommandFailed, run

if TYPE_CHECKING:
    from unearth import PackageFinder


#: Prints the places that 'pip install' takes files from. In a process of its own: pip ends it for a
#: setting that it does not take.
ASK = """
import json
from pip._internal.commands import create_command
from pip._internal.index.collector import LinkCollector
from pip._internal.network.session import PipSession
options, _ = create_command("install").parse_args([])
scope = LinkCollector.create(PipSession(), options).search_scope
print(json.dumps({"index_urls": scope.index_urls, "find_links": scope.find_links}))
"""


@dataclass(frozen=True)
class Settings:
    """pip's own settings on this machine, from its files and from the environment."""

    index_urls: tuple[str, ...]
    find_links: tuple[str, ...]


@cache
def settings() -> Settings:
    """Ask pip itself: what its files, sections and variables mean, only pip knows.

    Raises UserError with pip's own words for a setting that it does not take.
    """
    try:
        told = run([sys.executable, "-c", ASK], what="reading pip's settings").out
    except CommandFailed as error:
        said = error.result.err.strip().splitlines()[-1:] or ["no output"]
        raise UserError(
            f"pip does not take its own settings: {said[0]}", "Look at: pip config debug"
        ) from None
    found = json.loads(told)
    return Settings(tuple(found["index_urls"]), tuple(found["find_links"]))


def finder() -> PackageFinder:
    """A finder over all of pip's places, for any platform's files and for source archives."""
    from unearth import PackageFinder

    return PackageFinder(
        index_urls=settings().index_urls,
        find_links=settings().find_links,
        ignore_compatibility=True,
    )


def url_of(file: str, finder: PackageFinder) -> str | None:
    """The address of the wheel or source archive ``file``; None where no place of pip has it."""
    if file.endswith(".whl"):
        name, version, _, _ = parse_wheel_filename(file)
    else:
        name, version = parse_sdist_filename(file)
    for package in finder.find_matches(f"{name}=={version}", allow_prereleases=True):
        if package.link.filename == file:
            return package.link.url_without_fragment
    return None


@dataclass(frozen=True)
class IndexArchive:
    """A source archive where it is published; ``sha256`` as the index says it, where it does."""

    file: str
    url: str
    sha256: str | None


def source_of(name: str, version: str, finder: PackageFinder) -> IndexArchive | None:
    """The source archive of a distribution's ``version``; None where no place of pip has it."""
    for package in finder.find_matches(f"{name}=={version}", allow_prereleases=True):
        link = package.link
        if not link.is_wheel and link.filename.endswith((".tar.gz", ".zip")):
            sha256 = (link.hashes or {}).get("sha256")
            return IndexArchive(link.filename, link.url_without_fragment, sha256)
    return None


def environment(version: str) -> dict[str, str]:
    """The marker values of CPython ``version`` (major.minor.patch) on 64-bit Linux."""
    return {
        "implementation_name": "cpython",
        "implementation_version": version,
        "os_name": "posix",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": version,
        "python_version": ".".join(version.split(".")[:2]),
        "sys_platform": "linux",
    }
