"""The models that a profile can name: directories of ``models/``.

``model.json`` describes one, ``config.json`` is its Hugging Face configuration, and
``answers.json``, where there is one, holds questions whose answers are known.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator import paths
from orchestrator.errors import BadInput
from orchestrator.nearest import nearest

DESCRIPTION = "model.json"


@dataclass(frozen=True)
class Answer:
    """What the model must say, word for word, at temperature 0."""

    question: str
    answer: str


@dataclass(frozen=True)
class Model:
    """A model's small files; its weights are elsewhere."""

    name: str
    description: str
    directory: Path
    config: dict[str, Any]
    answers: list[Answer]


def known() -> list[str]:
    """The names of the checkout's models: NAME or OWNER/NAME."""
    shelf = _shelf()
    files = [*shelf.glob(f"*/{DESCRIPTION}"), *shelf.glob(f"*/*/{DESCRIPTION}")]
    return sorted(str(file.parent.relative_to(shelf)) for file in files)


def find(name: str) -> Model:
    """Read ``models/NAME``. Raises BadInput where it is unknown or one of its files is wrong."""
    if name not in known():
        raise BadInput(f"there is no models/{name}/{DESCRIPTION}", nearest(name, known()))
    directory = _shelf() / name
    answers = directory / "answers.json"
    return Model(
        name=name,
        description=str(_object(directory / DESCRIPTION).get("description", "")),
        directory=directory,
        config=_object(directory / "config.json"),
        answers=_answers(answers) if answers.is_file() else [],
    )


def _answers(path: Path) -> list[Answer]:
    found = _json(path)
    try:
        return [Answer(str(one["question"]), str(one["answer"])) for one in found]
    except (TypeError, KeyError):
        raise BadInput(
            f"{path}:1: does not hold questions with answers",
            'Allowed: [{"question": "...", "answer": "..."}, ...]',
        ) from None


def _object(path: Path) -> dict[str, Any]:
    found = _json(path)
    if not isinstance(found, dict):
        raise BadInput(f"{path}:1: does not hold an object", 'Allowed: {"key": value, ...}')
    return found


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise BadInput(f"{path}:{error.lineno}: is not JSON: {error.msg}") from None
    except UnicodeDecodeError:
        raise BadInput(f"{path}:1: is not UTF-8 text") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None


def _shelf() -> Path:
    return paths.checkout() / "models"
