"""What connects a cluster's machines: the simulator's switch, or this machine's own cards."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.core.errors import BadInput

if TYPE_CHECKING:
    from orchestrator.profile import Node, Profile


def prefix(profile: Profile) -> str:
    """What the names of a cluster's namespaces, containers and cgroups begin with."""
    return f"orchestrate-{profile.name}"


@dataclass(frozen=True)
class Cables(ABC):
    """The networks of a profile, as far as they end on this machine."""

    profile: Profile
    prefix: str

    def named(self, name: str) -> str:
        """A name that no other cluster has: of a machine's namespace, container and cgroup."""
        return f"{self.prefix}-{name}"

    def mac(self, node: Node, network: str) -> str:
        """The profile's hardware address, or one made from the names where it has none."""
        digest = hashlib.sha256(f"{self.prefix} {node.name} {network}".encode()).digest()
        made = ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))  # locally administered
        return node.links[network].mac or made

    @abstractmethod
    def make(self) -> None:
        """What all machines share; what is there stays."""

    @abstractmethod
    def plug_namespace(self, node: Node) -> str:
        """A namespace for a node that is a container, with its end of each cable; its name."""

    @abstractmethod
    def remove(self) -> None:
        """All of it, and the namespaces of nodes with what is in them."""

    def throttle(self, node: Node, network: str, bits_per_s: int | None) -> None:
        """Let a cable carry no more than that, each way; None: all that it can.

        Raises BadInput where the cable is not one of a container.
        """
        raise BadInput(
            "only cables of containers can be throttled",
            "Start them: orchestrate up --machines nspawn",
        )

    def throttled(self, node: Node) -> Mapping[str, int]:
        """By network, the bits a second that the node's cables were throttled to."""
        return {}
