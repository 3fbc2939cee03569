"""`probe --only engine` of a cluster: the engine that serves, or the same with dummy weights."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.cluster.cluster import Cluster
from orchestrator.core.errors import UserError
from orchestrator.core.progress import CLUSTER, Board
from orchestrator.models import flags
from orchestrator.models.reading.facts import facts
from orchestrator.performance.bench.against import served_as
from orchestrator.performance.bench.load import workloads
from orchestrator.performance.predict import inputs
from orchestrator.performance.predict.load import limits
from orchestrator.performance.probe import cut, engine
from orchestrator.performance.probe.cells import cells
from orchestrator.performance.probe.nodes import OurNode
from orchestrator.performance.probe.run import STATE_TIMEOUT
from orchestrator.performance.results.engine import EngineRates, EngineWeights
from orchestrator.performance.results.probe import DeviceRates, LinkRates

#: The flag that serves a model without its weights' values.
LOAD_FORMAT = "load-format"
#: Tokens that are no prompt's, and the vocabulary where config.json names none.
MARKS, VOCABULARY = 16, 1000
#: Seconds on top of the measuring itself.
LATE = 120.0


def live(
    cluster: Cluster, board: Board, seconds: float, *, again: bool
) -> tuple[EngineRates, bool]:
    """The engine that serves; and whether it was known already."""
    weights = EngineWeights.DUMMY if _loads(cluster) == EngineWeights.DUMMY else EngineWeights.OWN
    begun = _begun(cluster, weights)
    if not again and (found := engine.known(cluster.profile.name, begun.key)):
        return found, True
    return _measured(cluster, board, begun, seconds), False


def dummy(
    cluster: Cluster, board: Board, seconds: float, *, again: bool
) -> tuple[EngineRates, bool]:
    """The same engine with dummy weights, which is served for it; and whether it was known."""
    begun = _begun(cluster, EngineWeights.DUMMY)
    if not again and (found := engine.known(cluster.profile.name, begun.key)):
        return found, True
    profile = cluster.profile
    args = {k: v for k, v in profile.serving.args.items() if k.replace("_", "-") != LOAD_FORMAT}
    serving = profile.serving.model_copy(update={"args": args | {LOAD_FORMAT: "dummy"}})
    other = replace(cluster, profile=profile.model_copy(update={"serving": serving}))
    with served_as(cluster, board, other):
        return _measured(other, board, begun, seconds), False


def _loads(cluster: Cluster) -> object:
    args = {name.replace("_", "-"): value for name, value in cluster.profile.serving.args.items()}
    return args.get(LOAD_FORMAT)


def _begun(cluster: Cluster, weights: EngineWeights) -> EngineRates:
    """What is measured, without figures. Raises UserError where the server's node is not up."""
    profile, layout = cluster.profile, cluster.layout
    ranks = [node for node in profile.compute_nodes for _ in range(node.accelerators)]
    nodes = tuple(dict.fromkeys(node.name for node in ranks[: layout.ranks]))
    server = OurNode(cluster, profile.server)
    versions = server.plain("node_state", ["0.1"], STATE_TIMEOUT)["versions"]
    args = {name: str(value) for name, value in flags.deciding(profile.serving).items()}
    # The first copy is measured; others compute beside it on nodes of their own.
    sizes = (layout.tensor, layout.pipeline, 1)
    devices, links = _probed(cluster)
    link = engine.slowest(links, nodes)
    key = engine.key(
        config=cluster.model.config, image=cluster.image_id, versions=versions,
        args={k: v for k, v in args.items() if k.replace("_", "-") != LOAD_FORMAT},
        env=[profile.serving_env(), profile.ray.env], sizes=(*sizes, layout.expert), nodes=nodes,
        weights=weights, loads=cells(limits(profile), workloads(profile)),
        link=link.kind if link else None,
    )  # fmt: skip
    names = {each.node: each.name for each in devices}
    pattern = cut.pattern(cluster.model.config)
    return EngineRates(
        key=key, time="", model=profile.serving.model, nodes=nodes,
        devices=tuple(names.get(node.name, "?") for node in ranks[: layout.ranks]),
        tensor=sizes[0], pipeline=sizes[1], data=sizes[2], args=args, versions=versions,
        weights=weights, cells=(), image_id=cluster.image_id,
        layers=pattern.layers if pattern else None,
        of_layers=pattern.layers if pattern else None,
        link_bytes_per_s=link.bytes_per_s if link else None,
        link_latency_s=link.latency_s if link else None,
    )  # fmt: skip


def _probed(cluster: Cluster) -> tuple[tuple[DeviceRates, ...], list[LinkRates]]:
    """Devices, and links of Ray's network, by the newest probes."""
    try:
        found = inputs.probes(cluster.profile.name)
    except UserError:
        return (), []
    network = cluster.profile.ray.network
    return found.devices, [each for each in found.links if each.network == network]


def tokens(cluster: Cluster) -> range:
    """The model's tokens, without those that may be marks, to make prompts of."""
    many = facts(cluster.model.config).whole("vocab_size") or VOCABULARY
    return range(min(MARKS, many - 1), many)


def _measured(cluster: Cluster, board: Board, begun: EngineRates, seconds: float) -> EngineRates:
    profile = cluster.profile
    known = tokens(cluster)
    loads = cells(limits(profile), workloads(profile))
    asked = {
        "address": profile.ray_address(profile.server),
        "port": profile.serving.port,
        "model": profile.serving.model,
        "known": (known.start, known.stop),
        "key": cluster.trust.api_key.reveal(),
        "loads": [(each.prompt, each.output, each.concurrency) for each in loads],
        "seconds": seconds,
    }
    program = engine.program("node_served", asked).decode()
    with board.step(CLUSTER, "engine") as step:
        server = OurNode(cluster, profile.server)
        found = server.given("node_served", program, seconds + LATE)
        step.detail = f"{len(found['cells'])} loads"
    return engine.with_figures(begun, found)
