"""Requirements of a distribution that image.yml replaces (``python.override``). Pure."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from orchestrator.image.lockfile import Overridden
from orchestrator.image.spec import Override, Python

#: The replaced requirements of each distribution, all by their canonical names.
Changes = Mapping[str, Mapping[str, Override]]


class Unused(Exception):
    """An override that replaces nothing: ``key`` of image.yml, ``problem`` in words."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}")
        self.key = key


def changes(python: Python) -> dict[str, dict[str, Override]]:
    """image.yml's overrides by canonical names."""
    return {
        str(canonicalize_name(name)): {
            str(canonicalize_name(requirement)): override
            for requirement, override in replaced.items()
        }
        for name, replaced in python.override.items()
    }


def applied(name: str, requires: Iterable[str], by: Changes) -> list[str]:
    """The Requires-Dist lines of the distribution ``name`` once ``by`` has replaced some.

    Extras and markers stay. What cannot be read as a requirement stays as it is.
    """
    return [_replaced(text, by.get(canonicalize_name(name), {})) for text in requires]


def _replaced(text: str, by: Mapping[str, Override]) -> str:
    requirement = _parsed(text)
    override = by.get(canonicalize_name(requirement.name)) if requirement else None
    if requirement is None or override is None:
        return text
    new = copy.copy(requirement)
    new.specifier, new.url = SpecifierSet(override.to), None
    return str(new)


def found(
    by: Changes, requires: Mapping[str, Sequence[str]], environment: Mapping[str, str]
) -> tuple[list[Overridden], list[Unused]]:
    """What each override replaces, and those that replace nothing.

    ``requires`` maps the canonical name of every distribution of the image to its own Requires-Dist
    lines; ``environment`` holds the target's marker values.
    """
    overridden, unused = [], []
    for name, replaced in sorted(by.items()):
        for requirement, override in sorted(replaced.items()):
            try:
                said = _said(name, requirement, override, requires, environment)
            except Unused as error:
                unused.append(error)
                continue
            overridden.append(
                Overridden.model_validate(
                    {
                        "distribution": name,
                        "requirement": requirement,
                        "from": said,
                        **override.model_dump(),
                    }
                )
            )
    return overridden, unused


def _said(
    name: str,
    requirement: str,
    override: Override,
    requires: Mapping[str, Sequence[str]],
    environment: Mapping[str, str],
) -> str:
    """What the distribution itself says of ``requirement``. Raises Unused."""
    key = f"python.override.{name}.{requirement}"
    if name not in requires:
        raise Unused(key, f"the image has no distribution {name}")
    lines = [
        each
        for each in map(_parsed, requires[name])
        if each and canonicalize_name(each.name) == requirement and _counts(each, environment)
    ]
    if not lines:
        raise Unused(key, f"{name} does not require {requirement} (any more)")
    if all(each.url is None and each.specifier == SpecifierSet(override.to) for each in lines):
        raise Unused(key, f"{name} itself requires {requirement}{override.to}")
    said = (f" @ {each.url}" if each.url else str(each.specifier) for each in lines)
    return " and ".join(dict.fromkeys(said))


def _counts(requirement: Requirement, environment: Mapping[str, str]) -> bool:
    """Whether a requirement is one of this Python's, of an extra's too."""
    marker = requirement.marker
    if marker is None or "extra" in str(marker):
        return True
    return marker.evaluate({**environment, "extra": ""})


def _parsed(text: str) -> Requirement | None:
    try:
        return Requirement(text)
    except InvalidRequirement:
        return None
