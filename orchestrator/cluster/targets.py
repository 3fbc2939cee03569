"""The desired state of a cluster's nodes, and their differences from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from orchestrator.cluster import kernels, members
from orchestrator.cluster.cluster import Cluster
from orchestrator.cluster.context import Context
from orchestrator.cluster.desired import desired
from orchestrator.core.run import Result
from orchestrator.core.slots import JOBS
from orchestrator.models import capacity
from orchestrator.models.catalog import ModelFile
from orchestrator.models.profiles import how_to_pull
from orchestrator.models.publish import bring, publish, published
from orchestrator.node import configure
from orchestrator.node.plan import Plan
from orchestrator.node.selection import Selection, everything
from orchestrator.profile import Node
from orchestrator.verify.gather import VerifyContext

#: The files of each model, by its name; of one that is not among them, none.
Files = Mapping[str, Sequence[ModelFile]]


def publish_models(cluster: Cluster, line: Callable[[str], None]) -> Files:
    """Build each model, or take it from the hub's files, and serve its files to nodes."""
    sources = {
        each.model.name: bring(each.model, how_to_pull(each.profile), line)
        for each in cluster.services
    }
    name = cluster.profile.name
    return {model: publish(source, name, model) for model, source in sources.items()}


def published_models(cluster: Cluster) -> Files:
    """What `publish_models` left, for verbs that change nothing."""
    names = [each.model.name for each in cluster.services]
    return {name: published(cluster.profile.name, name) for name in names}


def short_of_memory(cluster: Cluster, seen: Mapping[str, int] | None = None) -> list[str]:
    """Why a model does not fit its nodes' memory. ``seen``: bytes of memory that nodes reported."""
    boots = cluster.driver.netboots(cluster.profile.server)
    image = capacity.of_image(cluster.image) if boots else 0
    return [
        line
        for each in cluster.services
        for line in capacity.misfits(
            each.profile,
            capacity.of_model(each.model),
            image,
            capacity.of_nodes(each.profile, seen or {}),
        )
    ]


def targets(cluster: Cluster, files: Files) -> dict[str, configure.Target]:
    """Each node's desired state, by name."""
    context = Context(
        operator_public=cluster.trust.operator_public,
        ray_token=cluster.trust.ray_token,
        api_key=cluster.trust.api_key,
        host_ca=cluster.trust.host_ca,
        user_ca_public=cluster.trust.user_ca_public,
        layout=cluster.layout,
        model_files=tuple(files.get(cluster.profile.serving.model, ())),
        warm=kernels.stored(cluster.profile.name),
    )
    each = [
        replace(
            context,
            layout=one.layout,
            model_files=tuple(files.get(one.profile.serving.model, ())),
        )
        for one in cluster.services
    ]
    context = replace(context, each=tuple(each))
    return {
        node.name: configure.Target(cluster.remote(node), desired(cluster.profile, node, context))
        for node in cluster.profile.nodes
    }


def plan(cluster: Cluster, files: Files, chosen: Selection | None = None, jobs: int = JOBS) -> Plan:
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
    cluster: Cluster, files: Files, chosen: Selection | None = None, jobs: int = JOBS
) -> VerifyContext:
    """Verification's access to this cluster, and the desired state to compare with."""
    wanted = targets(cluster, files)

    def run_on(node: Node, argv: Sequence[str], stdin: str | None, timeout: float) -> Result:
        return cluster.remote(node).run(argv, stdin=stdin, timeout=timeout, ok=None)

    def differences() -> Mapping[str, Sequence[str]]:
        found = plan(cluster, files, chosen, jobs)
        return {name: _differences(outcome) for name, outcome in found.outcomes.items()}

    context = VerifyContext(
        run_on=run_on,
        http=cluster.client,
        network=cluster.driver.network,
        plan=differences,
        units={name: [u.name for u in target.state.units] for name, target in wanted.items()},
        layout=cluster.layout,
        answers=cluster.model.answers,
        image_id=cluster.image_id,
    )
    each = [
        replace(context, layout=one.layout, answers=one.model.answers) for one in cluster.services
    ]
    return replace(context, each=tuple(each))


def _differences(outcome: configure.Outcome) -> list[str]:
    """A node's differences, a line each; or why it could not be asked."""
    if outcome.error:
        return [outcome.error]
    return [item.line for item in outcome.differences]
