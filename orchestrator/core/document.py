"""YAML (and JSON) files that people write: checked against a pydantic model, in our words.

What is wrong is said all at once, each with its line and key.
"""

from __future__ import annotations

import json
import re
import typing
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from orchestrator.core.errors import BadInput
from orchestrator.core.nearest import nearest
from orchestrator.core.source import Loc, Problem, YamlSource, display, quoted, read

_Model = TypeVar("_Model", bound=BaseModel)


class DocumentError(BadInput):
    """A file that cannot be used; ``problems`` are sorted by line."""

    def __init__(self, path: Path, problems: list[Problem], hint: str) -> None:
        self.path = path
        self.problems = problems
        super().__init__("\n".join(message(path, problem) for problem in problems), hint)


def message(path: Path, problem: Problem) -> str:
    """``profiles/x.yml:12: serving.port: what is wrong; what is allowed``"""
    key = f" {problem.key}:" if problem.key else ""
    return f"{display(path)}:{problem.line}:{key} {problem.text}"


def read_json(path: Path, hint: str = "") -> Any:
    """The content of a JSON file. Raises BadInput where it cannot be read, or is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise BadInput(f"{path}:{error.lineno}: is not JSON: {error.msg}", hint) from None
    except UnicodeDecodeError:
        raise BadInput(f"{path}:1: is not UTF-8 text", hint) from None
    except RecursionError:
        raise BadInput(f"{path}: values are nested too deep", hint) from None
    except ValueError as error:  # a number of thousands of digits
        raise BadInput(f"{path}: is not JSON: {error}", hint) from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}", hint) from None


def read_yaml(path: Path, hint: str = "") -> dict[str, Any]:
    """The keys of a YAML file that is checked elsewhere. Raises DocumentError where it is none."""
    source = read(path)
    if source.problems:
        raise DocumentError(path, sorted(source.problems), hint)
    return source.data if isinstance(source.data, dict) else {}


def load(model: type[_Model], path: Path, hint: str) -> _Model:
    """Read a file as ``model``. Raises DocumentError with all that is wrong, and the hint."""
    source = read(path)
    found, problems = validate(model, source) if not source.problems else (None, [])
    if found is None:
        raise DocumentError(path, sorted({*source.problems, *problems}), hint)
    return found


def validate(model: type[_Model], source: YamlSource) -> tuple[_Model | None, list[Problem]]:
    """The model built from a file's data, or all of its problems."""
    try:
        # As JSON: there, a strict model takes a list for a tuple, and still no text for a number.
        return model.model_validate_json(json.dumps(source.data)), []
    except ValidationError as error:
        return None, [
            _explain(model, source, one)
            for one in error.errors(include_url=False)
            # pydantic counts only the right items: a list of wrong ones is not an empty list.
            if one["type"] != "too_short" or not one["input"]
        ]


def _explain(model: type[BaseModel], source: YamlSource, error: ErrorDetails) -> Problem:
    loc: Loc = tuple(part for part in error["loc"] if part != "[key]")
    return source.problem(loc, _words(model, loc, error, source.written.get(loc)))


#: pydantic's kinds of errors, in our words.
WORDS = {
    "value_error": "{error}",
    "model_type": "{shown} is given; allowed here: lines of 'key: value'",
    "dict_type": "{shown} is given; allowed here: lines of 'key: value'",
    "tuple_type": "{shown} is given; allowed here: a list, each item behind a '-'",
    "string_type": "{shown} is not text; allowed: text, in double quotes",
    "bool_type": "{shown} is invalid; allowed: true or false",
    "int_type": "{shown} is invalid; allowed: a whole number",
    "float_type": "{shown} is invalid; allowed: a number",
    "greater_than_equal": "{shown} is too small; allowed: {ge} or more",
    "greater_than": "{shown} is too small; allowed: more than {gt:g}",
    "less_than_equal": "{shown} is too large; allowed: at most {le}",
    "literal_error": "{shown} is invalid; allowed: {expected}",
    "too_short": "is empty; allowed: one or more",
}


def _words(
    model: type[BaseModel], loc: Loc, error: ErrorDetails, written: str | None = None
) -> str:
    if error["type"] == "missing":
        return f"is missing; {_description(model, loc)}"
    if error["type"] == "extra_forbidden":
        return f"unknown key; {nearest(str(loc[-1]), _known(model, loc[:-1]))}"
    shown = quoted(written) if written else _shown(error["input"])
    if words := WORDS.get(error["type"]):
        said = words.format(shown=shown, **error.get("ctx", {}))
        return _as_yaml(said) if error["type"] == "literal_error" else said
    return f"{shown} is invalid; {error['msg'][0].lower()}{error['msg'][1:]}"


def _as_yaml(text: str) -> str:
    """Python's words for truth, as YAML writes them."""
    return re.sub(r"\b(?:True|False)\b", lambda found: found[0].lower(), text)


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list) else quoted(value)


def _description(model: type[BaseModel], loc: Loc) -> str:
    """What the key at ``loc`` is for, in the model's words."""
    section = _type_at(model, loc[:-1])
    field = section.model_fields[str(loc[-1])] if _is_model(section) else None
    return (field.description if field else None) or "it is required"


def _known(model: type[BaseModel], loc: Loc) -> list[str]:
    section = _type_at(model, loc)
    return list(section.model_fields) if _is_model(section) else []


def _type_at(model: type[BaseModel], loc: Loc) -> Any:
    """The declared type of the value at ``loc``: a model, or whatever a dict or tuple holds."""
    at: Any = model
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
