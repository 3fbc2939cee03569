"""New keys for a running cluster, without locking anyone out; and how long certificates last.

SSH's keys go in steps that can each be interrupted: both authorities are believed, on nodes and
here; every node shows a certificate of the new one and lets its operator in; only then does the
new one take over and is the old one forgotten. Nodes are told by their desired state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from orchestrator.bring_up import Bringup, up
from orchestrator.cluster import Cluster
from orchestrator.errors import UserError
from orchestrator.identity import HOST_CERTIFICATE, HOST_KEY, principals
from orchestrator.machines import PowerState, power_states
from orchestrator.profile import Node
from orchestrator.progress import CLUSTER, Board
from orchestrator.remote import HostKeyRefused, Remote, Unreachable
from orchestrator.resources import Step
from orchestrator.selection import Selection
from orchestrator.served_model import published
from orchestrator.trust import API_KEY, HOST_LIFETIME, PAIRS, RAY_TOKEN, Trust, valid_until

#: Seconds in which sshd has to show its new certificate.
RELOAD_TIMEOUT = 30.0
POLL = 0.5
#: A host's certificate with less left than this share of its life is worth a word.
WARN_SHARE = 1 / 3


class Part(StrEnum):
    """What can be rotated by itself."""

    SSH = "ssh"
    RAY = "ray"
    API = "api"


@dataclass(frozen=True)
class Certificate:
    """A certificate in use. ``node``: empty for the operator's; ``problem``: why it is unknown."""

    node: str
    until: datetime | None
    problem: str = ""

    @property
    def left_days(self) -> float | None:
        return (self.until - datetime.now(UTC)).total_seconds() / 86400 if self.until else None

    @property
    def ends_soon(self) -> bool:
        """For hosts: `trust renew` is due."""
        left = self.left_days
        return bool(self.node) and left is not None and left < HOST_LIFETIME.days * WARN_SHARE


@dataclass(frozen=True)
class Standing:
    """Fingerprints by key, certificates, and whether a rotation was interrupted."""

    fingerprints: dict[str, str]
    certificates: tuple[Certificate, ...]
    rotating: bool


def rotate(
    cluster: Cluster, board: Board, parts: Collection[Part], without: Collection[str] = ()
) -> tuple[str, ...]:
    """Put new keys in place of those of ``parts``; returns the names of the nodes that have them.

    Nodes that are off need nothing: they get the new ones when they boot. A node that is on and
    does not answer holds the rotation, unless it is named in ``without``: it then has to boot
    again. Raises UserError where a node holds it, or could not be told; to be run again.
    """
    states = power_states(cluster.driver, cluster.profile.nodes)
    on = [
        node
        for node in cluster.profile.nodes
        if states[node.name] is not PowerState.OFF and node.name not in without
    ]
    if Part.SSH in parts:
        _rotate_ssh(cluster, board, on)
    for part, name in ((Part.RAY, RAY_TOKEN), (Part.API, API_KEY)):
        if part in parts:
            with board.step(CLUSTER, f"{part} token"):
                cluster.trust.renew_token(name)
    if set(parts) != {Part.SSH}:
        serves = published(cluster.profile.name, cluster.profile.serving.model)
        _apply(cluster, board, on, Step.SERVING if serves else Step.RAY)
    return tuple(node.name for node in on)


def renew(cluster: Cluster, board: Board) -> tuple[str, ...]:
    """New certificates of the same authorities, for the operator and all nodes that are on."""
    cluster.trust.renew_operator()
    states = power_states(cluster.driver, cluster.profile.nodes)
    on = [node for node in cluster.profile.nodes if states[node.name] is PowerState.ON]
    _on_each(cluster, board, on, lambda node: _certify(cluster, node, cluster.trust))
    return tuple(node.name for node in on)


def standing(cluster: Cluster) -> Standing:
    """What keys there are, and how long certificates last; changes nothing."""
    trust = cluster.trust
    states = power_states(cluster.driver, cluster.profile.nodes)
    on = [node for node in cluster.profile.nodes if states[node.name] is PowerState.ON]

    def look(node: Node) -> Certificate:
        with cluster.driver.network():
            try:
                text = cluster.remote(node).run(["cat", HOST_CERTIFICATE]).out
                return Certificate(node.name, valid_until(text))
            except (UserError, ValueError) as error:
                return Certificate(node.name, None, str(error).splitlines()[0])

    with ThreadPoolExecutor(max(1, len(on))) as pool:
        hosts = list(pool.map(look, on))
    return Standing(
        fingerprints={name: trust.fingerprint(name) for name in PAIRS},
        certificates=(Certificate("", trust.operator_until), *hosts),
        rotating=trust.successor is not None,
    )


def _rotate_ssh(cluster: Cluster, board: Board, on: Sequence[Node]) -> None:
    trust = cluster.trust
    with board.step(CLUSTER, "new authorities"):
        successor = trust.prepare_successor()
    _apply(cluster, board, on, Step.BASE)  # nodes let the operator of either in

    def move(node: Node) -> None:
        if not _answers(_as(cluster, node, successor)):
            _certify(cluster, node, successor)

    _on_each(cluster, board, on, move)
    for node in on:
        cluster.remote(node).close()
        _as(cluster, node, successor).close()
    with board.step(CLUSTER, "the new ones take over"):
        trust.take_over()
    _apply(cluster, board, on, Step.BASE)  # nodes forget the old one


def _apply(cluster: Cluster, board: Board, on: Sequence[Node], until: Step) -> None:
    """Tell the nodes, as `orchestrate up` does."""
    if not on:
        return
    whole = tuple(on) == cluster.profile.nodes
    done: Bringup = up(cluster, board, until, Selection(tuple(on), whole=whole))
    if done.failures or (done.report and not done.report.ok):
        reasons = [str(error) for error in done.failures.values()]
        raise UserError(
            "\n".join(reasons or ["the cluster does not pass its checks: orchestrate verify"]),
            "Nobody is locked out: what is believed now is believed by all who were told. Mend it "
            "and run the same again; or leave a node out with --without NODE and boot it later.",
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
            "Nobody is locked out: both authorities are believed. Run it again when "
            f"{', '.join(failed)} answers, or with --without, and boot it later.",
        )


def _certify(cluster: Cluster, node: Node, authority: Trust) -> None:
    """Have a node show a new certificate of ``authority`` for the key that it has."""
    remote = cluster.remote(node)
    public = remote.run(["ssh-keygen", "-y", "-f", HOST_KEY], what="reading the host key").out
    certificate = authority.host_certificate(public, principals(node))
    script = 'umask 022; cat >"$0.new" && mv "$0.new" "$0" && systemctl reload ssh.service'
    remote.run(["sh", "-c", script, HOST_CERTIFICATE], stdin=certificate, what="certifying it")
    reach = _as(cluster, node, authority)
    reach.close()
    end = time.monotonic() + RELOAD_TIMEOUT
    while not _answers(reach):
        if time.monotonic() > end:
            raise UserError(
                f"{node.name}: sshd does not show its new certificate after {RELOAD_TIMEOUT:g} s",
                f"On it: systemctl status ssh; sshd -T | grep -i {HOST_CERTIFICATE}",
            )
        time.sleep(POLL)


def _answers(remote: Remote) -> bool:
    """Whether the node's certificate is of that authority, and its operator is let in."""
    try:
        remote.run(["true"], what="connecting")
    except (HostKeyRefused, Unreachable):
        return False
    return True


def _as(cluster: Cluster, node: Node, trust: Trust) -> Remote:
    """The node as seen by who has another authority."""
    remote = cluster.remote(node)
    return Remote(remote.name, remote.address, trust)
