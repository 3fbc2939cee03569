"""The networks of a real cluster: the control node uses network cards of this machine.

A card is moved into the control node's network namespace, as systemd-nspawn's
`--network-interface=` does, and moved back on `down`. The card that this machine itself is reached
by is never moved. A link with `shared: true` gets a MACVLAN on it instead.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.core import paths
from orchestrator.core.errors import UserError
from orchestrator.core.run import CommandFailed, run
from orchestrator.profile import Link, Node
from orchestrator.provision.machines import netns
from orchestrator.provision.machines.network import Cables


@dataclass(frozen=True)
class Taken:
    """A card that was moved to the control node: its former name, state and addresses."""

    name: str
    up: bool
    addresses: Sequence[str]


@dataclass(frozen=True)
class Cards(Cables):
    """The control node's links of a real cluster. Other nodes' links are not on this machine."""

    @property
    def record(self) -> Path:
        return paths.cluster(self.profile.name) / "machines/cards.json"

    def make(self) -> None:
        """Nothing: the switch is a real one."""

    def plug_namespace(self, node: Node) -> str:
        """Make the control node's namespace and move its cards there, unless they are there.

        Returns its name. Raises UserError if a card does not exist, or this machine is reached by
        it.
        """
        space = self.named(node.name)
        found = {
            network: None if netns.has_link(space, link.interface) else self._find(node, network)
            for network, link in node.links.items()
        }
        netns.create(space)
        for network, card in found.items():
            link = node.links[network]
            if card and link.shared:
                self._share(space, card, link.interface, self.mac(node, network))
            elif card:
                self._take(space, card, link.interface)
        return space

    def remove(self) -> None:
        self.unplug(self.profile.control)

    def unplug(self, node: Node) -> None:
        """Move the cards back, then remove the namespace."""
        space = self.named(node.name)
        for interface, taken in self._taken().items():
            if netns.has_link(space, interface):
                self._give_back(space, interface, taken)
        self.record.unlink(missing_ok=True)
        netns.delete(space)

    def _find(self, node: Node, network: str) -> Mapping[str, Any]:
        """This machine's card for a link. Raises UserError if there is none, or it must stay."""
        link = node.links[network]
        where = self.profile.where("control", "links", network)
        cards = [card for card in ip("link", "show") if "LOOPBACK" not in card["flags"]]
        card = matching(cards, link)
        if card is None:
            listed = ", ".join(f"{one['ifname']} ({one.get('address', '-')})" for one in cards)
            called = f"{link.interface}{f' ({link.mac})' if link.mac and not link.shared else ''}"
            raise UserError(
                f"{where}: this machine has no network card {called}",
                f"Plug it in, or correct the profile. Cards of this machine: {listed or 'none'}",
            )
        reason = "" if link.shared else why_not(card)
        if reason:
            raise UserError(
                f"{where}: {card['ifname']} {reason}: moving it would disconnect this machine",
                "Use another card for the cluster, or set `shared: true` on this link: then the"
                " control node has an address of its own beside this machine's.",
            )
        return card

    def _take(self, space: str, card: Mapping[str, Any], interface: str) -> None:
        name = card["ifname"]
        addresses = [
            f"{one['local']}/{one['prefixlen']}"
            for one in ip("address", "show", "dev", name)[0].get("addr_info", ())
            if one["scope"] == "global" and not one.get("dynamic")
        ]
        taken = self._taken() | {interface: Taken(name, "UP" in card["flags"], addresses)}
        # Record the card before moving it: after a crash, `remove` still finds it. It skips a card
        # that was not moved yet.
        self.record.parent.mkdir(parents=True, exist_ok=True)
        self.record.write_text(json.dumps({key: vars(one) for key, one in taken.items()}))
        with netns.entered(netns.host()):
            run(["ip", "link", "set", name, "down"], what=f"take the network card {name}")
            words = ["ip", "link", "set", name, "netns", netns.DIRECTORY / space]
            run([*words, "name", interface], what=f"take the network card {name}")

    def _share(self, space: str, card: Mapping[str, Any], interface: str, mac: str) -> None:
        name = card["ifname"]
        words = ["ip", "link", "add", "link", name, "name", interface, "address", mac]
        words += ["netns", str(netns.DIRECTORY / space), "type", "macvlan", "mode", "bridge"]
        with netns.entered(netns.host()):
            run(["ip", "link", "set", name, "up"])
            run(words, what=f"share the network card {name}")

    def _give_back(self, space: str, interface: str, taken: Taken) -> None:
        netns.ip(space, "link", "set", interface, "down")
        netns.ip(space, "link", "set", interface, "netns", str(netns.host()), "name", taken.name)
        with netns.entered(netns.host()):
            if taken.up:
                run(["ip", "link", "set", taken.name, "up"])
            for address in taken.addresses:
                # The host's network service may have set the address already.
                with suppress(CommandFailed):
                    run(["ip", "address", "add", address, "dev", taken.name])

    def _taken(self) -> dict[str, Taken]:
        """The moved cards, by their name in the namespace."""
        if not self.record.exists():
            return {}
        return {name: Taken(**one) for name, one in json.loads(self.record.read_text()).items()}


def ip(*words: str) -> list[dict[str, Any]]:
    """The output of `ip -json` in this machine's own network namespace."""
    with netns.entered(netns.host()):
        found: list[dict[str, Any]] = json.loads(run(["ip", "-json", *words]).out or "[]")
    return found


def matching(cards: Sequence[Mapping[str, Any]], link: Link) -> Mapping[str, Any] | None:
    """The card with the link's hardware address; if the link has none, the card with its name.

    The hardware address of a shared link is the MACVLAN's, so only the name counts.
    """
    wanted = "" if link.shared else link.mac
    for card in cards:
        if wanted and wanted in (card.get("address"), card.get("permaddr")):
            return card
    for card in cards:
        if not wanted and link.interface in (card["ifname"], *card.get("altnames", ())):
            return card
    return None


def why_not(card: Mapping[str, Any]) -> str:
    """Why a card must not be moved away from this machine; empty if it may."""
    name = card["ifname"]
    routes = [route for kind in ("-4", "-6") for route in ip(kind, "route", "show", "default")]
    if any(route.get("dev") == name for route in routes):
        return "leads to this machine's default route"
    if card.get("master"):
        return f"belongs to {card['master']}"
    here = os.environ.get("SSH_CONNECTION", "").split()[2:3]
    own = [one["local"] for one in ip("address", "show", "dev", name)[0].get("addr_info", ())]
    return "carries the SSH session that this command runs in" if set(here) & set(own) else ""
