"""What must agree between ``serving`` and other keys of a profile."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.core.nearest import nearest
from orchestrator.core.source import Loc
from orchestrator.profile.bench import Bench
from orchestrator.profile.model import LINK_KEYS, PLACEHOLDER, Network, Ray
from orchestrator.profile.serving import Serving

Found = Iterator[tuple[Loc, str]]


def placeholders_are_known(networks: dict[str, Network], ray: Ray, serving: Serving) -> Found:
    for section, env in (("ray", ray.env), ("serving", serving.env)):
        for name, value in env.items():
            loc = (section, "env", name)
            for match in PLACEHOLDER.finditer(value):
                if match[2] not in LINK_KEYS:
                    allowed = ", ".join(f"{{{key}}}" for key in LINK_KEYS)
                    yield loc, f"'{match[0]}' is not a placeholder; allowed: {allowed}"
                elif match[1] and match[1] not in networks:
                    yield loc, f"there is no network '{match[1]}'; {nearest(match[1], networks)}"


def caches_have_their_own_variables(ray: Ray, serving: Serving) -> Found:
    """A variable that is set twice would lead a program away from what is kept."""
    owners = dict.fromkeys(ray.env, "ray.env") | dict.fromkeys(serving.env, "serving.env")
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
    if named is None:
        allowed = f"allowed: {', '.join(known)}" if known else "add one to bench.workloads"
        text = f"auto needs serving.workload, the workload to choose for; {allowed}"
        yield ("serving", "layout"), text
    for key in ("tensor_parallel", "pipeline_parallel", "data_parallel"):
        size = getattr(serving, key)
        if key in serving.model_fields_set and size != "auto":
            text = f"{size} contradicts serving.layout: auto, which chooses it; remove one of both"
            yield ("serving", key), text
