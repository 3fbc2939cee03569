"""YAML with line numbers, so that every message can say where.

The dialect is YAML 1.2's core: only ``true`` and ``false`` are booleans, and a MAC address of
decimal digits stays text (YAML 1.1 reads ``11:22:33:44:55:10`` as a number in base 60).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

#: How deep values may lie in each other: profiles have less than ten levels.
DEPTH = 64
#: How many values aliases (*name) may repeat: a few lines of them are enough for millions.
REPEATED = 10_000

NULL = "tag:yaml.org,2002:null"

#: Where a value stands: ("compute_nodes", 1, "links", "cluster", "mac").
Loc = tuple[str | int, ...]


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong: ``text`` is "what is wrong; what is allowed"."""

    line: int
    key: str
    text: str


@dataclass(frozen=True)
class YamlSource:
    """A file's data as JSON types, and the line of each of its keys and list items."""

    path: Path
    data: Any = None
    lines: Mapping[Loc, int] = field(default_factory=dict)
    #: Values that are not text, as the file has them: a number without its zeros reads as another.
    written: Mapping[Loc, str] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()

    def problem(self, loc: Loc, text: str) -> Problem:
        return Problem(self.line(loc), key_path(loc), text)

    def line(self, loc: Loc) -> int:
        """The line of ``loc``, or of the nearest thing around it that the file has."""
        while loc and loc not in self.lines:
            loc = loc[:-1]
        return self.lines.get(loc, 1)

    def where(self, loc: Loc) -> str:
        """``profiles/x.yml:12: compute_nodes[1].name``, to begin a message with."""
        return f"{display(self.path)}:{self.line(loc)}: {key_path(loc)}"


def key_path(loc: Loc) -> str:
    """``compute_nodes[1].links.cluster.mac``"""
    words = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return "".join(words).removeprefix(".")


def quoted(value: object) -> str:
    """A value as the user wrote it, in single quotes, cut where it is long."""
    text = str(value) if isinstance(value, str) else json.dumps(value)
    return f"'{text[:57]}...'" if len(text) > 60 else f"'{text}'"


def display(path: Path) -> str:
    """A path as people want to read it: relative where it is below the working directory."""
    path, here = path.absolute(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


class TooMuch(yaml.MarkedYAMLError):
    """A document that is small and stands for more than anybody writes."""


def read(path: Path) -> YamlSource:
    """Read a YAML file; what is wrong with it as YAML is in the result's ``problems``."""
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=_Core)
        if root is None or root.tag == NULL:
            return _unreadable(path, "the file is empty")
        builder = _Builder(path)
        data = builder.build(root, ())
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        return _unreadable(path, "is not UTF-8 text", line)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        return _unreadable(path, _syntax(error), mark.line + 1 if mark else 1)
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        return _unreadable(path, f"has the character {chr(error.character)!r}, not allowed", line)
    except (OSError, ValueError, OverflowError) as error:
        return _unreadable(path, _unfit(error))
    return YamlSource(path, data, builder.lines, builder.written, tuple(builder.problems))


def _unfit(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"cannot be read: {(error.strerror or '').lower()}"
    return f"is not YAML: {error}"  # an escape that is no character


def _unreadable(path: Path, text: str, line: int = 1) -> YamlSource:
    return YamlSource(path, problems=(Problem(line, "", text),))


def _syntax(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "the file ends unexpectedly"
    if isinstance(error, TooMuch):
        return problem
    if "'\\t'" in problem:
        return "has a tab in the indentation; YAML allows only spaces"
    if "mapping values are not allowed" in problem:
        return "is not YAML: a second 'key:' in one line; quote text that contains ': '"
    if "another document" in problem:
        return "has a second YAML document (after '---'); allowed: one"
    context = f" ({error.context})" if error.context else ""
    return f"is not YAML: {problem}{context}"


def _too_deep(mark: yaml.Mark) -> TooMuch:
    return TooMuch(problem=f"values are nested more than {DEPTH} deep", problem_mark=mark)


class _Core(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2's core schema instead of 1.1's, DEPTH levels deep."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self._depth > DEPTH:
            raise _too_deep(self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


_Core.yaml_implicit_resolvers = {}
for _tag, _pattern in {
    "null": r"|~|null",
    "bool": r"true|false",
    "int": r"[-+]?[0-9]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?",
}.items():
    _Core.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})\\Z"), None)

_SCALARS: dict[str, Callable[[str], Any]] = {
    NULL: lambda text: None,
    "tag:yaml.org,2002:bool": lambda text: text == "true",
    "tag:yaml.org,2002:int": int,
    "tag:yaml.org,2002:float": float,
    "tag:yaml.org,2002:str": str,
}


class _Builder:
    """Turns YAML nodes into JSON types and notes the lines on the way."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[Loc, int] = {}
        self.written: dict[Loc, str] = {}
        self.problems: list[Problem] = []
        self._open: set[int] = set()
        self._seen: set[int] = set()
        self._repeated = 0

    def build(self, node: yaml.Node, loc: Loc) -> Any:
        # A value's line is its key's; the root and list items have none.
        self.lines.setdefault(loc, node.start_mark.line + 1)
        self._count(node, loc)
        if id(node) in self._open:
            self._problem(loc, "contains itself; write it out")
            return None
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return {key: self.build(value, (*loc, key)) for key, value in self._keys(node, loc)}
            if isinstance(node, yaml.SequenceNode):
                return [self.build(item, (*loc, index)) for index, item in enumerate(node.value)]
            return self._scalar(node, loc)
        finally:
            self._open.remove(id(node))

    def _count(self, node: yaml.Node, loc: Loc) -> None:
        """Raises TooMuch where aliases stand for more values, or deeper ones, than are written."""
        if len(loc) > DEPTH:
            raise _too_deep(node.start_mark)
        self._repeated += id(node) in self._seen
        self._seen.add(id(node))
        if self._repeated > REPEATED:
            text = f"aliases repeat more than {REPEATED} values; write out what is needed"
            raise TooMuch(problem=text, problem_mark=node.start_mark)

    def _keys(self, node: yaml.MappingNode, loc: Loc) -> Iterator[tuple[str, yaml.Node]]:
        seen: dict[Hashable, int] = {}
        for key_node, value in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(Problem(line, key_path(loc), "has a key that is not text"))
                continue
            key = key_node.value
            if key in seen:
                text = f"is given twice; the first one is in line {seen[key]}"
                self.problems.append(Problem(line, key_path((*loc, key)), text))
                continue
            seen[key] = line
            self.lines[(*loc, key)] = line
            yield key, value

    def _scalar(self, node: yaml.Node, loc: Loc) -> Any:
        convert = _SCALARS.get(node.tag)
        try:
            if convert is not None:
                value = convert(node.value)
                if isinstance(value, int | float) and node.value:
                    self.written[loc] = node.value
                return value
            text = f"has the tag {node.tag}; allowed: plain text, numbers, true and false"
        except ValueError:
            text = f"is {quoted(node.value)}, which its tag {node.tag} does not allow"
        self._problem(loc, text)
        return None

    def _problem(self, loc: Loc, text: str) -> None:
        self.problems.append(Problem(self.lines[loc], key_path(loc), text))
