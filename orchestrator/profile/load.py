"""From a file to a checked profile, or to everything that is wrong with the file at once."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from orchestrator.core.document import DocumentError, validate
from orchestrator.core.source import Problem, YamlSource, read
from orchestrator.profile.checks import CHECKS, Check, check
from orchestrator.profile.model import Profile

HINT = "Every key is explained in docs/reference/profile.md."


def load(path: Path, further: Sequence[Check] = ()) -> Profile:
    """Read and check a profile, by ``further`` checks too, which know more than profiles do.

    Raises DocumentError with all that is wrong.
    """
    source = read(path)
    profile, found = _validate(source, further) if source.data is not None else (None, [])
    # What is wrong as YAML is not said again in other words.
    known = {problem.key for problem in source.problems}
    problems = sorted({*source.problems, *(one for one in found if one.key not in known)})
    if problems or profile is None:
        raise DocumentError(path, problems, HINT)
    profile._source = source
    return profile


def _validate(source: YamlSource, further: Sequence[Check]) -> tuple[Profile | None, list[Problem]]:
    profile, problems = validate(Profile, source)
    if profile:
        sections = {name: getattr(profile, name) for name in Profile.model_fields}
    else:
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
