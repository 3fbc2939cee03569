"""Profiles, checked also against what they name: images, models, vLLM's flags and variables.

Each command opens its profile here; ``orchestrator.profile`` checks one against itself only.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.core.errors import BadInput
from orchestrator.core.nearest import nearest
from orchestrator.core.source import key_path
from orchestrator.image import spec
from orchestrator.models import catalog, flags
from orchestrator.profile import choose
from orchestrator.profile.checks import Check, Found
from orchestrator.profile.load import load as load_alone
from orchestrator.profile.model import Ray
from orchestrator.profile.serving import HubModel, Serving
from orchestrator.profile.serving_checks import environments
from orchestrator.profile.verification import Verification

if TYPE_CHECKING:
    from orchestrator.profile import Profile


def active(option: str | None = None, *, pinned: bool = True) -> Profile:
    """The profile that ``--profile``, the environment or ``profile use`` names, in this order.

    Raises BadInput where none does, where the named one does not exist, or as ``load`` does.
    """
    return load(choose.active_path(option), pinned=pinned)


def load(path: Path, *, pinned: bool = True) -> Profile:
    """Read and check a profile. Raises DocumentError (a BadInput) with all that is wrong.

    Not ``pinned``: the served model may lack its commit, for the command that finds it.
    """
    return load_alone(path, (*CHECKS, *((served_model_is_pinned,) if pinned else ())))


def how_to_pull(profile: Profile) -> str:
    """The command that brings the profile's model, as it has to be typed on this machine."""
    named = shlex.quote(choose.named(profile.path))
    words = f"orchestrate model pull {profile.serving.model}"
    return words if choose.is_active(profile.path) else f"{words} --profile {named}"


def config_of(profile: Profile) -> dict[str, Any]:
    """The served model's config.json. Raises BadInput where the model is not on this machine."""
    model = catalog.served(profile)
    if model.repository and not model.config:
        raise BadInput(
            f"{profile.where('serving', 'model')}: {model.name} is not on this machine yet",
            f"Run: {how_to_pull(profile)}",
        )
    return dict(model.config)


def image_is_known(image: str) -> Found:
    images = spec.names()
    if image not in images:
        yield ("image",), f"there is no images/{image}/image.yml; {nearest(image, images)}"


def model_is_known(serving: Serving, models: dict[str, HubModel]) -> Found:
    known = [*models, *catalog.known()]
    for loc, each in serving.entries.items():
        if each.model not in known:
            text = f"there is no directory models/{each.model} and no key models.{each.model}"
            yield (*loc, "model"), f"{text}; {nearest(each.model, known)}"


def served_model_is_pinned(serving: Serving, models: dict[str, HubModel]) -> Found:
    for loc, each in serving.entries.items():
        chosen = models.get(each.model)
        if chosen and not chosen.revision:
            needs = f"is missing, but {key_path((*loc, 'model'))} needs it"
            yield ("models", each.model, "revision"), f"{needs}; {catalog.how_to_pin(each.model)}"


def first_model_is_known(verification: Verification, models: dict[str, HubModel]) -> Found:
    first, known = verification.first_model, [*models, *catalog.known()]
    if first and first not in known:
        text = f"there is no key models.{first} and no directory models/{first}"
        yield ("verification", "first_model"), f"{text}; {nearest(first, known)}"


def hub_models_have_names_of_their_own(models: dict[str, HubModel]) -> Found:
    for name in models.keys() & set(catalog.known()):
        yield ("models", name), "is also a directory of models/; give it another name"


def flags_are_free(serving: Serving) -> Found:
    for loc, each in serving.entries.items():
        seen: dict[str, str] = {}
        for key in each.args:
            flag = flags.flag_name(key)
            if instead := flags.managed(flag):
                yield (*loc, "args", key), f"cannot be set here; {instead}"
            elif flag in seen:
                yield (*loc, "args", key), f"is the same flag as '{seen[flag]}'; keep one"
            seen[flag] = key


def variables_are_free(ray: Ray, serving: Serving) -> Found:
    for section, env in environments(ray, serving).items():
        for name in env:
            loc = (*section, name)
            if name in flags.MANAGED_VARIABLES:
                text = "'orchestrate up' sets it and generates the secrets; no profile contains any"
                yield loc, f"cannot be set here; {text}"
    caches = serving.compile_cache.directories if serving.compile_cache else ()
    for index, cache in enumerate(caches):
        if managed := flags.MANAGED_VARIABLES.intersection((cache.variable, *cache.env)):
            where = ("serving", "compile_cache", "directories", index)
            yield where, f"{min(managed)} cannot be set here; 'orchestrate up' sets it"


CHECKS: tuple[Check, ...] = (
    image_is_known,
    model_is_known,
    first_model_is_known,
    hub_models_have_names_of_their_own,
    flags_are_free,
    variables_are_free,
)
