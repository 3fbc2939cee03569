"""From a file to a checked profile, or to everything that is wrong with the file at once."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from orchestrator.core.document import DocumentError, validate
from orchestrator.core.errors import BadInput
from orchestrator.core.source import Problem, YamlSource, display, read
from orchestrator.profile import existing
from orchestrator.profile.checks import CHECKS, Check, check, name_is_the_files
from orchestrator.profile.choose import active_path
from orchestrator.profile.existing import EXISTING, Attached
from orchestrator.profile.model import Profile
from orchestrator.profile.section import WholeFile

HINT = "Every key is explained in docs/reference/profile.md."

_File = TypeVar("_File", bound=WholeFile)


class NotOurs(BadInput):
    """The profile is of a cluster that others run, and the command is for one that we run."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{display(path)}: this cluster is not ours (machines: {EXISTING}): orchestrate has no "
            "power, image or root there",
            "What works: orchestrate status, verify, ask, probe, plan --serving, bench, doctor.",
        )


def is_existing(path: Path) -> bool:
    """Whether the file is the profile of a cluster that others run."""
    return _is_existing(read(path))


def load(path: Path, further: Sequence[Check] = ()) -> Profile:
    """Read and check a profile, by ``further`` checks too, which know more than profiles do.

    Raises DocumentError with all that is wrong; NotOurs for a cluster that others run.
    """
    source = read(path)
    if _is_existing(source):
        raise NotOurs(path)
    return _loaded(Profile, source, (*CHECKS, *further))


def load_attached(path: Path) -> Attached:
    """Read and check the profile of a cluster that others run. Raises DocumentError."""
    return _loaded(Attached, read(path), (name_is_the_files, *existing.CHECKS))


def attached_profile(option: str | None) -> Attached | None:
    """The active profile, if it is of a cluster that others run. Raises BadInput if it is wrong."""
    path = active_path(option)
    return load_attached(path) if is_existing(path) else None


def _is_existing(source: YamlSource) -> bool:
    return isinstance(source.data, dict) and source.data.get("machines") == EXISTING


def _loaded(model: type[_File], source: YamlSource, checks: Sequence[Check]) -> _File:
    path = source.path
    profile, found = _validate(model, source, checks) if source.data is not None else (None, [])
    # What is wrong as YAML is not said again in other words.
    known = {problem.key for problem in source.problems}
    problems = sorted({*source.problems, *(one for one in found if one.key not in known)})
    if problems or profile is None:
        raise DocumentError(path, problems, HINT)
    profile._source = source
    return profile


def _validate(
    model: type[_File], source: YamlSource, checks: Sequence[Check]
) -> tuple[_File | None, list[Problem]]:
    profile, problems = validate(model, source)
    if profile:
        sections = {name: getattr(profile, name) for name in model.model_fields}
    else:
        sections = dict(_valid_sections(model, source.data))
    sections["path"] = source.path
    problems += [source.problem(loc, text) for loc, text in check(sections, checks)]
    return profile, problems


def _valid_sections(model: type[WholeFile], data: Any) -> Iterator[tuple[str, Any]]:
    """The sections that are right in themselves, so that checks can still run on them.

    Those that may be left out, and were, have their defaults.
    """
    if not isinstance(data, dict):
        return
    for name, field in model.model_fields.items():
        if name not in data and not field.is_required():
            yield name, field.default
    hints = typing.get_type_hints(model, include_extras=True)
    for name in model.model_fields.keys() & data.keys():
        try:
            section = TypeAdapter(hints[name]).validate_json(json.dumps(data[name]), strict=True)
        except ValidationError:
            continue
        yield name, section
