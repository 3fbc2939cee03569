"""The desired state of vLLM on a node: its unit, its variables, and what starts it.

Through Ray, only the first node of a copy has a unit: its server, whose ranks are Ray's actors. By
vLLM's own executor (`executor: mp`) each node that has ranks of the copy has one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from orchestrator.cluster import meet, on_nodes, wait_for_ray
from orchestrator.core.templating import render
from orchestrator.models.serving import Copy, Layout, vllm_argv
from orchestrator.node.firewall import IN_FORCE
from orchestrator.node.paths import (
    ETC,
    MODELS,
    RAY_ENV,
    RAY_TOKEN,
    VENV,
    VLLM_ENV,
    WITH_ENVIRONMENT,
)
from orchestrator.node.resources import File, Resource, Step, service

if TYPE_CHECKING:
    from orchestrator.cluster.context import Context
    from orchestrator.profile import Node, Profile

SERVER_UNIT = "vllm.service"
#: Ray's unit on compute nodes.
WORKER_UNIT = "ray-worker.service"
WAIT_FOR_RAY, MEET = f"{ETC}/wait_for_ray.py", f"{ETC}/meet.py"
#: Its files are read by vLLM at each start, and written by nobody else than the agent.
VLLM_CONFIG = f"{ETC}/vllm"
#: There, the names of variables that vLLM does not copy to its workers in Ray: they have no use for
#: the key, and each node's Ray would keep it.
KEPT_FROM_WORKERS = f"{VLLM_CONFIG}/ray_non_carry_over_env_vars.json"
#: Where Python finds the plugin that keeps a copy on its own nodes, and its name.
PLUGINS, ON_NODES = f"{ETC}/vllm-plugins", "orchestrate_on_nodes"
ENTRY_POINTS = f"[vllm.general_plugins]\n{ON_NODES} = {ON_NODES}:register\n"

#: Files, and the words that vLLM is started by.
Start = tuple[dict[str, str], list[str]]


def model_directory(profile: Profile) -> str:
    """Where the served model lies on compute nodes."""
    return f"{MODELS}/{profile.serving.model}"


def resources(profile: Profile, node: Node, copy: Copy, context: Context) -> Iterable[Resource]:
    """vLLM on a node of a copy: its server; or, with `executor: mp`, that node's ranks."""
    begin = _through_ray if profile.serving.by_ray else _by_itself
    files, start = begin(profile, node, copy, context)
    environment = {
        **({"RAY_ADDRESS": ray_head(profile)} if profile.serving.by_ray else {}),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        **profile.serving_env(node),
        **({"VLLM_API_KEY": context.api_key.reveal()} if copy.server is node else {}),
        "VLLM_CONFIG_ROOT": VLLM_CONFIG,
    }
    if f"{PLUGINS}/{ON_NODES}.py" in files:
        environment |= _on_its_nodes(profile, copy, context.layout, environment)
    yield File(Step.SERVING, VLLM_ENV, environment_file(environment), mode="0600", secret=True)
    read = [RAY_ENV, *([RAY_TOKEN] if profile.serving.by_ray else []), VLLM_ENV]
    unit = SERVER_UNIT
    text = render(
        unit,
        venv=VENV,
        user=profile.users.service,
        model=profile.serving.model,
        environments=[RAY_ENV, VLLM_ENV],
        firewall=IN_FORCE,
        worker=WORKER_UNIT if profile.serving.by_ray else None,
        argv=[
            WITH_ENVIRONMENT,
            *start,
            f"{VENV}/bin/vllm",
            *vllm_argv(profile, model_directory(profile), context.layout, node),
        ],
    )
    model = [f"{model_directory(profile)}/{file.path}" for file in context.model_files]
    files = {f"/etc/systemd/system/{unit}": text, **files}
    yield from service(Step.SERVING, unit, files, [*read, *model])


def _through_ray(profile: Profile, node: Node, copy: Copy, context: Context) -> Start:
    """vLLM's server starts when Ray has the accelerators of its copy."""
    files = {
        WAIT_FOR_RAY: _source(wait_for_ray),
        KEPT_FROM_WORKERS: f"{json.dumps(['VLLM_API_KEY'])}\n",
    }
    if copy.nodes != profile.whole.compute_nodes:
        about = f"{PLUGINS}/{ON_NODES}-1.dist-info"
        files |= {
            f"{PLUGINS}/{ON_NODES}.py": _source(on_nodes),
            f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {ON_NODES}\nVersion: 1\n",
            f"{about}/entry_points.txt": ENTRY_POINTS,
        }
    addresses = ",".join(profile.ray_address(each) for each in copy.nodes)
    start = [f"{VENV}/bin/python", WAIT_FOR_RAY, ray_head(profile)]
    return files, [*start, str(context.layout.ranks), addresses]


def _by_itself(profile: Profile, node: Node, copy: Copy, context: Context) -> Start:
    """vLLM starts when that of the copy's other nodes does; alone it needs nobody."""
    members = copy.members(context.layout.ranks)
    if len(members) == 1:
        return {}, []
    where = (profile.ray_address(copy.server), str(profile.serving.meeting_port))
    names = ",".join(each.name for each in members)
    rank = str(members.index(node))
    return {MEET: _source(meet)}, [f"{VENV}/bin/python", MEET, *where, rank, names]


def _on_its_nodes(
    profile: Profile, copy: Copy, layout: Layout, environment: Mapping[str, str]
) -> dict[str, str]:
    """What the plugin needs, beside what the profile says of plugins."""
    devices = copy.devices(layout.ranks)
    found = {
        "ORCHESTRATE_NODES": ",".join(profile.ray_address(node) for node in devices),
        "PYTHONPATH": ":".join([PLUGINS, *filter(None, [environment.get("PYTHONPATH")])]),
    }
    if chosen := environment.get("VLLM_PLUGINS"):
        found["VLLM_PLUGINS"] = f"{chosen},{ON_NODES}"
    return found


def _source(module: ModuleType) -> str:
    """The text of a program that is sent to nodes."""
    return Path(str(module.__file__)).read_text(encoding="utf-8")


def environment_file(variables: Mapping[str, str]) -> str:
    """Variables, for systemd and a shell."""
    return render("environment", variables=variables)


def ray_head(profile: Profile) -> str:
    """The address of Ray's head."""
    return f"{profile.ray_address(profile.control)}:{profile.ray.port}"
