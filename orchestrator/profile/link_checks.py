"""What has to fit for links that are VLANs or bonds."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.core.source import Loc
from orchestrator.profile.model import Boot, Link, Network, Node

#: What has no effect on an interface that the node makes itself.
OF_CARDS = ("mac", "shared")
ON_THE_HOST = (
    "the control node's links are interfaces of its host; make it there, name it in interface, and "
    "leave this out"
)


def of_cards(
    boot: Boot, control: Node, compute_nodes: tuple[Node, ...]
) -> Iterator[tuple[Loc, str]]:
    """Mistakes in VLANs and bonds: (where, what is wrong; what is allowed)."""
    for network, link in control.links.items():
        for kind in _kinds(link):
            yield ("control", "links", network, kind), ON_THE_HOST
    for index, node in enumerate(compute_nodes):
        for network, link in node.links.items():
            loc = ("compute_nodes", index, "links", network)
            for kind in _kinds(link):
                for key in OF_CARDS:
                    if getattr(link, key):
                        yield (
                            (*loc, key),
                            f"has no effect on a {kind}, which no card is; leave it out",
                        )
                if network == boot.network:
                    text = "firmware cannot boot from it; use a card on boot.network"
                    yield (*loc, kind), text
            if link.vlan and link.bond:
                yield (*loc, "vlan"), "a link is one of both; give the bond a link of its own"
        yield from _members(("compute_nodes", index, "links"), node)


def _kinds(link: Link) -> list[str]:
    return [kind for kind in ("vlan", "bond") if getattr(link, kind)]


def _members(loc: Loc, node: Node) -> Iterator[tuple[Loc, str]]:
    """Each card is in one bond, or carries VLANs, or has a link; a VLAN is there once."""
    taken = {link.interface: f"the link on '{name}'" for name, link in node.links.items()}
    for name, link in node.links.items():
        for place, card in enumerate(link.bond.interfaces if link.bond else ()):
            where = (*loc, name, "bond", "interfaces", place)
            if card in taken:
                yield where, f"{card} is also {taken[card]}; a card of a bond is nothing else"
            taken[card] = f"in the bond '{name}'"
    vlans: dict[tuple[str, int], str] = {}
    made = {link.interface for link in node.links.values() if link.vlan}
    bonded = {card for link in node.links.values() if link.bond for card in link.bond.interfaces}
    for name, link in node.links.items():
        if link.vlan is None:
            continue
        where = (*loc, name, "vlan", "interface")
        if link.vlan.interface in made:
            yield where, f"{link.vlan.interface} is a VLAN itself; name a card or a bond"
        elif link.vlan.interface in bonded:
            yield where, f"{link.vlan.interface} is a card of a bond; name the bond's interface"
        key = (link.vlan.interface, link.vlan.id)
        if key in vlans:
            text = f"{link.vlan.id} on {link.vlan.interface} is also '{vlans[key]}'; keep one"
            yield (*loc, name, "vlan", "id"), text
        vlans[key] = name


def vlans_fit_into_packets(
    networks: dict[str, Network], compute_nodes: tuple[Node, ...]
) -> Iterator[tuple[Loc, str]]:
    """A VLAN's packets are packets of what carries it."""
    for node in compute_nodes:
        by_interface = {link.interface: name for name, link in node.links.items()}
        for name, link in node.links.items():
            below = by_interface.get(link.vlan.interface) if link.vlan else None
            if name not in networks or below is None or below not in networks:
                continue
            mtu, most = networks[name].mtu, networks[below].mtu
            if mtu and mtu > (most or 1500):
                text = f"{mtu} is more than networks.{below}.mtu, which carries it on {node.name}"
                yield ("networks", name, "mtu"), f"{text}; allowed: {most or 1500} or less"
