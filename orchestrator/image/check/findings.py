"""Findings of an image's check, and the exceptions in image.yml that allow them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Allowed:
    """An exception of image.yml: its key (``debian.exclude.NAME``) and its reason."""

    key: str
    reason: str


@dataclass(frozen=True)
class Finding:
    """``who`` needs ``wants``, which is missing; ``problem`` says what exists instead.

    ``key`` and ``reason``: those of the exception that allows it; empty if none does.
    """

    who: str
    wants: str
    problem: str
    key: str = ""
    reason: str = ""

    def allowed_by(self, exception: Allowed | None) -> Finding:
        """The same finding, allowed by this exception, if there is one."""
        if exception is None:
            return self
        return replace(self, key=exception.key, reason=exception.reason)

    def __str__(self) -> str:
        return f"{self.who} needs {self.wants}: {self.problem}"


def exceptions(sections: Mapping[str, Mapping[str, str]]) -> dict[str, Allowed]:
    """All exceptions by name; if two sections have the same name, the first one counts."""
    found: dict[str, Allowed] = {}
    for section, reasons in sections.items():
        for name, reason in reasons.items():
            found.setdefault(name, Allowed(f"{section}.{name}", reason))
    return found


def stale(given: Iterable[str], findings: Iterable[Finding]) -> list[str]:
    """The keys of exceptions that allowed nothing."""
    used = {finding.key for finding in findings}
    return [key for key in given if key not in used]
