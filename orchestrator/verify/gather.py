"""Look at nodes, Ray and the endpoint, through what the caller injects. Changes nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from pydantic import TypeAdapter

from orchestrator.core.errors import UserError
from orchestrator.core.run import Result
from orchestrator.models.catalog import Answer
from orchestrator.models.serving import Layout
from orchestrator.node.paths import PYTHON, RAY_ENV, VENV, WITH_ENVIRONMENT
from orchestrator.profile import Node, Profile
from orchestrator.profile.existing import Attached
from orchestrator.profile.hardware import Hardware
from orchestrator.provision.identity import HOST_KEY
from orchestrator.verify.facts import (
    Clock,
    Generated,
    HardwareFacts,
    NodeFacts,
    RankFacts,
    RayFacts,
)

#: Where the initrd records which image it booted.
IMAGE_ID = "/run/orchestrate/image-id"
#: Seconds that a node, Ray's control store, and the model may take to answer.
NODE_TIMEOUT = 60.0
RAY_TIMEOUT = 60.0
ANSWER_TIMEOUT = 120.0

#: (node, argv, stdin, timeout in seconds) -> what the command left there.
RunOn = Callable[["Node", Sequence[str], str | None, float], Result]


@dataclass(frozen=True)
class VerifyContext:
    """What verification is given: ways to reach the cluster, and what it should hold."""

    run_on: RunOn
    #: A client of the endpoint: base_url without /v1, the API key in its headers.
    http: Callable[[], httpx.Client]
    #: Entered first in every thread: the network that the cluster is reached over.
    network: Callable[[], AbstractContextManager[object]]
    #: By node, what 'up' would change.
    plan: Callable[[], Mapping[str, Sequence[str]]]
    #: By node, the units that have to run.
    units: Mapping[str, Sequence[str]]
    layout: Layout
    answers: Sequence[Answer]
    #: The id of the image that every node should have booted.
    image_id: str
    #: With several models: the same for each, in the order of the profile's `services`.
    each: tuple[VerifyContext, ...] = ()

    @property
    def services(self) -> tuple[VerifyContext, ...]:
        return self.each or (self,)


def node(
    context: VerifyContext, profile: Profile, node: Node, clock: Callable[[], float] = time.time
) -> tuple[NodeFacts, Clock]:
    """A node's facts, and its clock against ``clock`` at the middle of the round trip."""
    want = {
        "image_id_file": IMAGE_ID,
        "host_key_file": f"{HOST_KEY}.pub",
        "nodes": [other.name for other in profile.nodes],
        "accounts": [account.name for account in profile.users.accounts],
        "units": list(context.units.get(node.name, ())),
    }
    argv = [PYTHON, "-", json.dumps(want)]
    before = clock()
    out = _output(context, node, argv, _source("probe_node"), NODE_TIMEOUT)
    after = clock()
    facts = TypeAdapter(NodeFacts).validate_json(out)
    return facts, Clock(facts.time - (before + after) / 2, (after - before) / 2)


def hardware(context: VerifyContext, profile: Profile, node: Node) -> HardwareFacts:
    """What hardware a node has, of what the profile says it has to have."""
    kind = profile.hardware[node.hardware or ""]
    want = hardware_of(profile, node)
    argv = [WITH_ENVIRONMENT, f"{VENV}/bin/python", "-", json.dumps(want)]
    slow = sum(each.timeout_s for each in kind.commands)
    slow += kind.torch.timeout_s if kind.torch else 0
    out = _output(context, node, argv, _source("probe_hardware"), NODE_TIMEOUT + slow)
    return TypeAdapter(HardwareFacts).validate_json(out)


def hardware_of(profile: Profile, node: Node, layer: str = "") -> dict[str, Any]:
    """What is looked at on a node: all that its kind says, or a layer of it (hardware.LAYERS)."""
    kind = profile.hardware[node.hardware or ""]
    own = [node.links[name].interface for name in kind.links.keys() & node.links]
    want = hardware_want(kind, own)
    if not layer:
        return want
    if layer == "commands":
        return hardware_want(Hardware(commands=kind.commands), [])
    return want | {"torch": None, "commands": []}


def hardware_want(kind: Hardware, interfaces: Collection[str]) -> dict[str, Any]:
    """What ``probe_hardware.py`` is told to look at."""
    ids = {device.name: device.id for device in kind.pci}
    return {
        "pci": [
            *(device.id for device in kind.pci),
            *(each.upstream.id for each in kind.pci if each.upstream and each.upstream.id),
        ],
        "modules": kind.modules,
        "devices": kind.devices,
        "links": sorted(interfaces),
        "signs": [
            {"file": each.file, "matches": each.matches, "device": ids.get(each.device or "")}
            for each in kind.signs
        ],
        "level_zero": kind.level_zero is not None,
        "torch": kind.torch.model_dump() if kind.torch else None,
        "commands": [{"argv": each.argv, "timeout_s": each.timeout_s} for each in kind.commands],
    }


def ray(context: VerifyContext, profile: Profile) -> RayFacts:
    """Ray's nodes and the model's workers, from its control store."""
    head = f"{profile.ray_address(profile.control)}:{profile.ray.port}"
    argv = _in_ray_environment([f"{VENV}/bin/python", "-", head])
    out = _output(context, profile.control, argv, _source("probe_ray"), RAY_TIMEOUT)
    return TypeAdapter(RayFacts).validate_json(out)


def ranks(context: VerifyContext, profile: Profile) -> list[RankFacts]:
    """The processes that hold the model's ranks, on all compute nodes."""

    def on(node: Node) -> list[RankFacts]:
        with context.network():
            out = _output(context, node, [PYTHON, "-"], _source("probe_ranks"), NODE_TIMEOUT)
        titles = TypeAdapter(list[str]).validate_json(out)
        return [RankFacts(title, profile.ray_address(node)) for title in titles]

    with ThreadPoolExecutor(len(profile.compute_nodes)) as pool:
        return [each for found in pool.map(on, profile.compute_nodes) for each in found]


def ray_status(context: VerifyContext, profile: Profile) -> str:
    head = f"{profile.ray_address(profile.control)}:{profile.ray.port}"
    argv = _in_ray_environment([f"{VENV}/bin/ray", "status", "--address", head])
    return _output(context, profile.control, argv, None, RAY_TIMEOUT)


def models(client: httpx.Client) -> list[str]:
    document = _json(client.get("/v1/models", timeout=ANSWER_TIMEOUT))
    return [str(model["id"]) for model in document["data"]]


def status_without_key(client: httpx.Client) -> int:
    """The HTTP status that a request without the API key gets."""
    request = client.build_request("GET", "/v1/models", timeout=ANSWER_TIMEOUT)
    request.headers.pop("Authorization", None)
    return client.send(request).status_code


def ask(client: httpx.Client, profile: Profile | Attached, question: str) -> Generated:
    """The model's answer at temperature 0 with the profile's seed."""
    body = {
        "model": profile.serving.model,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "seed": profile.verification.seed,
        "max_tokens": profile.verification.max_tokens,
        "logprobs": True,
    }
    document = _json(client.post("/v1/chat/completions", json=body, timeout=ANSWER_TIMEOUT))
    choice = document["choices"][0]
    tokens = choice["logprobs"]["content"] or []
    return Generated(
        text=choice["message"]["content"] or "",
        finish_reason=str(choice["finish_reason"]),
        tokens=tuple(str(token["token"]) for token in tokens),
        logprobs=tuple(float(token["logprob"]) for token in tokens),
    )


def _output(
    context: VerifyContext, node: Node, argv: Sequence[str], stdin: str | None, timeout: float
) -> str:
    """The standard output; raises UserError where the command failed."""
    result = context.run_on(node, argv, stdin, timeout)
    if result.code != 0:
        said = (result.err.strip() or result.out.strip()).splitlines()
        last = said[-1] if said else "no output"
        raise UserError(f"{argv[0]} on {node.name}: exit code {result.code}: {last}")
    return result.out


def _in_ray_environment(argv: Sequence[str]) -> list[str]:
    """With the variables that Ray's units have, its token's place among them."""
    return ["/bin/sh", "-c", 'set -a; . "$0"; exec "$@"', RAY_ENV, *argv]


def _json(response: httpx.Response) -> Any:
    if response.status_code != httpx.codes.OK:
        # A proxy's error page is HTML, and says no more than the status does.
        is_page = response.text.lstrip().startswith("<")
        text = response.reason_phrase if is_page else response.text.strip()[:200]
        raise UserError(f"{response.request.url.path}: HTTP {response.status_code}: {text}")
    return response.json()


def _source(probe: str) -> str:
    return Path(__file__).with_name(f"{probe}.py").read_text(encoding="utf-8")
