"""The networks between a cluster's machines: base class of the simulated switch and real cards."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.core.errors import BadInput
from orchestrator.profile import Node, Profile


def prefix(profile: Profile) -> str:
    """The prefix of the names of a cluster's namespaces, containers and cgroups."""
    return f"orchestrate-{profile.name}"


@dataclass(frozen=True)
class Cables(ABC):
    """This machine's part of a profile's networks: links, bridges, namespaces."""

    profile: Profile
    prefix: str

    def named(self, name: str) -> str:
        """A name for a machine's namespace, container or cgroup that no other cluster uses."""
        return f"{self.prefix}-{name}"

    def mac(self, node: Node, network: str, card: str = "") -> str:
        """The profile's hardware address; if it has none, one derived from the names. ``card``: one
        that is no link itself, but is in a bond, or carries VLANs."""
        names = " ".join(filter(None, (self.prefix, node.name, network, card)))
        digest = hashlib.sha256(names.encode()).digest()
        made = ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))  # locally administered
        return made if card else node.links[network].mac or made

    @abstractmethod
    def make(self) -> None:
        """Make what all machines share, unless it exists."""

    @abstractmethod
    def plug_namespace(self, node: Node) -> str:
        """Make the namespace of a container node, with its links; return the namespace's name."""

    @abstractmethod
    def unplug(self, node: Node) -> None:
        """Remove the namespace of a container node, and take its links back."""

    @abstractmethod
    def remove(self) -> None:
        """Remove everything that `make` and `plug_namespace` made."""

    def throttle(self, node: Node, network: str, bits_per_s: int | None) -> None:
        """Limit a node's link to this rate in each direction; None removes the limit.

        Raises BadInput if the node is not a container.
        """
        raise BadInput(
            "only cables of containers can be throttled",
            "Start them: orchestrate up --machines nspawn",
        )

    def ends(self, node: Node, network: str) -> Sequence[tuple[str, str]]:
        """Namespace and interface of both ends of a container's link; each end limits what it
        sends. None of a machine that is no container."""
        return ()

    def throttled(self, node: Node) -> Mapping[str, int]:
        """The limits of the node's links in bits per second, by network."""
        return {}
