"""`orchestrate bench prove` on a cluster of ours: what can be changed on it, and its load."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from orchestrator.cluster.cluster import Cluster
from orchestrator.core.errors import UserError
from orchestrator.core.progress import Board
from orchestrator.node.paths import PYTHON
from orchestrator.performance import metrics
from orchestrator.performance.bench import client as clients
from orchestrator.performance.bench.load import check
from orchestrator.performance.bench.served import tokens
from orchestrator.performance.predict import inputs
from orchestrator.performance.predict.layout import Parallelism, accelerators, place
from orchestrator.performance.predict.load import limits
from orchestrator.performance.predict.phase import Cause
from orchestrator.performance.predict.rates import rates
from orchestrator.performance.prove.claim import Claim
from orchestrator.performance.prove.guards import Site, guarded
from orchestrator.performance.prove.store import store
from orchestrator.performance.prove.trials import End, Ground
from orchestrator.performance.prove.turns import Loads, prove
from orchestrator.performance.results.bench import Asked, Measured, Run, Workload, layout_text
from orchestrator.performance.results.proof import Proof
from orchestrator.profile import Node

#: How Python is started there: nothing of its user's, and no packages.
ISOLATED = ("-I", "-S")
#: The simulated cluster's cables are this machine's.
HERE = Site("this machine", list, (sys.executable, *ISOLATED))


def prove_all(
    cluster: Cluster, board: Board, run: Run, claims: Sequence[Claim], rounds: int
) -> list[Proof]:
    """Try the claims of a run, one after the other. Each proof is kept when it is made.

    Raises UserError where the run is of another model, image or layout than what is served now.
    """
    _same(cluster, run)
    found = []
    with cluster.driver.network(), guarded() as guards:
        bench = Loads(board, guards, _load(cluster), rounds)
        for claim in claims:
            proof = prove(run.id, claim, ground(cluster), slow_node(cluster, claim), bench)
            store(run.provenance.profile, [proof])
            found.append(proof)
    return found


def _same(cluster: Cluster, run: Run) -> None:
    layout = layout_text(*cluster.layout.sizes)
    now = (cluster.profile.serving.model, cluster.image_id, layout)
    told = run.provenance
    for was, each in zip((told.model, told.image_id, told.layout), now, strict=True):
        if was != each:
            raise UserError(
                f"the run {run.id} is of {was}, and the cluster has {each} now",
                "Run: orchestrate bench run, then prove its causes.",
            )


def _load(cluster: Cluster) -> Callable[[Workload], Measured]:
    """Loads from this computer. A proof compares loads with each other, and needs a dozen: vLLM's
    own client would take most of the time to start."""
    model, known = cluster.profile.serving.model, tokens(cluster)

    def load(workload: Workload) -> Measured:
        check(workload, cluster.profile)
        asked = Asked((workload,), repeats=1)
        found, _ = clients.loaded(
            cluster.client_for_load(), lambda: metrics.page(cluster), model, workload, known, asked
        )
        return found

    return load


def slow_node(cluster: Cluster, claim: Claim) -> str:
    """The node that a claim names as slow; "" if it names none."""
    names = [node.name for node in cluster.profile.compute_nodes]
    said = claim.why.lower()
    return next((name for name in names if said.startswith(f"{name.lower()}:")), "")


def ground(cluster: Cluster) -> Ground:
    """What can be changed on the cluster, and what is known of it."""
    profile = cluster.profile
    layout = Parallelism.of(cluster.layout)
    wanted = set(place(accelerators(profile), layout)[0].nodes)
    nodes = [node for node in profile.compute_nodes if node.name in wanted]
    places = [_place(cluster, node) for node in nodes]
    try:
        known = rates(inputs.probes(profile.name), profile, layout)
    except UserError:
        known = None
    link = known.link if known else None
    allowed = limits(profile, known.synchronous if known else False)

    def ends(cause: Cause) -> list[End]:
        if len(nodes) < 2:
            return []
        network = profile.ray.network
        found = []
        for node, there in zip(nodes, places, strict=True):
            simulated = cluster.driver.cables.ends(node, network)
            if cluster.driver.netboots(node) or not simulated:
                found.append(End(there, node.links[network].interface))
                continue
            # A delay at both ends of each of two links would count twice: at the nodes' own.
            mine = simulated if cause is Cause.LINK_BANDWIDTH else simulated[-1:]
            found += [End(HERE, name, ("tc", "-n", space)) for space, name in mine]
        return found

    return Ground(
        hosts=places,
        cards=places,
        ends=ends,
        bytes_per_s=link.bytes_per_s if link else None,
        latency_s=link.latency_s if link else None,
        synchronous=known.synchronous if known else False,
        limit=allowed.sequences,
        context=allowed.context,
    )


def _place(cluster: Cluster, node: Node) -> Site:
    return Site(node.name, cluster.remote(node).ssh_argv, (PYTHON, *ISOLATED))
