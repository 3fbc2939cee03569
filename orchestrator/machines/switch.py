"""The simulator's switch: a bridge for each network, all in one network namespace."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.machines import netns
from orchestrator.run import run

if TYPE_CHECKING:
    from orchestrator.profile import Node, Profile


#: Of a throttled cable: as much as one large packet of a virtual card at once.
BURST = "128kb"


@dataclass(frozen=True)
class Switch:
    """The networks of a profile. `space` is the namespace that holds the bridges."""

    profile: Profile
    prefix: str

    @property
    def space(self) -> str:
        return self.named("switch")

    def named(self, name: str) -> str:
        """A name that no other cluster has: of a machine's namespace, container and cgroup."""
        return f"{self.prefix}-{name}"

    def make(self) -> None:
        """The bridges; those that are there stay."""
        netns.create(self.space)
        for network in self.profile.networks:
            bridge = self.bridge(network)
            if not netns.has_link(self.space, bridge):
                netns.ip(self.space, "link", "add", bridge, "type", "bridge")
                netns.ip(self.space, "link", "set", bridge, "up")

    def remove(self) -> None:
        """The bridges, and the namespaces of all nodes with the links in them."""
        for node in self.profile.nodes:
            netns.delete(self.named(node.name))
        netns.delete(self.space)

    def bridge(self, network: str) -> str:
        return f"br{self._index(network)}"

    def plug_namespace(self, node: Node) -> str:
        """A namespace for the node with its end of a cable to each network; returns its name."""
        space = self.named(node.name)
        netns.create(space)
        for network, link in node.links.items():
            if netns.has_link(space, link.interface):
                continue
            port = self._port("port", node, network)
            peer = ["peer", "name", port, "netns", self.space]
            mac = self.mac(node, network)
            add = ["link", "add", link.interface, "address", mac, "type", "veth", *peer]
            run(["ip", "-n", space, *add], what=f"plug {node.name} into {network}")
            self._connect(port, self.bridge(network), self.profile.networks[network].mtu)
        return space

    def throttle(self, node: Node, network: str, rate: str | None) -> None:
        """Let a container's cable carry no more than ``rate`` (as tc writes it) each way; None: all
        that it can. (A token bucket: this kernel may have no other shaper.)"""
        ends = [
            (self.space, self._port("port", node, network)),
            (self.named(node.name), node.links[network].interface),
        ]
        for space, link in ends:
            queue = ["tc", "-n", space, "qdisc"]
            if rate:
                bucket = ["tbf", "rate", rate, "burst", BURST, "latency", "50ms"]
                run([*queue, "replace", "dev", link, "root", *bucket], what=f"throttle {node.name}")
            else:
                run([*queue, "delete", "dev", link, "root"], ok=None)  # there may be none

    def plug_taps(self, node: Node) -> dict[str, str]:
        """A tap in the switch for each of the node's links: network -> its name."""
        taps = {network: self._port("tap", node, network) for network in node.links}
        for network, tap in taps.items():
            self.add_tap(tap, self.bridge(network), self.profile.networks[network].mtu)
        return taps

    def add_tap(self, tap: str, bridge: str, mtu: int | None = None) -> None:
        """A tap on a bridge; one that is there stays."""
        if not netns.has_link(self.space, tap):
            netns.ip(self.space, "tuntap", "add", "dev", tap, "mode", "tap")
            self._connect(tap, bridge, mtu)

    def _connect(self, port: str, bridge: str, mtu: int | None) -> None:
        """Put a port on a bridge, which takes as large packets as all of its ports do."""
        size = ["mtu", str(mtu)] if mtu else []
        netns.ip(self.space, "link", "set", port, *size, "master", bridge, "up")

    def mac(self, node: Node, network: str) -> str:
        """The profile's hardware address, or one made from the names where it has none."""
        digest = hashlib.sha256(f"{self.prefix} {node.name} {network}".encode()).digest()
        made = ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))  # locally administered
        return node.links[network].mac or made

    def _port(self, kind: str, node: Node, network: str) -> str:
        members = [each.name for each in self.profile.nodes if network in each.links]
        return f"{kind}{self._index(network)}-{members.index(node.name)}"

    def _index(self, network: str) -> int:
        return list(self.profile.networks).index(network)
