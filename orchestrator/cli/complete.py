"""What the Tab key offers: names of profiles, nodes, images and pages. An error offers nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click

from orchestrator.core.errors import UserError

#: (context, parameter, what is typed so far) -> words to choose from.
Offer = Callable[[click.Context, click.Parameter, str], list[str]]


def _offer(names: Callable[[click.Context], Iterable[str]]) -> Offer:
    def offered(context: click.Context, _parameter: click.Parameter, typed: str) -> list[str]:
        try:
            return [name for name in names(context) if name.startswith(typed)]
        except UserError:
            return []

    return offered


def _images(_context: click.Context) -> Iterable[str]:
    from orchestrator.image import spec

    return spec.names()


def _nodes(context: click.Context) -> Iterable[str]:
    from orchestrator.models.profiles import active
    from orchestrator.profile.load import attached_profile

    parameters: dict[str, Any] = context.params
    if theirs := attached_profile(parameters.get("profile")):
        return [node.name for node in theirs.nodes]
    return [node.name for node in active(parameters.get("profile")).nodes]


def _profiles(_context: click.Context) -> Iterable[str]:
    from orchestrator.profile import choose

    return choose.known()


def _models(context: click.Context) -> Iterable[str]:
    from orchestrator.models.profiles import active

    return active(context.params.get("profile")).models


def _topics(_context: click.Context) -> Iterable[str]:
    from orchestrator.cli import pages

    return [page.topic for page in pages.pages()]


images, nodes = _offer(_images), _offer(_nodes)
models, profiles, topics = _offer(_models), _offer(_profiles), _offer(_topics)
