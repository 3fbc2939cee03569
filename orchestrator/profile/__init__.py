"""A cluster as data: one YAML file, checked once and frozen.

Read in this order: ``model`` and ``hardware`` (what a profile says), ``types`` (single values),
``source`` (YAML with line numbers), ``checks`` (what must agree), ``load`` (all of it, with
messages), ``choose`` (which profile is the active one), ``schema`` (for editors and the
reference). What models and vLLM have to say is checked above: ``orchestrator.models.profiles``.

Only ``choose`` is imported at once: the rest needs pydantic, which ``--help`` must not wait for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from orchestrator.profile.choose import known, locate, use

if TYPE_CHECKING:
    from orchestrator.profile.model import Account, Boot, Link, Network, Node, Profile, Ray, Users
    from orchestrator.profile.serving import Serving
    from orchestrator.profile.verification import Verification

__all__ = [
    "Account",
    "Boot",
    "Link",
    "Network",
    "Node",
    "Profile",
    "Ray",
    "Serving",
    "Users",
    "Verification",
    "known",
    "locate",
    "use",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.model"), name)
