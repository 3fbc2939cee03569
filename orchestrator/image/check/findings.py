"""What checking an image finds, and the exceptions of image.yml that allow it. Pure."""

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
    """``who`` wants something that is not there; ``problem`` says what there is instead.

    ``key`` and ``reason`` are those of the exception that allows it.
    """

    who: str
    wants: str
    problem: str
    key: str = ""
    reason: str = ""

    def allowed_by(self, exception: Allowed | None) -> Finding:
        """The same, as it is once an exception allows it."""
        if exception is None:
            return self
        return replace(self, key=exception.key, reason=exception.reason)

    def __str__(self) -> str:
        return f"{self.who} needs {self.wants}: {self.problem}"


def exceptions(sections: Mapping[str, Mapping[str, str]]) -> dict[str, Allowed]:
    """All exceptions by name; where two sections have a name, the first one's counts."""
    found: dict[str, Allowed] = {}
    for section, reasons in sections.items():
        for name, reason in reasons.items():
            found.setdefault(name, Allowed(f"{section}.{name}", reason))
    return found


def stale(given: Iterable[str], findings: Iterable[Finding]) -> list[str]:
    """The keys of exceptions that allowed nothing."""
    used = {finding.key for finding in findings}
    return [key for key in given if key not in used]
