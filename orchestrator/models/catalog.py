"""The models that a profile can name: directories of ``models/``, and those of the hub.

In a directory of ``models/``, ``model.json`` describes one, ``config.json`` is its Hugging Face
configuration, and ``answers.json``, where there is one, holds questions whose answers are known.
A model of the hub is named by the profile; its files are in the state directory, by commit.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from orchestrator.core import paths
from orchestrator.core.document import load, read_json
from orchestrator.core.errors import BadInput
from orchestrator.core.nearest import nearest
from orchestrator.models import wanted
from orchestrator.models.reading import sources

if TYPE_CHECKING:
    from orchestrator.profile.model import Profile

DESCRIPTION = "model.json"
CONFIG = "config.json"


HINT = "Keys: description, image (what Nix makes it with), training."


class Description(BaseModel):
    """model.json; ``image`` and ``training`` are for the build (models/default.nix)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str
    image: str = ""
    training: dict[str, float] = {}


@dataclass(frozen=True)
class Answer:
    """What the model must say at temperature 0: word for word, or (not ``whole``) among others."""

    question: str
    answer: str
    whole: bool = True


@dataclass(frozen=True)
class ModelFile:
    """A file of the served model: its path inside the model's directory, its size in bytes."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Model:
    """A model's small files; its weights are elsewhere.

    Of a model of the hub, ``repository`` and ``revision`` say which; ``config`` is empty as long
    as its files are not on this machine.
    """

    name: str
    description: str
    directory: Path
    config: dict[str, Any]
    answers: list[Answer]
    repository: str = ""
    revision: str = ""


def served(profile: Profile) -> Model:
    """The model that a profile serves. Raises BadInput as ``find`` does."""
    return named(profile, profile.serving.model)


def named(profile: Profile, name: str) -> Model:
    """A model by the name that a profile has for it. Raises BadInput as ``find`` does."""
    prompts = [Answer(one.question, one.contains, False) for one in profile.verification.prompts]
    hub = profile.models.get(name)
    if hub is None:
        model = find(name)
        return model if model.answers else replace(model, answers=prompts)
    revision = hub.revision or ""  # the served one has it in a profile that loads
    directory = paths.hub() / hub.repository / revision
    return Model(
        name=name,
        description=f"{hub.repository} at {revision}",
        directory=directory,
        config=hub_config(directory),
        answers=prompts,
        repository=hub.repository,
        revision=revision,
    )


def missing_files(model: Model) -> list[str]:
    """What a model of the hub lacks on this machine, to be served; empty where all is there."""
    if not any((model.directory / name).is_file() for name in (CONFIG, wanted.NATIVE_CONFIG)):
        return [CONFIG]
    names = {path.name for path in model.directory.iterdir() if path.is_file()}
    return lacking_weights(model.directory, names)


def lacking_weights(directory: Path, names: Collection[str]) -> list[str]:
    """Which weights are not among ``names``, by the directory's index of them, else by the names;
    of a model without any, those that vLLM would look for first."""
    form = wanted.format_of(names)
    if form is None:
        form = next((each for each in wanted.FORMATS if each.index in names), None)
    if form is None:
        return [wanted.FORMATS[0].pattern]
    if (directory / form.index).is_file():
        return wanted.indexed(directory / form.index, names, form)[1]
    return wanted.lacking_parts(wanted.weights(names, form))


def how_to_pin(name: str) -> str:
    """The command that prints the line which a model without a revision lacks."""
    return f"'orchestrate model pull {name}' pulls the newest commit and prints the line to add"


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
        description=load(Description, directory / DESCRIPTION, HINT).description,
        directory=directory,
        config=_object(directory / CONFIG),
        answers=_answers(answers) if answers.is_file() else [],
    )


def hub_config(directory: Path) -> dict[str, Any]:
    """config.json, or Mistral's params.json in its words, with the quantization, which may be in a
    file of its own; empty where there is neither."""
    return dict(sources.configuration(directory))


def _answers(path: Path) -> list[Answer]:
    found = read_json(path)
    try:
        return [Answer(str(one["question"]), str(one["answer"])) for one in found]
    except (TypeError, KeyError):
        raise BadInput(
            f"{path}:1: does not hold questions with answers",
            'Allowed: [{"question": "...", "answer": "..."}, ...]',
        ) from None


def _object(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if not isinstance(found, dict):
        raise BadInput(f"{path}:1: does not hold an object", 'Allowed: {"key": value, ...}')
    return found


def _shelf() -> Path:
    return paths.checkout() / "models"
