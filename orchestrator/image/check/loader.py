"""Predict which libraries the dynamic loader would not find, without building the image. Pure.

The rules are those of ld.so(8), in this order: libraries that are loaded already; DT_RPATH of the
object and of those that caused it to be loaded (each only without a DT_RUNPATH); DT_RUNPATH of the
object; the built-in directories. Environment variables are ignored. Images have no ld.so.cache: the
build makes links for the directories that Debian's ld.so.conf adds.
"""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from orchestrator.image.check.elf import Object

#: The built-in directories of Debian's loader (with /lib a link into /usr), and the directories
#: whose libraries have links there.
BUILT_IN = ("/usr/lib/x86_64-linux-gnu", "/usr/lib")
LINKED = ("/usr/local/lib/x86_64-linux-gnu", "/usr/local/lib")
#: The loader's value of $LIB.
LIB = "lib/x86_64-linux-gnu"
#: The kernel follows at most so many links in one path.
MOST_LINKS = 40


class Tree:
    """The objects of an image by path, and its links: path -> target."""

    def __init__(self, objects: Iterable[Object], links: Mapping[str, str]) -> None:
        self.objects = {each.path: each for each in objects}
        self.links = dict(links)
        self.by_name: dict[str, list[str]] = defaultdict(list)
        for path, each in sorted(self.objects.items()):
            for name in {posixpath.basename(path), each.soname} - {""}:
                self.by_name[name].append(path)

    def at(self, path: str) -> Object | None:
        """The object at ``path``, links followed; None if there is none."""
        real = self._real(path)
        return self.objects.get(real) if real else None

    def is_copy(self, each: Object) -> bool:
        """Whether the same library is in the same directory under its SONAME."""
        beside = self.objects.get(f"{posixpath.dirname(each.path)}/{each.soname}", each)
        return beside is not each and replace(beside, path=each.path) == each

    def _real(self, path: str) -> str | None:
        """``path`` with links resolved; None if they form a circle."""
        done, todo, followed = "", path.split("/")[::-1], 0
        while todo:
            step = todo.pop()
            if step == "..":
                done = posixpath.dirname(done).rstrip("/")
            elif step not in ("", "."):
                done = f"{done}/{step}"
            if (target := self.links.get(done)) is not None:
                followed += 1
                if followed > MOST_LINKS:
                    return None
                done = "" if target.startswith("/") else posixpath.dirname(done).rstrip("/")
                todo += target.split("/")[::-1]
        return done


@dataclass(frozen=True)
class Missing:
    """``library``, needed by the file ``path``, is not found when ``start`` is loaded."""

    path: str
    library: str
    start: str


def missing(tree: Tree) -> list[Missing]:
    """All libraries that are not found, each pair of file and library once.

    Programs are loaded first, then libraries that no other file needs (plugins, extension modules).
    Libraries that those need are checked together with them, as the loader does. All others are
    loaded alone. Copies of a library under other names, which wheels contain instead of links, are
    skipped.
    """
    wanted = {posixpath.basename(name) for each in tree.objects.values() for name in each.needed}
    programs, plugins, others = [], [], []
    for path, each in sorted(tree.objects.items()):
        if each.is_program:
            programs.append(each)
        elif tree.is_copy(each):
            continue
        elif {posixpath.basename(path), each.soname} & wanted:
            others.append(each)
        else:
            plugins.append(each)
    found: dict[tuple[str, str], Missing] = {}
    seen: set[str] = set()
    for starts in ((*programs, *plugins), others):
        for start in starts:
            if starts is not others or start.path not in seen:
                for lacking in load(tree, start, seen):
                    found.setdefault((lacking.path, lacking.library), lacking)
    return [found[key] for key in sorted(found)]


@dataclass(frozen=True)
class _Loaded:
    """A loaded object, and the DT_RPATH directories of it and of those that needed it."""

    object: Object
    rpath: tuple[str, ...]


def load(tree: Tree, start: Object, seen: set[str] | None = None) -> list[Missing]:
    """The libraries that are not found when ``start`` is loaded with all it needs, breadth first.

    The paths of loaded objects are added to ``seen``.
    """
    lacking: list[Missing] = []
    names = {posixpath.basename(start.path), start.soname}
    todo = [_Loaded(start, _own_rpath(start))]
    paths = {start.path}
    for each in todo:
        for library in each.object.needed:
            if library in names:
                continue
            found = _find(tree, each, library)
            if found is None:
                lacking.append(Missing(each.object.path, library, start.path))
                continue
            names |= {library, found.soname}
            if found.path not in paths:
                paths.add(found.path)
                todo.append(_Loaded(found, (*_own_rpath(found), *each.rpath)))
    if seen is not None:
        seen |= paths
    return lacking


def _find(tree: Tree, loaded: _Loaded, library: str) -> Object | None:
    if "/" in library:
        return tree.at(library)
    own = loaded.object
    inherited = () if own.runpath else loaded.rpath
    for directory in (*inherited, *_expanded(own, own.runpath), *BUILT_IN, *LINKED):
        if found := tree.at(f"{directory}/{library}"):
            return found
    return None


def _own_rpath(each: Object) -> tuple[str, ...]:
    return () if each.runpath else _expanded(each, each.rpath)


def _expanded(each: Object, directories: tuple[str, ...]) -> tuple[str, ...]:
    """Directories with $ORIGIN and $LIB replaced as by the loader."""
    values = {"ORIGIN": posixpath.dirname(each.path), "LIB": LIB}
    expanded = []
    for directory in directories:
        place = directory
        for name, value in values.items():
            place = place.replace(f"${{{name}}}", value).replace(f"${name}", value)
        expanded.append(place)
    return tuple(expanded)
