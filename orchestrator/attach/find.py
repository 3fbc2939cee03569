"""Ask the endpoint and every node, all at once, and put together what they say."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from orchestrator.attach import collectives
from orchestrator.attach import endpoint as endpoints
from orchestrator.attach import ray as rays
from orchestrator.attach.endpoint import EndpointFacts
from orchestrator.attach.facts import (
    WORKER,
    EngineProcess,
    MachineFacts,
    apart,
    of_model,
    of_ranks,
    public,
)
from orchestrator.attach.flags import Flags
from orchestrator.attach.ray import RayCluster
from orchestrator.attach.reach import NodeShell, NotReached, source
from orchestrator.core.errors import BadInput, UserError
from orchestrator.core.visible import one_line
from orchestrator.performance.bench.accelerators import TABLES
from orchestrator.profile.existing import AttachedNode, Endpoint
from orchestrator.verify.facts import Clock

#: Commands that enter a container of a kind, before its name.
ENTER = {"docker": ("docker", "exec", "-i"), "podman": ("podman", "exec", "-i")}
#: What is taken for a program's path.
NAMES = re.compile(r"/[\w./+-]{1,500}")
#: Seconds for a container's name.
NAME_TIMEOUT = 20
#: Flags that predictions do not know.
UNPREDICTED = (
    "speculative-config",
    "kv-transfer-config",
    "decode-context-parallel-size",
    "prefill-context-parallel-size",
    "cpu-offload-gb",
    "enable-lora",
    "enable-dbo",
    "enable-eplb",
)


@dataclass(frozen=True)
class NodeFound:
    """A node, and what it said. ``facts`` is None, and ``error`` the reason, if it said nothing."""

    node: AttachedNode
    facts: MachineFacts | None = None
    clock: Clock | None = None
    error: str = ""
    unknown: tuple[str, ...] = ()

    def of(self, model: str, url: str) -> NodeFound:
        """The same, without the engines of other models, or behind other ports."""
        parts = urlsplit(url)
        port = parts.port or {"https": 443}.get(parts.scheme, 80)
        return replace(self, facts=of_model(self.facts, model, port)) if self.facts else self


@dataclass(frozen=True)
class ClusterFound:
    """All that was found."""

    endpoint: Endpoint
    model: str
    said: EndpointFacts
    nodes: tuple[NodeFound, ...]
    unknown: tuple[str, ...] = field(default=())
    ray: RayCluster | None = None

    @property
    def servers(self) -> list[tuple[NodeFound, EngineProcess]]:
        """Servers of this model; without one of its name, all servers."""
        every = [
            (node, engine) for node in self.nodes if node.facts for engine in node.facts.servers
        ]
        named = [(n, e) for n, e in every if e.flags and self.model in e.flags.names]
        return named or every

    @property
    def flags(self) -> Flags | None:
        """The flags of the server that the endpoint is, as far as that can be told."""
        heads = [e.flags for _, e in self.servers if e.flags and "headless" not in e.flags.given]
        return heads[0] if heads else None

    @property
    def facts(self) -> list[MachineFacts]:
        return [each.facts for each in self.nodes if each.facts]

    def ranks(self, node: NodeFound) -> int:
        """The ranks on a node: as its processes show them, else as Ray says."""
        if node.facts is None or node.facts.ranks or self.ray is None:
            return len(node.facts.ranks) if node.facts else 0
        job = rays.job_of(self.ray, self.facts)
        return len(self.ray.on(node.facts, self.ray.of_job(job))) if job else 0

    def document(self) -> dict[str, Any]:
        return {
            "endpoint": self.endpoint.model_dump(mode="json"),
            "model": self.model,
            "said": asdict(self.said),
            "nodes": [
                {
                    "node": each.node.model_dump(mode="json"),
                    "facts": asdict(each.facts) if each.facts else None,
                    "ranks": each.facts.ranks if each.facts else [],
                    "versions": each.facts.versions if each.facts else {},
                    "clock": asdict(each.clock) if each.clock else None,
                    "error": each.error,
                    "unknown": each.unknown,
                }
                for each in self.nodes
            ],
            "ray": asdict(self.ray) if self.ray else None,
            "unknown": list(self.unknown),
        }


def find(
    endpoint: Endpoint, hosts: Sequence[AttachedNode], model: str | None, base: Path
) -> ClusterFound:
    """Ask all of them. Raises UserError if the endpoint does not answer as vLLM's.

    A node that does not answer is part of what was found.
    """
    with ThreadPoolExecutor(max(1, len(hosts))) as pool:
        asked = [pool.submit(ask_node, host, search=True) for host in hosts]
        with endpoints.client(endpoint, base) as client:
            said = endpoints.find(client)
        nodes = tuple(each.result() for each in asked)
    chosen = _chosen(said, model)
    mine = tuple(known(each.of(chosen, endpoint.url)) for each in nodes)
    found = ClusterFound(endpoint, chosen, said, mine, ray=of_ray(mine))
    return replace(found, unknown=tuple(_unknown(found)))


def of_ray(nodes: Sequence[NodeFound]) -> RayCluster | None:
    """What Ray says of these nodes; None without Ray, or where the ranks are not Ray's: what else
    runs on a machine is nobody's business here."""
    workers = [e.title for each in nodes for e in (each.facts.engines if each.facts else ())]
    workers = [title for title in workers if WORKER.match(title)]
    if workers and not any(title.startswith("ray::") for title in workers):
        return None
    return rays.ask((each.node, each.facts) for each in nodes if each.facts)


def known(found: NodeFound) -> NodeFound:
    """The node with what its facts say of it: its ranks' address, and the engine's Python."""
    facts = found.facts
    if facts is None:
        return found
    pythons = [each.python for each in facts.engines if each.python]
    address, engine = of_ranks(facts), next(filter(NAMES.fullmatch, pythons), None)
    more = {"address": IPv4Address(address) if address else None, "engine": engine}
    return replace(found, node=found.node.model_copy(update=more))


def _chosen(said: EndpointFacts, wanted: str | None) -> str:
    """The model that is meant. Raises BadInput where that is not clear."""
    told = ", ".join(map(one_line, said.models))
    if wanted is None and len(said.models) > 1:
        raise BadInput(
            f"the endpoint serves {len(said.models)} models: {told}", "Add --model NAME."
        )
    if wanted is not None and wanted not in said.models:
        raise BadInput(f"the endpoint does not serve {wanted!r}", f"It serves: {told}.")
    model = wanted or said.models[0]
    if one_line(model) != model or len(model) > 500:
        raise UserError("the name of the endpoint's model has control characters, or is too long")
    return model


def ask_node(node: AttachedNode, *, search: bool = False) -> NodeFound:
    """Ask a node; an error is part of the answer. ``search``: also how to enter a container."""
    reach = NodeShell(node)
    try:
        outside, clock = _asked(reach, inside=False)
    except NotReached as error:
        if not node.enter:
            return NodeFound(node, error=str(error))
        outside, clock = None, None
    except UserError as error:
        return NodeFound(node, error=str(error))
    if search and outside and not node.enter and outside.container:
        reach = NodeShell(node.model_copy(update={"enter": _entrance(reach, outside.container)}))
    if not reach.node.enter:
        return NodeFound(node, outside, clock, unknown=tuple(_shut(outside)) if outside else ())
    try:
        inside, its_clock = _asked(reach, inside=True)
    except UserError as error:
        if node.enter:  # the user says so
            return NodeFound(node, error=str(error))
        return NodeFound(node, outside, clock, unknown=(f"its container: {error.message}",))
    return NodeFound(reach.node, merged(outside, inside), clock or its_clock)


def _asked(reach: NodeShell, *, inside: bool) -> tuple[MachineFacts, Clock]:
    before = time.time()
    program = source("node_facts", "node_hardware", "node_log")
    facts = reach.ask(program, MachineFacts, json.dumps(TABLES), inside=inside)
    after = time.time()
    return facts, Clock(facts.time - (before + after) / 2, (after - before) / 2)


def merged(outside: MachineFacts | None, inside: MachineFacts) -> MachineFacts:
    """A machine and the container in it: vLLM's processes as the container shows them."""
    if outside is None:
        return inside
    return replace(
        outside,
        engines=inside.engines or outside.engines,
        accelerators=outside.accelerators or inside.accelerators,
        log=inside.log if inside.log.lines else outside.log,
        unknown=[each for each in outside.unknown if not inside.engines] + inside.unknown,
    )


def _entrance(reach: NodeShell, container: str) -> tuple[str, ...]:
    """The command that enters a container, by its name where it tells one; () if none is known."""
    kind, _, name = container.partition(" ")
    if kind not in ENTER:
        return ()
    import io

    from orchestrator.core.run import captured

    argv = reach.argv([kind, "inspect", "--format", "{{.Name}}", name], inside=False)
    said = io.BytesIO()
    try:
        captured(argv, said, limit=1000, timeout=NAME_TIMEOUT, what="a container's name")
    except UserError:
        return ()
    told = said.getvalue().decode(errors="replace").strip().removeprefix("/")
    return (*ENTER[kind], told if re.fullmatch(r"[A-Za-z0-9][\w.-]*", told) else name)


def _shut(facts: MachineFacts) -> Iterator[str]:
    """What a container hides, if none of its processes could be read."""
    closed = [each for each in facts.engines if each.versions is None]
    if facts.container and closed:
        yield (
            f"vLLM runs in a container ({facts.container}) that this user cannot enter; name the "
            "command that does: --enter"
        )


def _unknown(found: ClusterFound) -> Iterator[str]:
    """What could not be told, and what does not fit together."""
    yield from found.said.unknown
    answering = [each for each in found.nodes if each.facts]
    for each in answering:
        for text in (*(each.facts.unknown if each.facts else ()), *each.unknown):
            yield f"{each.node.name}: {text}"
    if answering and not found.servers:
        yield "the server: no process of 'vllm serve' was seen on these nodes"
    flags = found.flags
    if flags:
        yield from flags.unread
        if found.model not in flags.names:
            yield f"the server: none has the model's name {found.model}; a router in front?"
        for name in UNPREDICTED:
            if name in flags.given:
                yield f"predictions: they do not know --{name}"
    yield from _layout(found, answering)
    yield from collectives.missing(found.facts)
    if found.ray:
        silent = len(answering) < len(found.nodes)
        yield from rays.missing(found.ray, found.facts, silent=silent)
    versions = {each.node.name: each.facts.versions for each in answering if each.facts}
    yield from (f"versions differ: {line}" for line in apart(versions))
    engine = {each["vllm"] for each in versions.values() if "vllm" in each}
    if found.said.version and engine and public(found.said.version) not in map(public, engine):
        told = ", ".join(sorted(engine))
        yield f"the version: the endpoint says vLLM {found.said.version}, the nodes have {told}"


def _layout(found: ClusterFound, answering: Sequence[NodeFound]) -> Iterator[str]:
    if not found.flags:
        if found.nodes:
            yield "the layout: taken as one accelerator, for want of the server's flags"
        else:
            yield "machines, layout and flags: no node was named (--node HOST)"
        return
    wanted = found.flags.tensor * found.flags.pipeline * found.flags.data
    seen = sum(map(found.ranks, answering))
    same = _same_processes(answering)
    if same:
        yield (
            f"ranks: {' and '.join(same)} show the same processes: one machine by two names, or "
            "containers that share its process ids; each rank is counted on both"
        )
    elif seen != wanted:
        hint = "is a node missing (--node HOST)?" if seen < wanted else "is there another engine?"
        yield f"ranks: the flags make {wanted}, on these nodes {seen} were seen; {hint}"


def _same_processes(answering: Sequence[NodeFound]) -> list[str]:
    """The first nodes that see each other's processes."""
    by: dict[str, list[str]] = {}
    for each in answering:
        if each.facts and each.facts.processes:
            by.setdefault(each.facts.processes, []).append(each.node.name)
    return next((names for names in by.values() if len(names) > 1), [])


def told(found: ClusterFound) -> Iterator[str]:
    """What was found, a line each, for people."""
    said = found.said
    version = f"vLLM {said.version}" if said.version else "version unknown"
    length = f", context {said.context} tokens" if said.context else ""
    yield f"endpoint {found.endpoint.url}: {version}, serves {', '.join(said.models)}{length}"
    key = "needs a key" if said.without_key in (401, 403) else "answers anybody, without a key"
    yield f"endpoint: {key}"
    if found.flags:
        flags = found.flags
        yield (
            f"layout: tensor {flags.tensor}, pipeline {flags.pipeline}, data {flags.data}"
            f"{', expert parallel' if flags.expert else ''}"
        )
        if flags.speed:
            yield f"flags: {shlex.join(f'{name}={value}' for name, value in flags.speed.items())}"
    for each in found.nodes:
        if each.facts is None:
            yield f"{each.node.name}: no answer: {each.error.splitlines()[0]}"
            continue
        yield from (f"{each.node.name}: {line}" for line in _told(each.facts))
    if found.ray:
        yield from (f"Ray {line}" for line in rays.told(found.ray))


def _told(facts: MachineFacts) -> Iterator[str]:
    yield (
        f"{facts.hostname}, {facts.processors} processors, {facts.memory_bytes / 2**30:.0f} GiB, "
        f"kernel {facts.kernel}"
    )
    for card in facts.accelerators:
        size = f", {card.memory_bytes / 2**30:.0f} GiB" if card.memory_bytes else ""
        link = f", PCIe {card.link_speed} x{card.link_width}" if card.link_width else ""
        name = f"{card.vendor} {card.name.removeprefix(card.vendor).strip()}"
        between = f", {card.links}" if card.links else ""
        yield f"{name} at {card.place}{size}{link}{between}"
    for each in facts.addresses:
        speed = f", {each.speed} Mb/s" if each.speed else ""
        yield f"{each.interface} {each.address}{speed}, MTU {each.mtu}"
    if facts.rdma:
        yield f"RDMA: {', '.join(each.told for each in facts.rdma)}"
    yield from collectives.told(facts)
    if facts.ranks:
        count = len(facts.ranks)
        yield f"{count} rank{'s' * (count != 1)}: {', '.join(facts.ranks)}"
    if facts.container:
        yield f"vLLM runs in a container: {facts.container}"
    if facts.versions:
        yield ", ".join(f"{name} {version}" for name, version in sorted(facts.versions.items()))
    if facts.ray:
        yield f"Ray's processes: {', '.join(each[0] for each in facts.ray if each)}"
