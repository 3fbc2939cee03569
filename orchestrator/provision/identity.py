"""The files that a node gets at boot, before SSH: host name, network, SSH keys and certificate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from orchestrator.core.templating import render
from orchestrator.node.trust import HostIdentity
from orchestrator.provision import boot_parameters

if TYPE_CHECKING:
    from orchestrator.profile import Node, Profile

HOST_KEY = "/etc/ssh/ssh_host_ed25519_key"
HOST_CERTIFICATE = f"{HOST_KEY}-cert.pub"
USER_CA = "/etc/ssh/user_ca.pub"
RESOLVERS = "/etc/resolv.conf"
#: Accounts' keys, a file each (cluster/desired.py). sshd reads no other.
AUTHORIZED_KEYS = "/etc/ssh/authorized_keys.d"


@dataclass(frozen=True)
class BootFile:
    """A file in the node's root, owned by root; the content may be a private key."""

    content: str = field(repr=False)
    mode: int = 0o644


def boot_files(
    profile: Profile, node: Node, identity: HostIdentity, user_ca_public: str
) -> dict[str, BootFile]:
    """Files for one boot of ``node``, with its private host key: path in its root -> file."""
    return {
        **node_files(profile, node, user_ca_public),
        HOST_KEY: BootFile(identity.private.reveal(), 0o600),
        f"{HOST_KEY}.pub": BootFile(identity.public),
        HOST_CERTIFICATE: BootFile(identity.certificate),
    }


def node_files(profile: Profile, node: Node, user_ca_public: str) -> dict[str, BootFile]:
    """The files that are not secret and the same at each boot: path in the node's root -> file."""
    files = {
        "/etc/hostname": BootFile(f"{node.host_name}\n"),
        "/etc/hosts": BootFile(hosts(profile, node)),
        USER_CA: BootFile(user_ca_public),
        "/etc/ssh/sshd_config.d/50-orchestrate.conf": BootFile(
            render(
                "sshd.conf",
                host_key=HOST_KEY,
                host_certificate=HOST_CERTIFICATE,
                user_ca=USER_CA,
                authorized_keys=AUTHORIZED_KEYS,
                address=profile.boot_link(node).address,
            )
        ),
        "/etc/systemd/system/ssh.service.d/50-orchestrate.conf": BootFile(render("ssh-retry.conf")),
    }
    for network, link in node.links.items():
        path, content = network_file(profile, node, network)
        files[path] = BootFile(content)
        if link.vlan or link.bond:
            text = render("link.netdev", interface=link.interface, vlan=link.vlan, bond=link.bond)
            files[f"{path.removesuffix('.network')}.netdev"] = BootFile(text)
        if link.mac:  # name the card as in the profile, whatever slot it is in
            wakes = network == profile.boot.network and _is_woken(profile, node)
            text = render(
                "link.link",
                mac=link.mac,
                interface=link.interface,
                wakes=wakes,
                vlans=list(_vlans_on(node, link.interface)),
            )
            files[f"{path.removesuffix('.network')}.link"] = BootFile(text)
    for card, text in _cards(profile, node).items():
        files[f"/etc/systemd/network/20-card-{card}.network"] = BootFile(text)
    if profile.boot.dns:
        files[RESOLVERS] = BootFile(resolvers(profile))
    return files


def resolvers(profile: Profile) -> str:
    """/etc/resolv.conf of the profile's DNS servers."""
    return render("resolv.conf", servers=profile.boot.dns)


def _cards(profile: Profile, node: Node) -> dict[str, str]:
    """The systemd-networkd files of cards that bonds are made of or that only carry VLANs."""
    bonds = {
        card: link.interface
        for link in node.links.values()
        for card in (link.bond.interfaces if link.bond else ())
    }
    files = {card: _card(card, bond=bond) for card, bond in bonds.items()}
    own = {link.interface for link in node.links.values()}
    for link in node.links.values():
        if link.vlan and link.vlan.interface not in own:
            card = link.vlan.interface
            vlans = _vlans_on(node, card)
            mtu = max(profile.networks[name].mtu or 0 for name in vlans.values())
            files[card] = _card(card, vlans=list(vlans), mtu=mtu)
    return files


def _card(card: str, bond: str = "", vlans: Sequence[str] = (), mtu: int = 0) -> str:
    return render("card.network", interface=card, bond=bond, vlans=vlans, mtu=mtu)


def _vlans_on(node: Node, interface: str) -> dict[str, str]:
    """The VLANs that an interface carries, by their own interfaces: their networks."""
    return {
        link.interface: network
        for network, link in node.links.items()
        if link.vlan and link.vlan.interface == interface
    }


def _is_woken(profile: Profile, node: Node) -> bool:
    """Whether Wake-on-LAN switches the node on, so that its card has to be set up for it."""
    return not profile.is_control(node) and profile.power_of(node).driver == "wol"


def principals(node: Node) -> list[str]:
    """The principals of a node's host certificate: its name (ssh checks that) and addresses."""
    return [node.name, *(str(link.address) for link in node.links.values())]


def hosts(profile: Profile, node: Node) -> str:
    """/etc/hosts: each node by its plain name on Ray's network, by NAME-NETWORK on the others."""
    ray = profile.ray.network
    names = {
        each.name: " ".join(dict.fromkeys((each.name, each.host_name))) for each in profile.nodes
    }
    lines = [
        (str(link.address), names[other.name] if network == ray else f"{other.name}-{network}")
        for other in profile.nodes
        for network, link in other.links.items()
    ]
    return render("hosts", compute=not profile.is_control(node), lines=lines)


def network_file(profile: Profile, node: Node, network: str) -> tuple[str, str]:
    """Path and text of the systemd-networkd file for a node's link."""
    return f"/etc/systemd/network/10-{network}.network", _network(profile, node, network)


def _network(profile: Profile, node: Node, network: str) -> str:
    """The text of a link's systemd-networkd file, with the default route if it is on this link."""
    link = node.links[network]
    is_boot = network == profile.boot.network
    controls = profile.is_control(node) and is_boot
    leads_outside = any(profile.gateway(node, each) for each in node.links)
    return render(
        "link.network",
        mac=link.mac,
        interface=link.interface,
        address=f"{link.address}/{profile.networks[network].subnet.prefixlen}",
        # For router advertisements on the boot network: loaders that ask for IPv6 wait for one.
        ula=f"{boot_parameters.ula(profile)[1]}/64"
        if controls and boot_parameters.advertises(profile)
        else None,
        gateway=profile.gateway(node, network),
        # Ray needs a default route, even if no gateway exists.
        link_route=controls and not leads_outside,
        mtu=profile.networks[network].mtu,
        vlans=list(_vlans_on(node, link.interface)),
        routes=_routes(profile, node, network),
    )


@dataclass(frozen=True)
class Route:
    """A static route to one address; `source` is the node's own address for it."""

    destination: IPv4Address
    gateway: IPv4Address
    source: IPv4Address


def _routes(profile: Profile, node: Node, network: str) -> list[Route]:
    """Routes for a network that carries another network's traffic (`carries`): one per peer node.

    They are in this link's file, so that they exist only while the link is up. While it is down,
    the other network's own link takes the traffic.
    """
    carried = profile.networks[network].carries
    if carried is None:
        return []
    return [
        Route(
            other.links[carried].address, other.links[network].address, node.links[carried].address
        )
        for other in profile.nodes
        if other.name != node.name and network in other.links
    ]
