"""Python: pip's own resolver, for the image's Python and C library instead of this machine's."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urlsplit

import httpx
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from orchestrator.core import download, paths
from orchestrator.core.errors import BadInput, UserError
from orchestrator.core.run import CommandFailed, run
from orchestrator.image import downloads, overrides, tags
from orchestrator.image.lock import index, sdist, stubs
from orchestrator.image.lock.closure import closure
from orchestrator.image.lockfile import Deb, LockedSource, Overridden, Wheel, store_name
from orchestrator.image.spec import Python, file_of


class Unsolvable(BadInput):
    """pip finds no solution; ``said`` is its own output."""

    def __init__(self, name: str, said: str) -> None:
        super().__init__(explain(name, said))
        self.said = said


@dataclass(frozen=True)
class Resolved:
    """What the Python half comes to, both sorted by name."""

    wheels: tuple[Wheel, ...]
    sources: tuple[LockedSource, ...]
    overrides: tuple[Overridden, ...] = ()


@dataclass(frozen=True)
class _Question:
    """What pip is asked: everything but the versions that are kept."""

    name: str
    python: Python
    environment: dict[str, str]
    links: Path
    declared: dict[str, Path]


def resolve(
    name: str,
    python: Python,
    debs: Iterable[Deb],
    locked: Mapping[str, str] | None = None,
    update: Iterable[str] = (),
) -> Resolved:
    """All wheels that ``python``'s roots need on the interpreter of ``debs``.

    With ``locked`` (canonical name: version) only those in ``update``, and what has to move with
    them, get another version. Raises BadInput where pip finds no solution or a declared
    distribution is needed by none, UserError where a file cannot be reached.
    """
    environment = index.environment(interpreter(name, python, debs))
    archives = {each: sdist.bring(name, each, source) for each, source in python.sources.items()}
    with tempfile.TemporaryDirectory() as scratch:
        declared = stubs.write_all(
            Path(scratch), python, {each: found.requires for each, found in archives.items()}
        )
        question = _Question(name, python, environment, _bring_urls(python), declared)
        items = _solve(question, locked or {}, update)
    requires = {_name(item): item["metadata"].get("requires_dist", []) for item in items}
    keep = closure(python.requirements, requires, python.exclude, environment)
    _require_all_needed(question, keep)
    overridden = _overridden(question, {each: requires[each] for each in keep & requires.keys()})
    kept = sorted((item for item in items if _name(item) in keep), key=_name)
    sources = {canonicalize_name(each): found.entry for each, found in archives.items()}
    with httpx.Client(follow_redirects=True, timeout=30) as client, ThreadPoolExecutor(8) as pool:
        built = [item for item in kept if _name(item) not in sources]
        found = tuple(pool.map(lambda item: _wheel(client, item, question), built))
    locked_sources = tuple(sources[each] for each in sorted(sources))
    return Resolved(found, locked_sources, tuple(overridden))


def interpreter(name: str, python: Python, debs: Iterable[Deb]) -> str:
    """The full version of the image's Python, from its Debian package: markers can ask for it."""
    package = f"libpython{python.version}-minimal"
    for deb in debs:
        if deb.name == package and (found := re.match(r"(?:\d+:)?(\d+\.\d+\.\d+)", deb.version)):
            return found[1]
    raise BadInput(
        f"images/{name}/image.yml: python.version is {python.version}, but no package of it is "
        "among the Debian packages",
        f"Add python{python.version} to debian.packages.",
    )


def _bring_urls(python: Python) -> Path:
    """Download the wheels of ``urls`` that no index has; returns the directory they lie in."""
    directory = paths.cache() / "wheels"
    directory.mkdir(parents=True, exist_ok=True)
    if not python.urls:
        return directory
    finder = index.finder()
    for address in python.urls.values():
        file, (url, fragment) = file_of(address), urldefrag(address)
        sha256, target = fragment.removeprefix("sha256="), directory / file
        if sha256 and target.exists() and download.digest(target) != sha256:
            target.unlink()  # of another address, or of before the hash was given
        if not target.exists() and index.url_of(file, finder) is None:
            with downloads.alone(), download.client() as web:
                if sha256:
                    download.Downloader(web).fetch(url, target, None, sha256)
                else:
                    download.plain(web, url, target)
    return directory


def _solve(
    question: _Question, locked: Mapping[str, str], update: Iterable[str]
) -> list[dict[str, Any]]:
    """pip's choice. Without ``locked`` its own; with it the newest of ``update``, and of the rest
    as much as can stay at the locked versions."""
    if not locked:
        return _report(question, {})
    updated = {str(canonicalize_name(each)) for each in update}
    fixed = updated | question.declared.keys()
    constraints = {each: version for each, version in locked.items() if each not in fixed}
    if updated - question.declared.keys():
        newest = {_name(item): item["metadata"]["version"] for item in _report(question, {})}
        constraints |= {
            each: newest[each] for each in updated & newest.keys() - question.declared.keys()
        }
    while True:
        try:
            return _report(question, constraints)
        except Unsolvable as error:
            movable = blocking(error.said) & constraints.keys() - updated
            if not movable:
                raise
            constraints = {each: of for each, of in constraints.items() if each not in movable}


def conflict(out: str) -> str:
    """What pip tells of a conflict on its standard output, among much else."""
    found = re.search(r"^The conflict is caused by:\n((?: +.*\n)+)", out, re.MULTILINE)
    return found[1] if found else ""


def blocking(said: str) -> set[str]:
    """The names that pip could not solve because their version was kept."""
    found = re.findall(r"\(constraint\) ([\w.-]+)==", said)
    found += re.findall(r"No matching distribution found for ([\w.-]+)==", said)
    return {str(canonicalize_name(name)) for name in found}


def _report(question: _Question, constraints: Mapping[str, str]) -> list[dict[str, Any]]:
    """What pip would install for the roots. Raises Unsolvable with what pip said."""
    python, environment = question.python, question.environment
    abis = [f"cp{python.version.replace('.', '')}", "abi3", "none"]
    with tempfile.TemporaryDirectory() as scratch:
        report, kept = Path(scratch, "report.json"), Path(scratch, "constraints.txt")
        lines = [f"{each}=={version}" for each, version in constraints.items()]
        # Stubs by their address: pip then looks for these names nowhere else.
        lines += [f"{each} @ {stub.as_uri()}" for each, stub in question.declared.items()]
        kept.write_text("\n".join(lines))
        argv: list[str | Path] = [sys.executable, "-m", "orchestrator.image.lock.pip_for_target"]
        argv += [
            json.dumps(environment),
            json.dumps(_replaced(python)),
            "install",
            "--dry-run",
            "--ignore-installed",
        ]
        argv += ["--only-binary=:all:", "--implementation=cp", "--report", report]
        argv += ["--target", Path(scratch, "target"), "--find-links", question.links]
        argv += ["--constraint", kept]
        argv += ["--python-version", environment["python_full_version"]]
        argv += [f"--abi={abi}" for abi in abis]
        argv += [f"--platform={platform}" for platform in tags.platforms(python.glibc)]
        try:
            run([*argv, *python.requirements], what="resolving wheels")
        except CommandFailed as error:
            said = conflict(error.result.out) + error.result.err
            raise Unsolvable(question.name, said) from None
        document: dict[str, Any] = json.loads(report.read_text())
    if document["environment"] != environment:
        raise UserError(
            "this pip does not resolve for another Python: instead of\n"
            f"  {environment}\nit used\n  {document['environment']}",
            f"Please report it, with the output of: {sys.executable} -m pip --version",
        )
    items: list[dict[str, Any]] = document["install"]
    _require_overrides_heeded(python, items)
    return items


def _replaced(python: Python) -> dict[str, dict[str, str]]:
    """image.yml's overrides as pip_for_target takes them."""
    return {
        name: {requirement: override.to for requirement, override in replaced.items()}
        for name, replaced in overrides.changes(python).items()
    }


def _require_overrides_heeded(python: Python, items: Iterable[dict[str, Any]]) -> None:
    """Raises UserError where pip chose another version than an override of what it installs asks
    for: it then no longer asks distributions in the way that pip_for_target knows."""
    versions = {_name(item): item["metadata"]["version"] for item in items}
    for name, replaced in _replaced(python).items():
        for requirement, to in replaced.items():
            version = versions.get(requirement)
            if name in versions and version and not SpecifierSet(to).contains(version, True):
                raise UserError(
                    f"this pip ignores python.override.{name}.{requirement}: it chose {version}, "
                    f"not {to}",
                    f"Please report it, with the output of: {sys.executable} -m pip --version",
                )


def explain(name: str, said: str) -> str:
    """pip's error, and first what it means where a package has no wheel."""
    where = f"images/{name}/image.yml: pip cannot resolve python.requirements"
    missing = re.findall(r"No matching distribution found for (.+)", said)
    if missing:
        where += f": no wheel fits for {', '.join(missing)} (source archives are not built)"
    lines = [line for line in said.splitlines() if line.strip() and "ignored" not in line]
    return "\n".join([where, *(f"  pip: {line}" for line in lines[-20:])])


def _require_all_needed(question: _Question, keep: set[str]) -> None:
    if unused := question.declared.keys() - keep:
        raise BadInput(
            f"images/{question.name}/image.yml: python.elsewhere, python.sources: no distribution "
            f"of the image needs {', '.join(sorted(unused))}",
            "Add it to python.requirements, or remove it.",
        )


def _overridden(question: _Question, requires: Mapping[str, Sequence[str]]) -> list[Overridden]:
    """What image.yml replaces in ``requires``. Raises BadInput for what it replaces in vain."""
    by = overrides.changes(question.python)
    found, unused = overrides.found(by, requires, question.environment)
    if unused:
        raise BadInput(
            "\n".join(f"images/{question.name}/image.yml: {each}" for each in unused),
            "Correct or remove it.",
        )
    return found


def _wheel(client: httpx.Client, item: dict[str, Any], question: _Question) -> Wheel:
    """The lock's entry of what pip chose."""
    name, url = _name(item), item["download_info"]["url"]
    elsewhere = {canonicalize_name(each): at for each, at in question.python.elsewhere.items()}
    if declared := elsewhere.get(canonicalize_name(name)):
        return Wheel(
            name=name,
            version=item["metadata"]["version"],
            file=declared.file,
            size=declared.size,
            sha256=declared.sha256,
            store=store_name(declared.file),
            url=declared.url,
            elsewhere=True,
        )
    file, sha256 = file_of(url), item["download_info"]["archive_info"]["hashes"]["sha256"]
    at = {file_of(each): urldefrag(each) for each in question.python.urls.values()}.get(file)
    if at and at.fragment not in ("", f"sha256={sha256}"):
        raise BadInput(
            f"images/{question.name}/image.yml: python.urls: pip found {file} with sha256 "
            f"{sha256}, not {at.fragment.removeprefix('sha256=')}",
            "Correct the hash, or remove the file from the package index.",
        )
    return Wheel(
        name=name,
        version=item["metadata"]["version"],
        file=file,
        size=_size(client, url),
        sha256=sha256,
        store=store_name(file),
        url=at.url if at else None,
    )


def _size(client: httpx.Client, url: str) -> int:
    """The size in bytes of the file that pip chose: pip's report does not have it."""
    parts = urlsplit(url)
    if parts.scheme == "file":
        return Path(unquote(parts.path)).stat().st_size
    try:
        reply = client.head(url).raise_for_status()
    except httpx.HTTPError as error:
        raise UserError(f"no size of {file_of(url)}: {error}", "Run it again.") from None
    return int(reply.headers["content-length"])


def _name(item: dict[str, Any]) -> str:
    return str(canonicalize_name(item["metadata"]["name"]))


def pinned(python: Python, name: str) -> str | None:
    """The one version of a distribution that image.yml allows; None where it leaves a choice."""
    versions = {canonicalize_name(each): at.version for each, at in python.elsewhere.items()}
    versions |= {canonicalize_name(each): at.version for each, at in python.sources.items()}
    asked = [Requirement(text) for text in python.requirements]
    for replaced in python.override.values():
        asked += [Requirement(f"{each}{override.to}") for each, override in replaced.items()]
    for root in asked:
        for clause in root.specifier:
            if clause.operator in ("==", "===") and not clause.version.endswith("*"):
                versions.setdefault(canonicalize_name(root.name), clause.version)
    return versions.get(canonicalize_name(name))
