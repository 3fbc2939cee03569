"""Where Debian packages come from: a mirror, and the archive of security updates beside it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from urllib.parse import quote

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
                "no Debian mirror found: this machine's apt has none",
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
    """The mirror that this machine's own apt uses for lists of Debian's with this label."""
    argv = ["apt-get", "indextargets", "--format", "$(REPO_URI)"]
    argv += ["Origin: Debian", f"Label: {label}", "Created-By: Packages"]
    result = run(argv, what="asking apt for its mirror", ok=None)
    urls = [line.rstrip("/") for line in result.out.split() if re.match(r"https?://|file:", line)]
    return urls[0] if urls else None
