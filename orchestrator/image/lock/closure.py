"""Which distributions the roots still need once some are left out. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def closure(
    roots: Iterable[str],
    requires: Mapping[str, Sequence[str]],
    exclude: Iterable[str],
    environment: Mapping[str, str],
) -> set[str]:
    """The canonical names that ``roots`` need, directly or not, without ``exclude``.

    ``requires`` maps a canonical name to its Requires-Dist lines; ``environment`` holds the
    target's marker values. What only excluded distributions need is not in the result.
    """
    excluded = {str(canonicalize_name(name)) for name in exclude}
    done: set[tuple[str, str]] = set()
    todo = [pair for text in roots for pair in _wanted(Requirement(text))]
    while todo:
        name, extra = todo.pop()
        if name in excluded or (name, extra) in done:
            continue
        done.add((name, extra))
        for text in requires.get(name, ()):
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is None or marker.evaluate({**environment, "extra": extra}):
                todo += _wanted(requirement)
    return {name for name, _ in done}


def _wanted(requirement: Requirement) -> list[tuple[str, str]]:
    """A requirement as (name, extra) pairs; the plain distribution has the extra ''."""
    name = str(canonicalize_name(requirement.name))
    return [(name, extra) for extra in ("", *sorted(requirement.extras))]
