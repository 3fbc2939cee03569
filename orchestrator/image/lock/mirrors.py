"""Where Debian packages come from: a mirror, and the archive of security updates beside it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from math import inf
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import httpx

from orchestrator.core import download
from orchestrator.core.errors import UserError
from orchestrator.core.run import run
from orchestrator.image import HISTORY_VARIABLE, MIRROR_VARIABLE, SECURITY_MIRROR_VARIABLE
from orchestrator.image.lockfile import Deb

#: How the host's package lists name themselves: a mirror's, and those of security updates.
MAIN, SECURITY = "Debian", "Debian-Security"

#: Where files lie on a mirror, and in the security archive.
POOL, SECURITY_POOL = "pool/", "pool/updates/"

#: Debian's own history of all of its archives.
HISTORY = "https://snapshot.debian.org/archive"

#: Addresses of mirrors that can be read here, and those of lists of mirrors: METHOD, PLACE.
MIRROR, LIST = r"https?://|file:", r"mirror(?:\+(file|https?))?:(.+)"

#: Most mirrors have the security archive beside the other one, under this ending.
BESIDE = "-security"


@dataclass(frozen=True)
class Mirrors:
    """The addresses to use: those that are chosen, else those that the host's apt uses."""

    chosen: str | None = None
    chosen_security: str | None = None

    @cached_property
    def main(self) -> str:
        """The mirror of suites. Raises UserError where there is none."""
        found = self.chosen.rstrip("/") if self.chosen else of_host(MAIN)
        if found is None:
            raise UserError(
                "no Debian mirror found: this machine's apt has none with http, https or file",
                f"Give one with --mirror URL or in ${MIRROR_VARIABLE}",
            )
        return found

    @cached_property
    def security(self) -> str:
        """The archive of security updates. Raises UserError where there is none."""
        if self.chosen_security:
            return self.chosen_security.rstrip("/")
        if found := of_host(SECURITY):
            return found
        if self.main.endswith("/debian"):
            return self.main + BESIDE
        raise UserError(
            "no Debian security archive found: this machine's apt has none",
            f"Give one with --security-mirror URL or in ${SECURITY_MIRROR_VARIABLE}. Most mirrors "
            f"have it beside 'debian', as 'debian{BESIDE}'.",
        )

    def url(self, deb: Deb) -> str:
        """Where a package of a suite lies."""
        mirror = self.security if deb.security else self.main
        return f"{mirror}/{quote(deb.path)}"

    def later(self, deb: Deb) -> str | None:
        """Where a security update lies once a point release has taken it over."""
        if deb.security and deb.path.startswith(SECURITY_POOL):
            return f"{self.main}/{quote(POOL + deb.path.removeprefix(SECURITY_POOL))}"
        return None


def in_history(deb: Deb, listed: datetime) -> str:
    """Where Debian keeps what its archives had at the time ``listed``, and mirrors have no more.

    The history has a state every few hours and gives the last one before the time that is asked
    for: a day later that is one with the file in it.
    """
    history = os.environ.get(HISTORY_VARIABLE, HISTORY).rstrip("/")
    archive = "debian-security" if deb.security else "debian"
    at = (listed + timedelta(days=1)).astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    return f"{history}/{archive}/{at}/{quote(deb.path)}"


def of_host(label: str) -> str | None:
    """The mirror that this machine's own apt uses for lists of Debian's with this label; None
    without one. Raises UserError for a list of mirrors that cannot be read."""
    argv = ["apt-get", "indextargets", "--format", "$(REPO_URI)"]
    argv += ["Origin: Debian", f"Label: {label}", "Created-By: Packages"]
    return first_of(run(argv, what="asking apt for its mirror", ok=None).out.split())


def first_of(addresses: Iterable[str]) -> str | None:
    """The first mirror among addresses as apt has them; of a list of mirrors the one that apt
    would try first."""
    for address in addresses:
        if re.match(MIRROR, address):
            return address.rstrip("/")
        if found := re.match(LIST, address):
            scheme, rest = found[1] or "http", found[2].rstrip("/")
            if mirror := first_in(_read_list(f"{scheme}:{rest}")):
                return mirror
    return None


def first_in(text: str) -> str | None:
    """The mirror of a list that apt tries first, of those that have everything for this
    architecture (apt-transport-mirror(1))."""
    found: list[tuple[float, str]] = []
    for words in map(str.split, text.splitlines()):
        limits: dict[str, set[str]] = {}
        for key, _, value in (word.partition(":") for word in words[1:]):
            limits.setdefault(key, set()).add(value)
        ranks = [float(rank) for rank in limits.pop("priority", ()) if rank.isdigit()]
        fits = "amd64" in limits.pop("arch", {"amd64"})
        if words and re.match(MIRROR, words[0]) and fits and not limits:
            found.append((min(ranks, default=inf), words[0].rstrip("/")))
    return min(found, key=lambda each: each[0])[1] if found else None


def _read_list(address: str) -> str:
    try:
        if address.startswith("file:"):
            return Path(unquote(urlsplit(address).path)).read_text()
        with download.client() as web:
            return web.get(address).raise_for_status().text
    except (OSError, UnicodeDecodeError, httpx.HTTPError) as error:
        raise UserError(
            f"{address}: apt's list of mirrors cannot be read: {error}",
            f"Name a mirror with --mirror URL or in ${MIRROR_VARIABLE}",
        ) from None
