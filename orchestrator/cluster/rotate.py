"""Key rotation of a running cluster without a lockout, and the state of its keys.

SSH keys rotate in steps that may each be interrupted. First nodes and this machine trust both
authorities. Then every node presents a certificate of the new authority and accepts its operator.
Only then does the new authority replace the old one. Nodes learn of it by their desired state.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.cluster import members
from orchestrator.cluster.certificates import Certificate, answers, as_seen_by, certify, shown_by
from orchestrator.cluster.cluster import Cluster
from orchestrator.cluster.targets import published_models
from orchestrator.cluster.up import Bringup, up
from orchestrator.core.errors import UserError
from orchestrator.core.nodeset import fold
from orchestrator.core.progress import CLUSTER, Board
from orchestrator.node.resources import Step
from orchestrator.node.selection import Selection
from orchestrator.node.trust import API_KEY, PAIRS, RAY_TOKEN
from orchestrator.profile import Node
from orchestrator.provision.machines import PowerState, power_states


class KeyKind(StrEnum):
    """The kinds of keys that can be rotated separately."""

    SSH = "ssh"
    RAY = "ray"
    API = "api"


@dataclass(frozen=True)
class Standing:
    """Fingerprints by key, certificates, and whether a rotation was interrupted."""

    fingerprints: dict[str, str]
    certificates: tuple[Certificate, ...]
    rotating: bool


def rotate(
    cluster: Cluster, board: Board, parts: Collection[KeyKind], without: Collection[str] = ()
) -> tuple[str, ...]:
    """Replace the keys of ``parts``; returns the names of the nodes that have the new ones.

    Nodes that are off get the new keys when they boot. A node that is on but does not answer
    blocks the rotation, unless ``without`` names it: it then needs a reboot. Raises UserError
    when a node blocks the rotation or could not be updated; a rerun continues it.
    """
    on = _on(cluster, without)
    if KeyKind.SSH in parts:
        _rotate_ssh(cluster, board, on)
    for part, name in ((KeyKind.RAY, RAY_TOKEN), (KeyKind.API, API_KEY)):
        if part in parts:
            with board.step(CLUSTER, f"{part} token"):
                cluster.trust.renew_token(name)
    if set(parts) != {KeyKind.SSH}:
        serves = any(published_models(cluster).values())
        _apply(cluster, board, on, Step.SERVING if serves else Step.RAY)
    if set(parts) == set(KeyKind):
        members.renewed(cluster.profile)
    return tuple(node.name for node in on)


def renew(cluster: Cluster, board: Board) -> tuple[str, ...]:
    """New certificates of the same authorities, for the operator and all nodes that are on."""
    cluster.trust.renew_operator()
    states = power_states(cluster.driver, cluster.profile.nodes)
    on = [node for node in cluster.profile.nodes if states[node.name] is PowerState.ON]
    _on_each(cluster, board, on, lambda node: certify(cluster, node, cluster.trust))
    return tuple(node.name for node in on)


def standing(cluster: Cluster) -> Standing:
    """Fingerprints of all keys, and how long certificates are valid; changes nothing."""
    trust = cluster.trust
    states = power_states(cluster.driver, cluster.profile.nodes)
    on = [node for node in cluster.profile.nodes if states[node.name] is PowerState.ON]

    def look(node: Node) -> Certificate:
        with cluster.driver.network():
            return shown_by(cluster, node)

    with ThreadPoolExecutor(max(1, len(on))) as pool:
        hosts = list(pool.map(look, on))
    return Standing(
        fingerprints={name: trust.fingerprint(name) for name in PAIRS},
        certificates=(Certificate("", trust.operator_until), *hosts),
        rotating=trust.successor is not None,
    )


def _on(cluster: Cluster, without: Collection[str]) -> list[Node]:
    """The nodes to update. Raises UserError for nodes whose power state is unknown.

    `up` would switch those on, which a rotation must not do.
    """
    states = power_states(cluster.driver, cluster.profile.nodes)
    asked = [node for node in cluster.profile.nodes if node.name not in without]
    unknown = [n.name for n in asked if states[n.name] not in (PowerState.ON, PowerState.OFF)]
    if unknown:
        raise UserError(
            f"Power state unknown: {fold(unknown)}. Nothing was changed.",
            "Wait until they answer (orchestrate node wait), switch them off (orchestrate node "
            "down), or skip them with --without NODE and reboot them later.",
        )
    return [node for node in asked if states[node.name] is PowerState.ON]


def _rotate_ssh(cluster: Cluster, board: Board, on: Sequence[Node]) -> None:
    trust = cluster.trust
    with board.step(CLUSTER, "new authorities"):
        successor = trust.prepare_successor()
    _apply(cluster, board, on, Step.BASE)  # nodes accept the operators of both authorities

    def move(node: Node) -> None:
        if not answers(as_seen_by(cluster, node, successor)):
            certify(cluster, node, successor)

    _on_each(cluster, board, on, move)
    for node in on:
        cluster.remote(node).close()
        as_seen_by(cluster, node, successor).close()
    with board.step(CLUSTER, "switch to the new authorities"):
        trust.take_over()
    _apply(cluster, board, on, Step.BASE)  # nodes drop the old authority


def _apply(cluster: Cluster, board: Board, on: Sequence[Node], until: Step) -> None:
    """Configure the nodes, as `orchestrate up` does."""
    if not on:
        return
    whole = tuple(on) == cluster.profile.nodes
    done: Bringup = up(cluster, board, until, Selection(tuple(on), whole=whole))
    if done.failures or (done.report and not done.report.ok):
        reasons = [str(error) for error in done.failures.values()]
        raise UserError(
            "\n".join(reasons or ["the cluster does not pass its checks: orchestrate verify"]),
            "All updated nodes accept the current keys. Fix the nodes above and rerun, or skip a "
            "node with --without NODE and reboot it later.",
        )


def _on_each(
    cluster: Cluster, board: Board, nodes: Sequence[Node], action: Callable[[Node], None]
) -> None:
    def one(node: Node) -> None:
        with cluster.driver.network(), board.step(node.name, "certificate"):
            action(node)

    with ThreadPoolExecutor(max(1, len(nodes))) as pool:
        jobs = {node.name: pool.submit(one, node) for node in nodes}
    failed = {name: error for name, job in jobs.items() if (error := job.exception())}
    for error in failed.values():
        if not isinstance(error, UserError):
            raise error
    if failed:
        raise UserError(
            "\n".join(str(error) for error in failed.values()),
            "All updated nodes accept the old and the new keys. Rerun when "
            f"{', '.join(failed)} answers, or skip it with --without NODE and reboot it later.",
        )
