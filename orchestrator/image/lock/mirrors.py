"""Where Debian packages come from: a mirror, and the archive of security updates beside it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import quote

from orchestrator.core.errors import UserError
from orchestrator.core.run import run
from orchestrator.image import MIRROR_VARIABLE, SECURITY_MIRROR_VARIABLE
from orchestrator.image.lockfile import Deb

#: How the host's package lists name themselves: a mirror's, and those of security updates.
MAIN, SECURITY = "Debian", "Debian-Security"

#: Where files lie on a mirror, and in the security archive.
POOL, SECURITY_POOL = "pool/", "pool/updates/"

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


def of_host(label: str) -> str | None:
    """The mirror that this machine's own apt uses for lists of Debian's with this label."""
    argv = ["apt-get", "indextargets", "--format", "$(REPO_URI)"]
    argv += ["Origin: Debian", f"Label: {label}", "Created-By: Packages"]
    result = run(argv, what="asking apt for its mirror", ok=None)
    urls = [line.rstrip("/") for line in result.out.split() if re.match(r"https?://|file:", line)]
    return urls[0] if urls else None
