"""The simulator's switch: a bridge for each network, all in one network namespace."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.core.errors import BadInput
from orchestrator.core.run import run
from orchestrator.provision.machines import netns
from orchestrator.provision.machines.network import Cables

if TYPE_CHECKING:
    from orchestrator.profile import Node


#: Of a throttled cable: what it lets through at once after a pause. Larger packets are cut.
BURST = "16kb"
#: A rate as people and tc write it, and what its unit means in bits a second.
RATE = re.compile(r"(\d+(?:\.\d+)?)([kmg]?)bit", re.IGNORECASE)
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
#: Below it a large packet takes seconds; above it tc's numbers end.
SLOWEST, QUICKEST = 10**5, 4 * 10**11


def bits_per_s(text: str) -> int:
    """Bits a second of a rate like 100Mbit or 2.5gbit. Raises BadInput for another text."""
    match = RATE.fullmatch(text.strip())
    found = int(float(match[1]) * UNITS[match[2].lower()]) if match else 0
    if not SLOWEST <= found <= QUICKEST:
        raise BadInput(
            f"Invalid cable rate {text!r}",
            "Give bits per second with a unit, 100kbit or more, such as 100Mbit or 2.5Gbit.",
        )
    return found


@dataclass(frozen=True)
class Switch(Cables):
    """A bridge for each network. `space` is the namespace that holds them."""

    @property
    def space(self) -> str:
        return self.named("switch")

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

    def throttle(self, node: Node, network: str, bits_per_s: int | None) -> None:
        """Let a container's cable carry no more than that, each way; None: all that it can. (A
        token bucket: this kernel may have no other shaper.) Done again, it changes nothing."""
        for space, end in self._ends(node, network):
            queue = ["tc", "-n", space, "qdisc"]
            if bits_per_s:
                bucket = ["tbf", "rate", f"{bits_per_s}bit", "burst", BURST, "latency", "50ms"]
                run([*queue, "replace", "dev", end, "root", *bucket], what=f"throttle {node.name}")
            else:
                run([*queue, "delete", "dev", end, "root"], ok=None)  # there may be none

    def throttled(self, node: Node) -> dict[str, int]:
        """By network, the bits a second that the node's cables were throttled to; others are not in
        it, nor is anything of a node that has no cables yet."""
        found = {}
        spaces = netns.names()
        for network in node.links:
            for space, end in self._ends(node, network):
                asked = ["tc", "-n", space, "-json", "qdisc", "show", "dev", end]
                shown = run(asked, ok=None).out if space in spaces else ""
                for queue in json.loads(shown or "[]"):
                    if queue.get("kind") == "tbf":
                        found[network] = int(queue["options"]["rate"]) * 8  # tc says bytes
        return found

    def _ends(self, node: Node, network: str) -> list[tuple[str, str]]:
        """Namespace and interface of each end of a container's cable: both shape what they send."""
        own = (self.named(node.name), node.links[network].interface)
        return [(self.space, self._port("port", node, network)), own]

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

    def _port(self, kind: str, node: Node, network: str) -> str:
        members = [each.name for each in self.profile.nodes if network in each.links]
        return f"{kind}{self._index(network)}-{members.index(node.name)}"

    def _index(self, network: str) -> int:
        return list(self.profile.networks).index(network)
