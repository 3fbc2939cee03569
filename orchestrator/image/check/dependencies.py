"""Find dependencies of packages and wheels that no other package or wheel meets. Pure.

python-debian parses Debian's relations and versions, packaging parses Python's.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from debian.deb822 import PkgRelation
from debian.debian_support import Version as DebianVersion
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import NormalizedName, canonicalize_name
from packaging.version import Version

from orchestrator.image.check.findings import Allowed, Finding

if TYPE_CHECKING:
    Relation = PkgRelation.ParsedRelation

#: The name of the dependent of the packages that image.yml lists.
ROOTS = "image.yml"
MISSING = "not in the lock"
UNREADABLE = "not a relation that dpkg reads"

#: A package's name as dpkg takes it: with "_" too, which Debian's policy forbids and vendors use.
DEB_NAME = r"[A-Za-z0-9][A-Za-z0-9+._-]*"
#: python-debian leaves a relation with "_" unread, so this stands for it meanwhile.
_UNDERSCORE = "+-5f-+"
#: Operators of old packages, which dpkg and apt read so.
_OLD_OPERATORS = {"<": "<=", ">": ">="}

#: Architectures in a relation that include this one.
ARCHITECTURES = ("amd64", "any", "linux-any", "any-amd64", "linux-amd64")
#: Qualifiers after a colon in a dependency that packages of this architecture meet.
QUALIFIERS = (None, "any", "native", "amd64")

COMPARE = {
    "<<": lambda have, want: have < want,
    "<=": lambda have, want: have <= want,
    "=": lambda have, want: have == want,
    ">=": lambda have, want: have >= want,
    ">>": lambda have, want: have > want,
}


@dataclass(frozen=True)
class Package:
    """Fields of a Debian package's control file; ``depends``: Pre-Depends and Depends."""

    name: str
    version: str
    architecture: str
    depends: str = ""
    provides: str = ""
    breaks: str = ""


@dataclass(frozen=True)
class Distribution:
    """Fields of a wheel's METADATA; ``requires``: its Requires-Dist."""

    name: str
    version: str
    requires: tuple[str, ...] = ()
    requires_python: str = ""


def relations(text: str) -> list[list[Relation]]:
    """Parse a field such as Depends: a list of dependencies, each a list of alternatives."""
    text = text.strip().strip(",").replace("_", _UNDERSCORE)
    groups = PkgRelation.parse_relations(text) if text else []
    return [[_as_dpkg_reads(relation) for relation in group] for group in groups]


def _as_dpkg_reads(relation: Relation) -> Relation:
    relation["name"] = relation["name"].replace(_UNDERSCORE, "_")
    if relation["version"]:
        operator, version = relation["version"]
        version = version.replace(_UNDERSCORE, "_")
        relation["version"] = (_OLD_OPERATORS.get(operator, operator), version)
    return relation


def _is_readable(relation: Relation) -> bool:
    operator, version = relation["version"] or ("=", "1")
    named = re.fullmatch(DEB_NAME, relation["name"]) is not None
    return named and operator in COMPARE and _version(version) is not None


def _version(text: str) -> DebianVersion | None:
    """None for what is no version."""
    try:
        return DebianVersion(text)
    except ValueError:
        return None


def normalized(text: str) -> list[str]:
    """The dependencies of a field such as Depends, in a canonical spelling."""
    return [PkgRelation.str([group]) for group in relations(text)]


def debian(
    packages: Sequence[Package], roots: Iterable[str], allowed: Mapping[str, Allowed]
) -> list[Finding]:
    """Each dependency of ``packages``, and each root, that no package meets.

    ``allowed``: exceptions, by the name of a package that may be missing.
    """
    offers = _offers(packages)
    asked = [(ROOTS, [[_root(root)]]) for root in roots]
    asked += [(each.name, relations(each.depends)) for each in packages]
    found = []
    for who, groups in asked:
        for group in groups:
            here = [relation for relation in group if _is_for_us(relation)]
            if not all(map(_is_readable, here)):
                found.append(Finding(who, PkgRelation.str([here]), UNREADABLE))
            elif here and not any(_met(relation, offers) for relation in here):
                names = [relation["name"] for relation in here]
                lacking = Finding(who, PkgRelation.str([here]), _instead(names, offers))
                exception = next((allowed[name] for name in names if name in allowed), None)
                found.append(lacking.allowed_by(exception))
    return list(dict.fromkeys(found))


def _root(text: str) -> Relation:
    """A root of image.yml as a relation: NAME, or NAME=VERSION."""
    name, _, version = text.partition("=")
    return {
        "name": re.split("[:/]", name)[0],
        "archqual": None,
        "version": ("=", version) if version else None,
        "arch": None,
        "restrictions": None,
    }


def _offers(packages: Iterable[Package]) -> dict[str, list[DebianVersion | None]]:
    """The versions of each package name; None: a name that is provided without a version.

    To dpkg, capitals in a name are small letters.
    """
    offers: dict[str, list[DebianVersion | None]] = defaultdict(list)
    for package in packages:
        offers[package.name.lower()].append(_version(package.version))
        for group in relations(package.provides):
            for relation in group:
                version = relation["version"]
                offers[relation["name"].lower()].append(_version(version[1]) if version else None)
    return offers


def _is_for_us(relation: Relation) -> bool:
    """Whether a relation's [architectures] include this one."""
    listed = relation["arch"] or []
    named = [each for each in listed if each.arch in ARCHITECTURES]
    if any(each.enabled for each in listed):
        return any(each.enabled for each in named)
    return not named


def _met(relation: Relation, offers: Mapping[str, Sequence[DebianVersion | None]]) -> bool:
    if relation["archqual"] not in QUALIFIERS:
        return False
    have = offers.get(relation["name"].lower(), ())
    if relation["version"] is None:
        return bool(have)
    operator, version = relation["version"]
    wanted = DebianVersion(version)
    return any(COMPARE[operator](each, wanted) for each in have if each is not None)


def _instead(names: Iterable[str], offers: Mapping[str, Sequence[object]]) -> str:
    """The versions of ``names`` that exist, for the message that none of them fits."""
    found = [
        f"{name} {each}" if each else f"{name} without a version"
        for name in names
        for each in offers.get(name.lower(), ())
    ]
    return f"the lock has {', '.join(found)}" if found else MISSING


def python(
    wheels: Sequence[Distribution],
    roots: Iterable[str],
    environment: Mapping[str, str],
    renamed: Mapping[str, tuple[str, str]],
    allowed: Mapping[str, Allowed],
) -> list[Finding]:
    """Each requirement of ``wheels``, and each root, that no wheel meets on this Python.

    ``environment``: the target's marker values. ``renamed``: name -> other name and version under
    which it is installed; it then meets requirements for both. ``allowed``: exceptions by name.
    """
    have = _installed(wheels, renamed)
    exceptions = {canonicalize_name(name): each for name, each in allowed.items()}
    version = environment["python_full_version"]
    found = [
        Finding(wheel.name, f"Python {wheel.requires_python}", f"it is {version}")
        for wheel in wheels
        if not _takes(wheel.requires_python, version)
    ]
    for who, text in _required(wheels, roots, environment):
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            found.append(Finding(who, text, f"not a requirement: {error}".splitlines()[0]))
            continue
        name = canonicalize_name(requirement.name)
        versions = have.get(name, [])
        if not any(requirement.specifier.contains(each, prereleases=True) for each in versions):
            there = ", ".join(f"{requirement.name} {each}" for each in versions)
            lacking = Finding(who, text, f"the lock has {there}" if there else MISSING)
            found.append(lacking.allowed_by(exceptions.get(name)))
    return list(dict.fromkeys(found))


def _installed(
    wheels: Iterable[Distribution], renamed: Mapping[str, tuple[str, str]]
) -> dict[str, list[Version]]:
    """The versions of each distribution name."""
    have: dict[str, list[Version]] = defaultdict(list)
    other = {canonicalize_name(name): new for name, new in renamed.items()}
    for wheel in wheels:
        name = canonicalize_name(wheel.name)
        have[name].append(Version(wheel.version))
        if name in other:
            new, version = other[name]
            have[canonicalize_name(new)].append(Version(version))
    return have


def _takes(requires_python: str, version: str) -> bool:
    try:
        return SpecifierSet(requires_python).contains(version, prereleases=True)
    except InvalidSpecifier:
        return True  # invalid specifiers in old wheels: installers treat them as "any"


def _required(
    wheels: Sequence[Distribution], roots: Iterable[str], environment: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Pairs (wheel, requirement): unconditional requirements, and those of requested extras.

    Text that is not a valid requirement counts as required.
    """
    by_name = {canonicalize_name(wheel.name): wheel for wheel in wheels}
    asked = {(ROOTS, text) for text in roots}
    todo = [(name, "") for name in by_name]
    todo += [pair for _, text in asked for pair in _extras(text)]
    done: set[tuple[str, str]] = set()
    while todo:
        name, extra = todo.pop()
        if name not in by_name or (name, extra) in done:
            continue
        done.add((name, extra))
        for text in by_name[name].requires:
            if applies(text, {**environment, "extra": extra}):
                asked.add((name, text))
                todo += _extras(text)
    return sorted(asked)


def applies(text: str, environment: Mapping[str, str]) -> bool:
    """Whether a requirement's marker, if it has one, is true in ``environment``."""
    try:
        marker = Requirement(text).marker
    except InvalidRequirement:
        return True
    return marker is None or marker.evaluate(environment)


def _extras(text: str) -> list[tuple[NormalizedName, str]]:
    """The extras that a requirement asks for, each as (name, extra)."""
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        return []
    name = canonicalize_name(requirement.name)
    return [(name, extra) for extra in sorted(requirement.extras)]
