"""`probe --only engine` of a cluster that others run: the engine that serves, or one that is
started for it, with dummy weights, from a config.json alone."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any

import httpx

from orchestrator.attach import endpoint as endpoints
from orchestrator.attach.engine_start import Begun, EngineFailed, started, words_of
from orchestrator.attach.find import NodeFound, ask_node
from orchestrator.attach.probe import TheirNode
from orchestrator.core.errors import BadInput, UserError
from orchestrator.core.progress import CLUSTER, Board
from orchestrator.core.visible import one_line
from orchestrator.models.reading.shorter import shorter
from orchestrator.performance.bench import client as clients
from orchestrator.performance.bench.load import workloads
from orchestrator.performance.predict import inputs
from orchestrator.performance.predict.load import limits
from orchestrator.performance.probe import cut, engine
from orchestrator.performance.probe.cells import SmallLoad, cells
from orchestrator.performance.probe.node_rounds import (
    Load,
    TimedRequest,
    Unanswered,
    completion,
    kept_up,
    measured,
    room,
)
from orchestrator.performance.probe.plan import sizes
from orchestrator.performance.probe.run import STATE_TIMEOUT, link_rates
from orchestrator.performance.results.engine import EngineRates, EngineWeights
from orchestrator.profile.existing import RANKS_NETWORK, Attached, AttachedNode

#: A card with more of its memory in use than this share is somebody's.
IN_USE = 0.1
#: The most pairs of nodes to measure links of.
MOST_PAIRS = 6


def live(
    profile: Attached, board: Board, seconds: float, *, again: bool
) -> tuple[EngineRates, bool]:
    """The engine that serves, through its endpoint; and whether it was known already."""
    seen = _looked(profile.nodes)
    nodes = tuple(node for node in profile.nodes if node.ranks) or profile.nodes
    versions = {k: v for each in seen.values() for k, v in _versions(each).items()}
    with endpoints.client_of(profile) as client:
        said = endpoints.find(client)
    if said.version:
        versions.setdefault("vllm", said.version)
    try:
        links = inputs.probes(profile.name).links
    except UserError:
        links = ()
    link = engine.slowest(links, [node.name for node in nodes])
    begun = _begun(profile, nodes, seen, versions, EngineWeights.OWN, link, said.roots)
    if not again and (before := engine.known(profile.name, begun.rates.key)):
        return before, True
    with board.step(CLUSTER, "engine") as step, endpoints.client_of(profile) as client:
        known = clients.vocabulary(client, profile.serving.model)
        if not known:
            raise UserError("the endpoint takes no tokens as prompts: their length is not known")
        found = _through(profile, begun.loads, known, seconds, partial(board.note, CLUSTER))
        found["kv_tokens"] = room(endpoints.metrics_page(client))
        step.detail = f"{len(found['cells'])} loads"
    return engine.with_figures(begun.rates, found), False


def _through(
    profile: Attached,
    loads: Sequence[SmallLoad],
    known: Sequence[int],
    seconds: float,
    say: Any,
) -> dict[str, Any]:
    """Figures by the client that `bench run` uses too."""
    chance = random.Random(time.time_ns())

    async def all_of_it() -> dict[str, Any]:
        async with endpoints.for_load(profile) as client:
            wave = partial(_wave, client, profile.serving.model, known, chance)
            found, notes = await measured(words_of(loads), wave, seconds, say)
        return {"cells": [{"load": c.load, "rounds": c.rounds} for c in found], "notes": notes}

    try:
        return asyncio.run(all_of_it())
    except Unanswered as error:
        raise UserError(
            f"the endpoint refused a load: {one_line(str(error))}",
            "Run: orchestrate verify; orchestrate status",
        ) from None


async def _wave(
    client: httpx.AsyncClient,
    model: str,
    known: Sequence[int],
    chance: random.Random,
    load: Load,
) -> list[TimedRequest]:
    def ask() -> dict[str, Any]:
        return completion(model, clients.prompt(known, load[0], chance), load[1])

    async def stream(asked: dict[str, Any]) -> TimedRequest:
        start = time.perf_counter()
        found = await clients.stream(client, asked)
        if found.error:
            raise Unanswered(found.error)
        return TimedRequest(start, found.arrivals, found.tokens)

    return await kept_up(load, ask, stream)


def dummy(
    profile: Attached,
    board: Board,
    config: Mapping[str, Any],
    seconds: float,
    *,
    depths: Sequence[int] = (),
    again: bool,
    force: bool,
) -> tuple[EngineRates, bool]:
    """An engine of its own on the nodes' free accelerators; and whether it was known already.

    All layers, or where they do not fit, or as asked, two depths and the line through them.
    """
    engine.runnable(config)
    nodes = _ranked(profile)
    whole = cut.pattern(config)
    asked = _depths(depths, whole)
    with board.step(CLUSTER, "look"):
        seen = _looked(nodes)
        versions = _state(profile, nodes[0])
    link, notes = _linked(profile, nodes, seen, board)
    begun = _begun(profile, nodes, seen, versions, EngineWeights.DUMMY, link, (config, asked))
    if not again and (found := engine.known(profile.name, begun.rates.key)):
        return found, True
    if not force:
        _free(seen)
    begun = replace(begun, rates=replace(begun.rates, notes=notes), seconds=seconds)
    measure = partial(_measured, profile, begun, board)
    if asked is None:
        try:
            rates = measure(config)
            count = whole.layers if whole else None
            return replace(rates, layers=count, of_layers=count), False
        except EngineFailed as error:
            asked = whole.depths() if whole and error.memory else None
            if asked is None:
                raise
            board.note(CLUSTER, f"not all layers fit: {asked[0]} and {asked[1]} of them instead")
    assert whole is not None
    measure = partial(_measured, profile, replace(begun, seconds=begun.seconds / 2), board)
    low, high = (measure(shorter(config, depth)) for depth in asked)
    return _extended(low, high, asked, whole.layers), False


def _depths(asked: Sequence[int], whole: cut.Pattern | None) -> tuple[int, int] | None:
    if not asked:
        return None
    if whole is None:
        raise BadInput("--layers: config.json does not say how many layers the model has")
    return cut.checked(asked, whole)


def _extended(
    low: EngineRates, high: EngineRates, depths: tuple[int, int], layers: int
) -> EngineRates:
    note = f"a straight line through {depths[0]} and {depths[1]} layers, carried to {layers}"
    found = cut.extrapolated(low.cells, high.cells, depths, layers)
    return replace(
        high, cells=found, layers=depths[1], of_layers=layers, kv_tokens=None,
        notes=(note, *high.notes),
    )  # fmt: skip


def _ranked(profile: Attached) -> tuple[AttachedNode, ...]:
    """The nodes that an engine is started on. Raises UserError where it cannot lie on them."""
    nodes = tuple(node for node in profile.nodes if node.ranks) or profile.nodes[:1]
    if not nodes:
        raise UserError("the profile has no nodes: attach again with --node HOST")
    if missing := [node.name for node in nodes if not node.engine]:
        raise UserError(
            f"{missing[0]}: the Python of vLLM is not known",
            f"Name it in the profile: nodes.{missing[0]}.engine",
        )
    sizes = profile.serving
    copy = sizes.tensor_parallel * sizes.pipeline_parallel
    if copy % len(nodes) or (len(nodes) > 1 and sizes.data_parallel > 1):
        raise UserError(
            f"{copy * sizes.data_parallel} ranks cannot be laid on {len(nodes)} nodes by vLLM's "
            "own executor",
            "Each node needs as many as the others, of one copy; set nodes.NAME.ranks to 0 for a "
            "node that is not to be used.",
        )
    if len(nodes) > 1 and (missing := [node.name for node in nodes if node.address is None]):
        raise UserError(
            f"{missing[0]}: its address is not known",
            f"Name it in the profile: nodes.{missing[0]}.address",
        )
    return nodes


def _looked(nodes: Sequence[AttachedNode]) -> dict[str, NodeFound]:
    """What the nodes say of themselves. Raises UserError where one does not answer."""
    with ThreadPoolExecutor(max(1, len(nodes))) as pool:
        found = list(pool.map(ask_node, nodes))
    if silent := [each for each in found if each.facts is None]:
        raise UserError(f"{silent[0].node.name} does not answer: {silent[0].error}")
    return {each.node.name: each for each in found}


def _free(seen: Mapping[str, NodeFound]) -> None:
    """Raises UserError where an engine runs already, or a card's memory is in use."""
    for name, each in seen.items():
        assert each.facts is not None
        if each.facts.ranks:
            raise UserError(
                f"{name}: an engine runs there: {one_line(each.facts.ranks[0])}",
                "Measure what serves: orchestrate probe --only engine, without --dummy.",
            )
        for card in each.facts.accelerators:
            used, whole = card.memory_used_bytes or 0.0, card.memory_bytes or 0.0
            if used > IN_USE * whole:
                raise UserError(
                    f"{name}: {used / 2**30:.0f} of {whole / 2**30:.0f} GiB of {card.name} "
                    f"({card.place}) are in use",
                    "End what uses it, or add --force.",
                )


def _versions(found: NodeFound) -> dict[str, str]:
    return dict(found.facts.versions) if found.facts else {}


def _state(profile: Attached, node: AttachedNode) -> dict[str, str]:
    """The versions of what the engine's Python has."""
    found = TheirNode(profile, node).with_torch("node_state", 0.0, STATE_TIMEOUT)
    versions = {str(k): str(v) for k, v in found["versions"].items()}
    if "vllm" not in versions:
        raise UserError(
            f"{node.name}: {node.engine} has no vLLM",
            f"Name the Python that has it: nodes.{node.name}.engine; or its variables: serving.env",
        )
    return versions


def _devices(nodes: Sequence[AttachedNode], seen: Mapping[str, NodeFound]) -> tuple[str, ...]:
    """One for each rank: its card's name, or the processors."""
    names: list[str] = []
    for node in nodes:
        facts = seen[node.name].facts if node.name in seen else None
        cards = [card.name for card in facts.accelerators] if facts else []
        own = cards or [f"{facts.processors if facts else '?'} processors"]
        names += (own * max(1, node.ranks))[: max(1, node.ranks)]
    return tuple(names)


def _begun(
    profile: Attached,
    nodes: Sequence[AttachedNode],
    seen: Mapping[str, NodeFound],
    versions: Mapping[str, str],
    weights: EngineWeights,
    link: engine.SlowestLink | None,
    model: object,
) -> Begun:
    """``model``: all that is known of it but its name."""
    serving = profile.serving
    args = {name: str(value) for name, value in serving.args.items()}
    sizes = (serving.tensor_parallel, serving.pipeline_parallel, serving.data_parallel)
    devices, names = _devices(nodes, seen), tuple(node.name for node in nodes)
    loads = cells(limits(profile), workloads(profile))
    depends = engine.key(
        model=(serving.model, model), versions=versions, args=args, env=serving.env,
        sizes=(*sizes, serving.expert_parallel), nodes=names, devices=devices,
        weights=weights, loads=loads, link=link.kind if link else None,
    )  # fmt: skip
    rates = EngineRates(
        key=depends, time="", model=serving.model, nodes=names, devices=devices,
        tensor=sizes[0], pipeline=sizes[1], data=sizes[2], args=args, versions=dict(versions),
        weights=weights, cells=(), link_bytes_per_s=link.bytes_per_s if link else None,
        link_latency_s=link.latency_s if link else None,
    )  # fmt: skip
    return Begun(tuple(nodes), loads, rates)


def _linked(
    profile: Attached, nodes: Sequence[AttachedNode], seen: Mapping[str, NodeFound], board: Board
) -> tuple[engine.SlowestLink | None, tuple[str, ...]]:
    """The slowest link between these nodes, measured now; none where that fails, and why.

    Between the machines; where only their containers have these addresses, between those.
    """
    if len(nodes) < 2:
        return None, ()
    own = {e.address for each in seen.values() if each.facts for e in each.facts.addresses}
    inside = any(node.enter and str(node.address) not in own for node in nodes)
    places = [TheirNode(profile, node, inside) for node in nodes]
    pairs = list(combinations(places, 2))[:MOST_PAIRS]
    try:
        with board.step(CLUSTER, "link"):
            links = [link_rates(*ends, RANKS_NETWORK, sizes({})) for ends in pairs]
    except UserError as error:
        return None, (f"its links were not measured: {error.message.splitlines()[0]}",)
    return engine.slowest(links, [node.name for node in nodes]), ()


def _measured(
    profile: Attached, begun: Begun, board: Board, config: Mapping[str, Any]
) -> EngineRates:
    with board.step(CLUSTER, "engine") as step:
        found = started(profile, begun, board, config)
        step.detail = f"{len(found['cells'])} loads, started in {found['start_s']:.0f} s"
    return engine.with_figures(begun.rates, found)
