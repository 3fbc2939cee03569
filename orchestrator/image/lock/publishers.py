"""Who published a wheel or source archive, as the index says: the attestations of PEP 740.

An index that takes uploads from a build service keeps attestations beside the file: statements with
the file's sha256, signed for the service's identity, here called the publisher. The lock records
who that is. A new version of another publisher, or of none, is an error until somebody accepts it.

The signatures are not verified: the index did that at the upload. So this shows an account or a
token that was stolen, and not an index that lies.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urljoin

import httpx
from packaging.utils import canonicalize_name, parse_sdist_filename, parse_wheel_filename
from packaging.version import Version

from orchestrator.core import download
from orchestrator.core.errors import BadInput, UserError
from orchestrator.image.lock import index
from orchestrator.image.lock.wheels import Resolved
from orchestrator.image.lockfile import Lock, Published

#: Forms of an index's page of a project, and of a file's provenance.
PAGE = "application/vnd.pypi.simple.v1+json"
PROVENANCE = "application/vnd.pypi.integrity.v1+json"
#: The most bytes of each.
LONGEST_PAGE, LONGEST_PROVENANCE = 64 << 20, 4 << 20
#: A publisher's text is cut to so many characters.
LONGEST = 300
#: What an index's page says of the publisher beside the names: for the build service.
ASIDE = ("kind", "claims")

File = TypeVar("File", bound=Published)


@dataclass(frozen=True)
class Moved:
    """A newer release that is not published by whom the lock names; ``after`` is None where the
    index names nobody."""

    distribution: str
    locked: str
    newest: str
    before: str
    after: str | None

    def __str__(self) -> str:
        return f"{self.distribution} {self.newest}: {self.before} → {self.after or 'nobody'}"


def record(
    image: str, found: Resolved, old: Lock | None, update: bool, accepted: Collection[str]
) -> Resolved:
    """``found`` with publishers. A file of the old lock keeps its publisher; with ``update``, also
    where it has none. The index is asked for the others.

    Raises UserError where a distribution has another publisher than in ``old`` and is not
    ``accepted``, or where the index cannot be asked; BadInput where ``accepted`` names nothing.
    """
    before: dict[str, Published] = {}
    if old:
        before = {file.name: file for file in (*old.wheels, *old.sources)}
    names = {str(canonicalize_name(each)) for each in accepted}
    if unknown := names - {file.name for file in (*found.wheels, *found.sources)}:
        raise BadInput(
            f"--accept-publisher: the image {image!r} has no distribution "
            f"{', '.join(sorted(unknown))}"
        )
    with download.client() as client, ThreadPoolExecutor(8) as pool:
        named = partial(_named, client, before, update)
        wheels, sources = (
            tuple(pool.map(named, found.wheels)),
            tuple(pool.map(named, found.sources)),
        )
    now: list[Published] = [*wheels, *sources]
    changed = [
        f"{file.name} {file.version}: {before[file.name].publisher} → {file.publisher or 'nobody'}"
        for file in now
        if _changed(before.get(file.name), file) and file.name not in names
    ]
    if changed:
        accept = " ".join(f"--accept-publisher {line.split()[0]}" for line in changed)
        raise UserError(
            f"images/{image}/lock.json: not published by whom the lock names:\n"
            + "\n".join(f"  {line}" for line in changed),
            "Find out why, for example in the project's release notes (a mirror may name nobody). "
            f"To accept: orchestrate image lock {image} {accept}",
        )
    return Resolved(wheels, sources, found.overrides)


def _changed(before: Published | None, now: Published) -> bool:
    return bool(before and before.publisher and before.publisher != now.publisher)


def _named(client: httpx.Client, before: Mapping[str, Published], update: bool, file: File) -> File:
    old = before.get(file.name)
    if old and old.sha256 == file.sha256 and (old.publisher or update):
        publisher = old.publisher
    elif file.elsewhere or file.url:
        publisher = None  # not of the index
    else:
        publisher = _publisher(client, file)
    return file.model_copy(update={"publisher": publisher})


def _publisher(client: httpx.Client, file: Published) -> str | None:
    """The publisher of a file, from the first of pip's indexes that has it; None without one."""
    with _explained(file.file):
        for at, files in _pages(client, file.name):
            for each in files:
                if each["filename"] == file.file and each["hashes"].get("sha256") == file.sha256:
                    return _publisher_of(client, at, each)
    return None


def moved(lock: Lock) -> tuple[Moved, ...]:
    """Distributions whose newest release is not published by whom the lock names.

    Raises UserError where the index cannot be asked.
    """
    named = [file for file in (*lock.wheels, *lock.sources) if file.publisher]
    with download.client() as client, ThreadPoolExecutor(8) as pool:
        return tuple(each for each in pool.map(partial(_moved, client), named) if each)


def _moved(client: httpx.Client, file: Published) -> Moved | None:
    with _explained(file.name):
        for at, files in _pages(client, file.name):
            releases: dict[Version, list[dict[str, Any]]] = {}
            for each in files:
                version = _version(each["filename"])
                if version and not version.is_prerelease and not each.get("yanked"):
                    releases.setdefault(version, []).append(each)
            newest = max(releases, default=None)
            if newest is None or newest <= Version(file.version):
                return None
            # A file without attestations among others is one that was added in another way.
            without = next((each for each in releases[newest] if not each.get("provenance")), None)
            publisher = _publisher_of(client, at, without or releases[newest][0])
            if publisher == file.publisher:
                return None
            return Moved(file.name, file.version, str(newest), str(file.publisher), publisher)
    return None


def _version(file: str) -> Version | None:
    """The version in a file's name; None of what is neither a wheel nor a source archive."""
    try:
        return (
            parse_wheel_filename(file)[1]
            if file.endswith(".whl")
            else parse_sdist_filename(file)[1]
        )
    except ValueError:
        return None


def _pages(client: httpx.Client, name: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """What each of pip's indexes has of a distribution: the page's address, and its files."""
    for root in index.settings().index_urls:
        if root.startswith("http"):  # the others are directories
            at = f"{root.rstrip('/')}/{name}/"
            if page := _ask(client, at, PAGE, LONGEST_PAGE):
                yield at, page["files"]


def _publisher_of(client: httpx.Client, page: str, file: Mapping[str, Any]) -> str | None:
    """The publisher of a file as its page lists it."""
    if not file.get("provenance"):
        return None
    where = urljoin(page, file["provenance"])
    told = _ask(client, where, PROVENANCE, LONGEST_PROVENANCE)
    return publisher_in(told or {}, file["hashes"]["sha256"])


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Errors of an index, as one message each."""
    try:
        yield
    except httpx.HTTPError as error:
        why = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{what}: its publisher cannot be asked for: {why}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{what}: the index's attestations do not fit it: {error}",
            "Use another index (pip config), or another version of this distribution.",
        ) from None


def publisher_in(provenance: Mapping[str, Any], sha256: str) -> str:
    """The publishers in a provenance document (PEP 740), as a text.

    Raises ValueError where a statement is about another file than that of ``sha256``, KeyError,
    TypeError and the like where the document is none.
    """
    found = []
    for bundle in provenance["attestation_bundles"]:
        if not bundle["attestations"]:
            raise ValueError("a publisher has attested nothing")
        for attestation in bundle["attestations"]:
            statement = json.loads(base64.b64decode(attestation["envelope"]["statement"]))
            if [each["digest"]["sha256"] for each in statement["subject"]] != [sha256]:
                raise ValueError("a statement is about another file")
        of = bundle["publisher"]
        told = [f"{key} {of[key]}" for key in sorted(of) if key not in ASIDE and of[key]]
        found.append(f"{of['kind']}: {', '.join(told)}"[:LONGEST])
    if not found:
        raise ValueError("there are none")
    return "; ".join(sorted(set(found)))


def _ask(client: httpx.Client, url: str, form: str, most: int) -> dict[str, Any] | None:
    """A JSON document of an index; None where it has none, or not in this form."""
    headers = {"Accept": form}
    # Of an index without TLS pip's settings say that it is trusted.
    asked = (
        download.secured(client, url, headers)
        if download.is_secure(url)
        else client.stream("GET", url, headers=headers)
    )
    with asked as reply:
        if reply.status_code in (httpx.codes.NOT_FOUND, httpx.codes.NOT_ACCEPTABLE):
            return None
        reply.raise_for_status()
        if not reply.headers.get("content-type", "").startswith(form):
            return None
        document = json.loads(b"".join(download.at_most(most, reply.iter_bytes(), form)))
    return document if isinstance(document, dict) else None
