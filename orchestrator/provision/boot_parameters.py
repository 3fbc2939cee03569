"""Boot parameters of a node: URLs, loader, kernel command line. Pure functions."""

from __future__ import annotations

from ipaddress import IPv6Network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.profile import Node, Profile

#: The UEFI loader with `boot.secure: true`, whatever the profile's `boot.loaders` says.
SHIM = "shimx64.efi"
#: The value of `boot.secure` with the user's own key, and how the names of signed images end.
OWN, SIGNED = "own", ".signed.efi"
#: The loader that the boot service has scripts for.
IPXE = "ipxe"


def server(profile: Profile) -> str:
    """The URL of the control node's web server for boot files, without a path."""
    return f"http://{profile.boot_server}"


def script_url(profile: Profile) -> str:
    """The URL of iPXE's script; iPXE replaces ${netX/mac} with the booting card's address."""
    return f"{server(profile)}/boot/{IPXE}?mac=${{netX/mac}}"


def uefi_loader(profile: Profile, node: Node | None = None) -> str:
    """The file that UEFI firmware loads: on `node`, else on nodes without a loader of their own."""
    if boots_shim(profile):
        return SHIM
    if node and profile.boot.secure == OWN:
        return signed_image(node)
    return profile.loader(node) if node else profile.boot.loaders.uefi


def boots_shim(profile: Profile) -> bool:
    """Whether UEFI nodes boot shim, GRUB and a kernel of Debian's."""
    return profile.boot.secure is True


def signed_image(node: Node) -> str:
    """The file with a node's own signed image (netboot/signed.py)."""
    return f"{node.name}{SIGNED}"


def boots_over_http(profile: Profile) -> bool:
    """Whether the control node answers UEFI HTTP boot, where firmware fetches its loader by HTTP.

    Not with shim (the signed GRUB has no HTTP), and not as a DHCP proxy (PXE only).
    """
    return profile.boot.dhcp == "authoritative" and not boots_shim(profile)


def peers(profile: Profile, node: Node) -> list[str]:
    """URLs of the other nodes that a node may fetch layers from."""
    if not profile.boot.peers:
        return []
    others = (other for other in profile.compute_nodes if other.name != node.name)
    port = profile.boot.http_port
    return [f"http://{profile.boot_link(other).address}:{port}" for other in others]


def command_line(profile: Profile, node: Node, image: str, boot: str = "") -> str:
    """The kernel's command line for a node; `boot` is the boot's nonce, if the script has one."""
    words = [f"orchestrate.server={server(profile)}", f"orchestrate.image={image}"]
    words += [f"orchestrate.node={node.name}"]
    words += [f"orchestrate.boot={boot}"] if boot else []
    words += [f"orchestrate.peers={','.join(peers(profile, node))}"] if peers(profile, node) else []
    late = profile.boot.late_layers
    words += [f"orchestrate.late={','.join(late)}"] if late else []
    words += [f"BOOTIF=01-{profile.boot_link(node).mac.replace(':', '-')}"]
    words += [f"console={console}" for console in profile.boot.consoles]
    return " ".join([*words, *profile.boot.kernel_args])


def ula(profile: Profile) -> IPv6Network:
    """The boot network's IPv6 prefix: a ULA (RFC 4193) that contains its IPv4 address."""
    bits = int(profile.networks[profile.boot.network].subnet.network_address)
    high, low = bits >> 16, bits & 0xFFFF
    return IPv6Network(f"fd6f:7263:{high:x}:{low:x}::/64")


def advertises(profile: Profile) -> bool:
    """Whether the control node advertises IPv6 on the boot network: only as its DHCP server."""
    return profile.boot.dhcp == "authoritative"
