"""Host certificates of running nodes: their validity and renewal."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from orchestrator.core.errors import UserError
from orchestrator.core.waiting import as_long_as
from orchestrator.node.remote import HostKeyRefused, Remote, Unreachable
from orchestrator.node.trust import HOST_RENEWAL, Trust, valid_until
from orchestrator.provision.identity import HOST_CERTIFICATE, HOST_KEY, principals

if TYPE_CHECKING:
    from orchestrator.cluster.cluster import Cluster
    from orchestrator.profile import Node

#: Seconds until sshd must present its new certificate.
RELOAD_TIMEOUT = 30.0
POLL = 0.5


@dataclass(frozen=True)
class Certificate:
    """A certificate in use. ``node``: empty for the operator's; ``problem``: why it is unknown."""

    node: str
    until: datetime | None
    problem: str = ""

    @property
    def left(self) -> timedelta | None:
        """How long it is valid from now; negative once it has expired."""
        return self.until - datetime.now(UTC) if self.until else None

    @property
    def ends_soon(self) -> bool:
        """Whether a host certificate needs renewal. (The operator's is renewed at each use.)"""
        return bool(self.node) and self.left is not None and self.left < HOST_RENEWAL

    @property
    def told(self) -> str:
        """The end of validity in words, or the problem."""
        if self.left is None:
            return self.problem
        return f"{self.until:%Y-%m-%d}, in {self.left.days} days"


def shown_by(cluster: Cluster, node: Node) -> Certificate:
    """Read a node's certificate; call it in the cluster's network. Changes nothing."""
    try:
        text = cluster.remote(node).run(["cat", HOST_CERTIFICATE], what="reading it").out
        return Certificate(node.name, valid_until(text))
    except (UserError, ValueError) as error:
        return Certificate(node.name, None, str(error).splitlines()[0])


def certify(cluster: Cluster, node: Node, authority: Trust) -> None:
    """Install a new certificate by ``authority`` for a node's existing host key.

    Call it in the cluster's network. Raises UserError if sshd does not present it within
    RELOAD_TIMEOUT.
    """
    remote = cluster.remote(node)
    public = remote.run(["ssh-keygen", "-y", "-f", HOST_KEY], what="reading the host key").out
    certificate = authority.host_certificate(public, principals(node))
    script = 'umask 022; cat >"$0.new" && mv "$0.new" "$0" && systemctl reload ssh.service'
    remote.run(["sh", "-c", script, HOST_CERTIFICATE], stdin=certificate, what="certifying it")
    reach = as_seen_by(cluster, node, authority)
    reach.close()
    if as_long_as(lambda: not answers(reach), RELOAD_TIMEOUT, POLL):
        raise UserError(
            f"{node.name}: sshd does not show its new certificate after {RELOAD_TIMEOUT:g} s",
            f"On it: systemctl status ssh; sshd -T | grep -i {HOST_CERTIFICATE}",
        )


def answers(remote: Remote) -> bool:
    """Whether the node presents a certificate of that authority, and accepts its operator."""
    try:
        remote.run(["true"], what="connecting")
    except (HostKeyRefused, Unreachable):
        return False
    return True


def as_seen_by(cluster: Cluster, node: Node, trust: Trust) -> Remote:
    """The node, accessed with the keys of another authority."""
    remote = cluster.remote(node)
    return Remote(remote.name, remote.address, trust)
