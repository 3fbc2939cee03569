"""From a file to a checked profile, or to everything that is wrong with the file at once."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from orchestrator.core.errors import BadInput
from orchestrator.core.nearest import nearest
from orchestrator.profile.checks import CHECKS, Check, check
from orchestrator.profile.model import Profile
from orchestrator.profile.source import Loc, Problem, YamlSource, display, read
from orchestrator.profile.types import quoted


class ProfileError(BadInput):
    """A profile that cannot be used; ``problems`` are sorted by line."""

    def __init__(self, path: Path, problems: list[Problem]) -> None:
        self.path = path
        self.problems = problems
        super().__init__(
            "\n".join(message(path, problem) for problem in problems),
            "Every key is explained in docs/reference/profile.md.",
        )


def message(path: Path, problem: Problem) -> str:
    """``profiles/x.yml:12: serving.port: what is wrong; what is allowed``"""
    key = f" {problem.key}:" if problem.key else ""
    return f"{display(path)}:{problem.line}:{key} {problem.text}"


def load(path: Path, further: Sequence[Check] = ()) -> Profile:
    """Read and check a profile, by ``further`` checks too, which know more than profiles do.

    Raises ProfileError (a BadInput) with all that is wrong.
    """
    source = read(path)
    profile, found = _validate(source, further) if source.data is not None else (None, [])
    # What is wrong as YAML is not said again in other words.
    known = {problem.key for problem in source.problems}
    problems = sorted({*source.problems, *(one for one in found if one.key not in known)})
    if problems or profile is None:
        raise ProfileError(path, problems)
    profile._source = source
    return profile


def _validate(source: YamlSource, further: Sequence[Check]) -> tuple[Profile | None, list[Problem]]:
    profile: Profile | None = None
    problems: list[Problem] = []
    try:
        # As JSON: there, a strict model takes a list for a tuple, and still no text for a number.
        profile = Profile.model_validate_json(json.dumps(source.data))
        sections = {name: getattr(profile, name) for name in Profile.model_fields}
    except ValidationError as error:
        problems = [
            _explain(source, one)
            for one in error.errors(include_url=False)
            # pydantic counts only the right items: a list of wrong ones is not an empty list.
            if one["type"] != "too_short" or not one["input"]
        ]
        sections = dict(_valid_sections(source.data))
    sections["path"] = source.path
    problems += [source.problem(loc, text) for loc, text in check(sections, (*CHECKS, *further))]
    return profile, problems


def _valid_sections(data: Any) -> Iterator[tuple[str, Any]]:
    """The sections that are right in themselves, so that checks can still run on them.

    Those that may be left out, and were, have their defaults.
    """
    if not isinstance(data, dict):
        return
    for name, field in Profile.model_fields.items():
        if name not in data and not field.is_required():
            yield name, field.default
    hints = typing.get_type_hints(Profile, include_extras=True)
    for name in Profile.model_fields.keys() & data.keys():
        try:
            section = TypeAdapter(hints[name]).validate_json(json.dumps(data[name]), strict=True)
        except ValidationError:
            continue
        yield name, section


def _explain(source: YamlSource, error: ErrorDetails) -> Problem:
    loc: Loc = tuple(part for part in error["loc"] if part != "[key]")
    return source.problem(loc, _words(loc, error))


#: pydantic's kinds of errors, in our words.
WORDS = {
    "value_error": "{error}",
    "model_type": "{shown} is given; allowed here: lines of 'key: value'",
    "dict_type": "{shown} is given; allowed here: lines of 'key: value'",
    "tuple_type": "{shown} is given; allowed here: a list, each item behind a '-'",
    "string_type": "{shown} is not text; allowed: text, in double quotes",
    "bool_type": "{shown} does not fit; allowed: true or false",
    "int_type": "{shown} does not fit; allowed: a whole number",
    "float_type": "{shown} does not fit; allowed: a number",
    "greater_than_equal": "{shown} is too small; allowed: {ge} or more",
    "greater_than": "{shown} is too small; allowed: more than {gt:g}",
    "less_than_equal": "{shown} is too large; allowed: at most {le}",
    "literal_error": "{shown} does not fit; allowed: {expected}",
    "too_short": "is empty; allowed: one or more",
}


def _words(loc: Loc, error: ErrorDetails) -> str:
    if error["type"] == "missing":
        return f"is missing; {_description(loc)}"
    if error["type"] == "extra_forbidden":
        return f"unknown key; {nearest(str(loc[-1]), _known(loc[:-1]))}"
    words = WORDS.get(error["type"], "{shown} does not fit; " + error["msg"].lower())
    return words.format(shown=_shown(error["input"]), **error.get("ctx", {}))


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list) else quoted(value)


def _description(loc: Loc) -> str:
    """What the key at ``loc`` is for, in the model's words."""
    section = _type_at(loc[:-1])
    field = section.model_fields[str(loc[-1])] if _is_model(section) else None
    return (field.description if field else None) or "it is required"


def _known(loc: Loc) -> list[str]:
    section = _type_at(loc)
    return list(section.model_fields) if _is_model(section) else []


def _type_at(loc: Loc) -> Any:
    """The declared type of the value at ``loc``: a model, or whatever a dict or tuple holds."""
    at: Any = Profile
    for part in loc:
        at = at.model_fields[str(part)].annotation if _is_model(at) else _arguments(at)[-1]
        if type(None) in typing.get_args(at):  # a section that may be left out
            at = _arguments(at)[0]
    return at


def _arguments(at: Any) -> list[Any]:
    """The types that a dict, a tuple or a union is made of."""
    return [one for one in typing.get_args(at) if one not in (Ellipsis, type(None))]


def _is_model(at: Any) -> bool:
    return isinstance(at, type) and issubclass(at, BaseModel)
