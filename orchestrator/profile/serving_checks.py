"""What must agree between ``serving`` and other keys of a profile."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping

from orchestrator.core.nearest import nearest
from orchestrator.core.source import Loc, key_path
from orchestrator.profile.bench import Bench
from orchestrator.profile.model import LINK_KEYS, PLACEHOLDER, Network, Node, Ray
from orchestrator.profile.services import nodes_of
from orchestrator.profile.serving import Serving

Found = Iterator[tuple[Loc, str]]


def environments(ray: Ray, serving: Serving) -> dict[Loc, Mapping[str, str]]:
    """The variables of Ray and of each model, by their place in the profile."""
    models = {(*loc, "env"): each.env for loc, each in serving.entries.items()}
    return {("ray", "env"): ray.env, **models}


def placeholders_are_known(networks: dict[str, Network], ray: Ray, serving: Serving) -> Found:
    for section, env in environments(ray, serving).items():
        for name, value in env.items():
            loc = (*section, name)
            for match in PLACEHOLDER.finditer(value):
                if match[2] not in LINK_KEYS:
                    allowed = ", ".join(f"{{{key}}}" for key in LINK_KEYS)
                    yield loc, f"'{match[0]}' is not a placeholder; allowed: {allowed}"
                elif match[1] and match[1] not in networks:
                    yield loc, f"there is no network '{match[1]}'; {nearest(match[1], networks)}"


def caches_have_their_own_variables(ray: Ray, serving: Serving) -> Found:
    """A variable that is set twice would lead a program away from what is kept."""
    owners = {
        name: key_path(loc) for loc, env in environments(ray, serving).items() for name in env
    }
    kept = serving.compile_cache.directories if serving.compile_cache else ()
    for index, cache in enumerate(kept):
        loc: Loc = ("serving", "compile_cache", "directories", index)
        for name in (cache.variable, *cache.env):
            where = (*loc, "variable") if name == cache.variable else (*loc, "env", name)
            if name in owners:
                yield where, f"{name} is also set by {owners[name]}; set it once"
            owners[name] = f"serving.compile_cache.directories.{index}"


def layout_has_a_workload(serving: Serving, bench: Bench) -> Found:
    """``layout: auto`` chooses all sizes, for something."""
    known, named = list(bench.workloads), serving.workload
    if named is not None and named not in known:
        text = f"there is no bench.workloads.{named}; {nearest(named, known)}"
        yield ("serving", "workload"), text
    if serving.layout != "auto":
        return
    if serving.also or serving.nodes is not None:
        text = "auto is only for one model, on all compute nodes; give each model its sizes"
        yield ("serving", "layout"), text
    if named is None:
        allowed = f"allowed: {', '.join(known)}" if known else "add one to bench.workloads"
        text = f"auto needs serving.workload, the workload to choose for; {allowed}"
        yield ("serving", "layout"), text
    for key in ("tensor_parallel", "pipeline_parallel", "data_parallel"):
        size = getattr(serving, key)
        if key in serving.model_fields_set and size != "auto":
            text = f"{size} contradicts serving.layout: auto, which chooses it; remove one of both"
            yield ("serving", key), text


def models_have_names_of_their_own(serving: Serving) -> Found:
    """Clients choose a model by its name."""
    owners: dict[str, str] = {}
    for loc, each in serving.entries.items():
        if each.model in owners:
            text = f"'{each.model}' is also {owners[each.model]}; names must be unique"
            yield (*loc, "model"), text
        owners.setdefault(each.model, key_path((*loc, "model")))


def models_have_nodes_of_their_own(
    control: Node, compute_nodes: tuple[Node, ...], serving: Serving
) -> Found:
    """Each model has compute nodes, and shares none."""
    from orchestrator.core.nodeset import unfold  # what it imports takes longer than a profile

    known = [node.name for node in compute_nodes]
    owners: dict[str, str] = {}
    for loc, each in serving.entries.items():
        where = (*loc, "nodes")
        if each.nodes is None:
            if loc != ("serving",):
                text = "is missing; the compute nodes that the model is served on"
                yield where, f"{text}, like {known[-1]}"
            continue
        # A comma inside brackets is part of a name.
        parts = [unfold(part) for part in re.split(r",(?![^\[]*\])", each.nodes)]
        names = Counter(name for part in parts for name in part)
        for name in unfold(each.nodes):
            if name == control.name:
                yield where, f"{name} is the control node, which serves no model; leave it out"
            elif name not in known:
                yield where, f"there is no compute node '{name}'; {nearest(name, known)}"
            elif name in owners:
                yield where, f"{name} is also in {owners[name]}; a node serves one model"
            elif names[name] > 1:
                yield where, f"{name} is named {names[name]} times; name it once"
            owners.setdefault(name, key_path(where))
    if serving.nodes is None and not nodes_of(serving, compute_nodes)["serving",]:
        text = f"no compute node is left for {serving.model}: the other models have all of them"
        yield ("serving", "also"), f"{text}; leave one out"


def copies_divide_the_nodes(compute_nodes: tuple[Node, ...], serving: Serving) -> Found:
    """Each copy has as many nodes as any other."""
    for loc, nodes in nodes_of(serving, compute_nodes).items():
        wanted, count = serving.entries[loc].data_parallel, len(nodes)
        if wanted != "auto" and count % wanted:
            sizes = ", ".join(str(size) for size in range(1, count + 1) if count % size == 0)
            whose = "compute nodes" if nodes == compute_nodes else "nodes of the model"
            text = f"{wanted} does not divide the {count} {whose}; allowed: {sizes} or auto"
            yield (*loc, "data_parallel"), text
