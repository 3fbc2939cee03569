"""Python: pip's own resolver, for the image's Python and C library instead of this machine's."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
from packaging.utils import canonicalize_name

from orchestrator import paths
from orchestrator.errors import BadInput, UserError
from orchestrator.image import download, index
from orchestrator.image.closure import closure
from orchestrator.image.lockfile import Deb, Wheel, store_name
from orchestrator.image.spec import Python
from orchestrator.run import CommandFailed, run

#: The tags before manylinux_2_N, and the oldest N there is.
OLD_PLATFORMS = ("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64")
OLDEST_GLIBC = 5


def resolve(name: str, python: Python, debs: Iterable[Deb]) -> list[Wheel]:
    """All wheels that ``python``'s roots need on the interpreter of ``debs``, sorted by name.

    Raises BadInput where pip finds no solution, UserError where a file cannot be reached.
    """
    environment = index.environment(interpreter(name, python, debs))
    links = _bring_urls(python)
    items = _report(name, python, environment, links)["install"]
    requires = {_name(item): item["metadata"].get("requires_dist", []) for item in items}
    keep = closure(python.requirements, requires, python.exclude, environment)
    kept = sorted((item for item in items if _name(item) in keep), key=_name)
    with httpx.Client(follow_redirects=True, timeout=30) as client, ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(lambda item: _size(client, item), kept))
    return [_wheel(item, size, python) for item, size in zip(kept, sizes, strict=True)]


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


def platforms(glibc: str) -> list[str]:
    """The platform tags that a machine with this C library accepts, best first."""
    newest = int(glibc.split(".")[1])
    modern = [f"manylinux_2_{minor}_x86_64" for minor in range(newest, OLDEST_GLIBC - 1, -1)]
    return [*modern, *OLD_PLATFORMS, "linux_x86_64"]


def _bring_urls(python: Python) -> Path:
    """Download the wheels of ``urls`` that no index has; returns the directory they lie in."""
    directory = paths.cache() / "wheels"
    directory.mkdir(parents=True, exist_ok=True)
    finder = index.finder() if python.urls else None
    for url in python.urls.values():
        file = _file(url)
        if not (directory / file).exists() and finder and index.url_of(file, finder) is None:
            with download.client() as web:
                download.plain(web, url, directory / file)
    return directory


def _report(name: str, python: Python, environment: dict[str, str], links: Path) -> dict[str, Any]:
    """pip's installation report for the roots. Raises BadInput with what pip said."""
    abis = [f"cp{python.version.replace('.', '')}", "abi3", "none"]
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch, "report.json")
        argv: list[str | Path] = [sys.executable, "-m", "orchestrator.image.pip_for_target"]
        argv += [json.dumps(environment), "install", "--quiet", "--dry-run", "--ignore-installed"]
        argv += ["--only-binary=:all:", "--implementation=cp", "--report", report]
        argv += ["--target", Path(scratch, "target"), "--find-links", links]
        argv += ["--python-version", environment["python_full_version"]]
        argv += [f"--abi={abi}" for abi in abis]
        argv += [f"--platform={platform}" for platform in platforms(python.glibc)]
        try:
            run([*argv, *python.requirements], what="resolving wheels")
        except CommandFailed as error:
            raise BadInput(explain(name, error.result.err)) from None
        document: dict[str, Any] = json.loads(report.read_text())
    if document["environment"] != environment:
        raise UserError(
            "this pip does not resolve for another Python: instead of\n"
            f"  {environment}\nit used\n  {document['environment']}",
            f"Please report it, with the output of: {sys.executable} -m pip --version",
        )
    return document


def explain(name: str, said: str) -> str:
    """pip's error, and first what it means where a package has no wheel."""
    where = f"images/{name}/image.yml: pip cannot resolve python.requirements"
    missing = re.findall(r"No matching distribution found for (.+)", said)
    if missing:
        where += f": no wheel fits for {', '.join(missing)} (source archives are not built)"
    lines = [line for line in said.splitlines() if line.strip() and "ignored" not in line]
    return "\n".join([where, *(f"  pip: {line}" for line in lines[-20:])])


def _wheel(item: dict[str, Any], size: int, python: Python) -> Wheel:
    file = _file(item["download_info"]["url"])
    urls = {_file(url): url for url in python.urls.values()}
    return Wheel(
        name=_name(item),
        version=item["metadata"]["version"],
        file=file,
        size=size,
        sha256=item["download_info"]["archive_info"]["hashes"]["sha256"],
        store=store_name(file),
        url=urls.get(file),
    )


def _size(client: httpx.Client, item: dict[str, Any]) -> int:
    """The size in bytes of the file that pip chose: pip's report does not have it."""
    url: str = item["download_info"]["url"]
    parts = urlsplit(url)
    if parts.scheme == "file":
        return Path(unquote(parts.path)).stat().st_size
    try:
        reply = client.head(url).raise_for_status()
    except httpx.HTTPError as error:
        raise UserError(f"no size of {_file(url)}: {error}", "Run it again.") from None
    return int(reply.headers["content-length"])


def _name(item: dict[str, Any]) -> str:
    return str(canonicalize_name(item["metadata"]["name"]))


def _file(url: str) -> str:
    return unquote(urlsplit(url).path).rpartition("/")[2]
