"""The desired state of a cluster's nodes, and their differences from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from orchestrator.cluster import kernels, members
from orchestrator.cluster.cluster import Cluster
from orchestrator.cluster.context import Context
from orchestrator.cluster.desired import desired
from orchestrator.core.run import Result
from orchestrator.core.slots import JOBS
from orchestrator.models import capacity
from orchestrator.models.catalog import ModelFile
from orchestrator.models.profiles import how_to_pull
from orchestrator.models.publish import bring, publish
from orchestrator.node import configure
from orchestrator.node.plan import Plan
from orchestrator.node.selection import Selection, everything
from orchestrator.profile import Node
from orchestrator.verify.gather import VerifyContext


def publish_model(cluster: Cluster, line: Callable[[str], None]) -> tuple[ModelFile, ...]:
    """Build the model, or take it from the hub's files, and serve its files to nodes."""
    source = bring(cluster.model, how_to_pull(cluster.profile), line)
    return publish(source, cluster.profile.name, cluster.model.name)


def short_of_memory(cluster: Cluster, seen: Mapping[str, int] | None = None) -> list[str]:
    """Why the model does not fit nodes' memory. ``seen``: bytes of memory that nodes reported."""
    boots = cluster.driver.netboots(cluster.profile.server)
    return list(
        capacity.misfits(
            cluster.profile,
            capacity.of_model(cluster.model),
            capacity.of_image(cluster.image) if boots else 0,
            capacity.of_nodes(cluster.profile, seen or {}),
        )
    )


def targets(cluster: Cluster, files: Sequence[ModelFile]) -> dict[str, configure.Target]:
    """Each node's desired state, by name."""
    context = Context(
        operator_public=cluster.trust.operator_public,
        ray_token=cluster.trust.ray_token,
        api_key=cluster.trust.api_key,
        host_ca=cluster.trust.host_ca,
        user_ca_public=cluster.trust.user_ca_public,
        layout=cluster.layout,
        model_files=tuple(files),
        warm=kernels.stored(cluster.profile.name),
    )
    return {
        node.name: configure.Target(cluster.remote(node), desired(cluster.profile, node, context))
        for node in cluster.profile.nodes
    }


def plan(
    cluster: Cluster, files: Sequence[ModelFile], chosen: Selection | None = None, jobs: int = JOBS
) -> Plan:
    """The changes that `up` would make on the chosen nodes. Nodes that are off or do not answer
    are unknown. Changes nothing."""
    chosen = chosen or everything(cluster.profile)
    wanted = targets(cluster, files)
    on = [node.name for node in chosen.nodes if cluster.driver.running(node)]
    outcomes: dict[str, configure.Outcome] = {}
    if on:
        with cluster.driver.network():
            asked = [wanted[name].only(chosen.steps) for name in on]
            outcomes = configure.plan(asked, jobs=jobs)
    off = tuple(name for name in chosen.names if name not in on)
    unknown = configure.Outcome(error="it is off")
    seen = {name: each.facts["memory_bytes"] for name, each in outcomes.items() if each.facts}
    return Plan(
        {name: outcomes.get(name, unknown) for name in chosen.names},
        off,
        tuple(short_of_memory(cluster, seen)),
        members.told(members.left(cluster.profile)),
    )


def verify_context(
    cluster: Cluster, files: Sequence[ModelFile], chosen: Selection | None = None, jobs: int = JOBS
) -> VerifyContext:
    """Verification's access to this cluster, and the desired state to compare with."""
    wanted = targets(cluster, files)

    def run_on(node: Node, argv: Sequence[str], stdin: str | None, timeout: float) -> Result:
        return cluster.remote(node).run(argv, stdin=stdin, timeout=timeout, ok=None)

    def differences() -> Mapping[str, Sequence[str]]:
        found = plan(cluster, files, chosen, jobs)
        return {name: _differences(outcome) for name, outcome in found.outcomes.items()}

    return VerifyContext(
        run_on=run_on,
        http=cluster.client,
        network=cluster.driver.network,
        plan=differences,
        units={name: [u.name for u in target.state.units] for name, target in wanted.items()},
        layout=cluster.layout,
        answers=cluster.model.answers,
        image_id=cluster.image_id,
    )


def _differences(outcome: configure.Outcome) -> list[str]:
    """A node's differences, a line each; or why it could not be asked."""
    if outcome.error:
        return [outcome.error]
    return [item.line for item in outcome.differences]
