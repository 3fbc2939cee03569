"""A profile of several models, as a profile for each.

What is about one model (its layout, its room, its forecasts) takes a profile whose ``serving`` is
that model's and whose compute nodes are those that serve it. What is about the whole cluster goes
over all of these.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from orchestrator.core.errors import BadInput
from orchestrator.core.nearest import nearest
from orchestrator.profile.serving import Served, Serving

if TYPE_CHECKING:
    from orchestrator.core.source import Loc
    from orchestrator.profile import Node, Profile

#: The keys that each model has of its own.
OWN = tuple(Served.model_fields)


def services(profile: Profile) -> tuple[Profile, ...]:
    """A profile for each model, the first one's first; the profile itself where one model is on
    all compute nodes."""
    nodes = nodes_of(profile.serving, profile.compute_nodes)
    if list(nodes.values()) == [profile.compute_nodes]:
        return (profile,)
    return tuple(_view(profile, loc, nodes[loc]) for loc in profile.serving.entries)


def nodes_of(serving: Serving, compute_nodes: Iterable[Node]) -> dict[Loc, tuple[Node, ...]]:
    """The nodes of each model, in the profile's order, by the model's place in the profile."""
    named = {loc: _named(each) for loc, each in serving.entries.items()}
    taken = {name for names in named.values() for name in names or ()}
    return {
        loc: tuple(
            node
            for node in compute_nodes
            if (node.name in names if names is not None else node.name not in taken)
        )
        for loc, names in named.items()
    }


def of_node(profile: Profile, node: Node) -> Profile | None:
    """The profile of the model that a compute node serves; None where it serves none."""
    return next((each for each in services(profile) if node in each.compute_nodes), None)


def of_model(profile: Profile, name: str) -> Profile:
    """The profile of a model. Raises BadInput where none has that name."""
    known = {each.serving.model: each for each in services(profile)}
    if name not in known:
        raise BadInput(f"{profile.name} serves no model '{name}'", nearest(name, known))
    return known[name]


def _named(served: Served) -> list[str] | None:
    from orchestrator.core.nodeset import unfold  # what it imports takes longer than a profile

    return None if served.nodes is None else unfold(served.nodes)


def _view(profile: Profile, loc: Loc, nodes: tuple[Node, ...]) -> Profile:
    served = profile.serving.entries[loc]
    own = {key: getattr(served, key) for key in OWN}
    serving = profile.serving.model_copy(update={**own, "also": ()})
    view = profile.model_copy(update={"serving": serving, "compute_nodes": nodes})
    view._whole = profile
    view._moved = {("serving", key): (*loc, key) for key in OWN}
    return view
