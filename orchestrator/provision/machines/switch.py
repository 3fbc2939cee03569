"""The simulator's switch: a bridge for each network, all in one network namespace."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.core.errors import BadInput
from orchestrator.core.run import run
from orchestrator.profile import Node
from orchestrator.provision.machines import netns
from orchestrator.provision.machines.network import Cables

#: A throttled link's burst: what it lets through at once after a pause. Larger packets are split.
BURST = "16kb"
#: A rate as people and tc write it, such as 2.5Gbit, and each prefix's factor.
RATE = re.compile(r"(\d+(?:\.\d+)?)([kmg]?)bit", re.IGNORECASE)
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
#: Limits in bits per second: below, one large packet takes seconds; above, tc's numbers overflow.
SLOWEST, QUICKEST = 10**5, 4 * 10**11


def bits_per_s(text: str) -> int:
    """The bits per second of a rate like 100Mbit or 2.5gbit. Raises BadInput for other text."""
    match = RATE.fullmatch(text.strip())
    found = int(float(match[1]) * UNITS[match[2].lower()]) if match else 0
    if not SLOWEST <= found <= QUICKEST:
        raise BadInput(
            f"Invalid cable rate {text!r}",
            "Give bits per second with a unit, 100kbit or more, such as 100Mbit or 2.5Gbit.",
        )
    return found


def cards(node: Node, boot: str) -> dict[str, str]:
    """A node's network cards, and the network that each one's cable leads to; those on the network
    ``boot`` are the first.

    A link is a card; a bond is several. A VLAN has none: its packets take the cable of what carries
    it, and need one of their own only where that has no link.
    """
    found: dict[str, str] = {}
    made = {link.interface for link in node.links.values()}
    for network, link in node.links.items():
        if link.bond:
            found |= dict.fromkeys(link.bond.interfaces, network)
        elif not link.vlan:
            found[link.interface] = network
        elif link.vlan.interface not in made:
            found.setdefault(link.vlan.interface, network)
    return dict(sorted(found.items(), key=lambda each: each[1] != boot))


@dataclass(frozen=True)
class Switch(Cables):
    """A bridge for each network, in the namespace `space`. Links: veth pairs and taps."""

    @property
    def space(self) -> str:
        return self.named("switch")

    def make(self) -> None:
        """Make the namespace and the bridges, unless they exist."""
        netns.create(self.space)
        for network in self.profile.networks:
            bridge = self.bridge(network)
            if not netns.has_link(self.space, bridge):
                netns.ip(self.space, "link", "add", bridge, "type", "bridge")
                netns.ip(self.space, "link", "set", bridge, "up")

    def remove(self) -> None:
        """Remove the bridges, and the nodes' namespaces with their links."""
        for node in self.profile.nodes:
            self.unplug(node)
        netns.delete(self.space)

    def unplug(self, node: Node) -> None:
        netns.delete(self.named(node.name))

    def bridge(self, network: str) -> str:
        return f"br{self._index(network)}"

    def plug_namespace(self, node: Node) -> str:
        """Make the node's namespace, with a veth link to each of its networks; return its name.

        The node's end comes into its namespace last, so a link that is there is connected, even if
        a run was killed here.
        """
        space = self.named(node.name)
        netns.create(space)
        for network, link in node.links.items():
            if netns.has_link(space, link.interface):
                continue
            port = self._port("port", node, network)
            end = f"{port}-end"
            peer = ["peer", "name", end, "address", self.mac(node, network)]
            run(["ip", "-n", self.space, "link", "delete", port], ok=None)  # of such a run
            add = ["ip", "-n", self.space, "link", "add", port, "type", "veth", *peer]
            run(add, what=f"plug {node.name} into {network}")
            self._connect(port, self.bridge(network), self.profile.networks[network].mtu)
            netns.ip(self.space, "link", "set", end, "netns", space, "name", link.interface)
        return space

    def throttle(self, node: Node, network: str, bits_per_s: int | None) -> None:
        """Limit a container's link to this rate in each direction; None removes the limit.

        It uses tc's token bucket filter, which most kernels have. Idempotent.
        """
        for space, end in self.ends(node, network):
            queue = ["tc", "-n", space, "qdisc"]
            if bits_per_s:
                bucket = ["tbf", "rate", f"{bits_per_s}bit", "burst", BURST, "latency", "50ms"]
                run([*queue, "replace", "dev", end, "root", *bucket], what=f"throttle {node.name}")
            else:
                run([*queue, "delete", "dev", end, "root"], ok=None)  # there may be none

    def throttled(self, node: Node) -> dict[str, int]:
        """The limits of the node's links in bits per second, by network. Links that are not
        limited, or do not exist yet, are left out."""
        found = {}
        spaces = netns.names()
        for network in node.links:
            for space, end in self.ends(node, network):
                asked = ["tc", "-n", space, "-json", "qdisc", "show", "dev", end]
                shown = run(asked, ok=None).out if space in spaces else ""
                for queue in json.loads(shown or "[]"):
                    if queue.get("kind") == "tbf":
                        found[network] = int(queue["options"]["rate"]) * 8  # tc prints bytes
        return found

    def ends(self, node: Node, network: str) -> Sequence[tuple[str, str]]:
        own = (self.named(node.name), node.links[network].interface)
        return [(self.space, self._port("port", node, network)), own]

    def plug_taps(self, node: Node) -> dict[str, str]:
        """Make a tap in the switch for each of the node's cards: the tap's name -> the card's
        hardware address, the boot network's first."""
        links = {link.interface for link in node.links.values()}
        made: dict[str, str] = {}
        for card, network in cards(node, self.profile.boot.network).items():
            port = self._port("tap", node, network)
            number = sum(tap.startswith(port) for tap in made)  # the others of a bond
            tap = f"{port}.{number}" if number else port
            self.add_tap(tap, self.bridge(network), self.profile.networks[network].mtu)
            made[tap] = self.mac(node, network, "" if card in links else card)
        return made

    def add_tap(self, tap: str, bridge: str, mtu: int | None = None) -> None:
        if not netns.has_link(self.space, tap):
            netns.ip(self.space, "tuntap", "add", "dev", tap, "mode", "tap")
            self._connect(tap, bridge, mtu)

    def _connect(self, port: str, bridge: str, mtu: int | None) -> None:
        """Put a port on a bridge. A bridge's MTU is the smallest of its ports."""
        size = ["mtu", str(mtu)] if mtu else []
        netns.ip(self.space, "link", "set", port, *size, "master", bridge, "up")

    def _port(self, kind: str, node: Node, network: str) -> str:
        members = [each.name for each in self.profile.nodes if network in each.links]
        return f"{kind}{self._index(network)}-{members.index(node.name)}"

    def _index(self, network: str) -> int:
        return list(self.profile.networks).index(network)
