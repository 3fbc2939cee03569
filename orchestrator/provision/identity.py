"""What a node is given at boot, before SSH: its name, its network, and its SSH identity."""

from __future__ import annotations

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


@dataclass(frozen=True)
class BootFile:
    """A file in the node's root, owned by root; the content may be a private key."""

    content: str = field(repr=False)
    mode: int = 0o644


def boot_files(
    profile: Profile, node: Node, identity: HostIdentity, user_ca_public: str
) -> dict[str, BootFile]:
    """Path in the node's root -> file, for one boot of ``node`` whose key is made here."""
    return {
        **node_files(profile, node, user_ca_public),
        HOST_KEY: BootFile(identity.private.reveal(), 0o600),
        f"{HOST_KEY}.pub": BootFile(identity.public),
        HOST_CERTIFICATE: BootFile(identity.certificate),
    }


def node_files(profile: Profile, node: Node, user_ca_public: str) -> dict[str, BootFile]:
    """Path in the node's root -> file: what is no secret and the same at each boot."""
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
                address=profile.boot_link(node).address,
            )
        ),
        "/etc/systemd/system/ssh.service.d/50-orchestrate.conf": BootFile(render("ssh-retry.conf")),
    }
    for network, link in node.links.items():
        path, content = network_file(profile, node, network)
        files[path] = BootFile(content)
        if link.mac:  # the card gets the name that the profile calls it by, whatever slot it is in
            wakes = network == profile.boot.network and _is_woken(profile, node)
            text = render("link.link", mac=link.mac, interface=link.interface, wakes=wakes)
            files[f"{path.removesuffix('.network')}.link"] = BootFile(text)
    return files


def _is_woken(profile: Profile, node: Node) -> bool:
    """Whether a Wake-on-LAN packet switches the node on: its card has to be told to wait for it."""
    return not profile.is_control(node) and profile.power_of(node).driver == "wol"


def principals(node: Node) -> list[str]:
    """What a node's host certificate is for: its name, which ssh asks for, and its addresses."""
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
    """Path and text of what tells systemd-networkd about a node's link."""
    return f"/etc/systemd/network/10-{network}.network", _network(profile, node, network)


def _network(profile: Profile, node: Node, network: str) -> str:
    """A network's systemd-networkd file, with the default route where it leads that way."""
    link = node.links[network]
    is_boot = network == profile.boot.network
    controls = profile.is_control(node) and is_boot
    leads_outside = any(profile.gateway(node, each) for each in node.links)
    return render(
        "link.network",
        mac=link.mac,
        interface=link.interface,
        address=f"{link.address}/{profile.networks[network].subnet.prefixlen}",
        # The control node advertises on the boot network, for loaders that ask for IPv6.
        ula=f"{boot_parameters.ula(profile)[1]}/64"
        if controls and boot_parameters.advertises(profile)
        else None,
        gateway=profile.gateway(node, network),
        # Ray wants a default route, also where nothing lies behind it.
        link_route=controls and not leads_outside,
        mtu=profile.networks[network].mtu,
        routes=_routes(profile, node, network),
    )


@dataclass(frozen=True)
class Route:
    """The way to one address, by a neighbour's, from one of the node's own."""

    destination: IPv4Address
    gateway: IPv4Address
    source: IPv4Address


def _routes(profile: Profile, node: Node, network: str) -> list[Route]:
    """By a network that carries another one: the way to the node at its other end.

    They are in the link's own file, so that they come and go with the link: while it is down, the
    other network takes its own traffic.
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
