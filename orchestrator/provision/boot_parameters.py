"""What a booting machine is told: addresses, URLs and the kernel's command line. Pure."""

from __future__ import annotations

from ipaddress import IPv6Network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.profile import Node, Profile

#: Loaders that are not the profile's choice: Secure Boot's chain begins with shim.
SHIM = "shimx64.efi"
#: The loader whose scripts the boot service hands out.
IPXE = "ipxe"


def server(profile: Profile) -> str:
    """Where nodes get boot files."""
    return f"http://{profile.boot_server}"


def script_url(profile: Profile) -> str:
    """iPXE's script; iPXE itself puts the address of the card that boots into it."""
    return f"{server(profile)}/boot/{IPXE}?mac=${{netX/mac}}"


def uefi_loader(profile: Profile, node: Node | None = None) -> str:
    """What UEFI firmware loads: of a node, or of any."""
    if profile.boot.secure:
        return SHIM
    return profile.loader(node) if node else profile.boot.loaders.uefi


def boots_over_http(profile: Profile) -> bool:
    """Whether the control node answers UEFI firmware that wants its loader over HTTP.

    The signed GRUB has no HTTP, and a DHCP proxy is for PXE only.
    """
    return profile.boot.dhcp == "authoritative" and not profile.boot.secure


def peers(profile: Profile, node: Node) -> list[str]:
    """Further places that a node may get layers from."""
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
    """The boot network's IPv6 prefix, made of its IPv4 address (RFC 4193: fd, then own bits)."""
    bits = int(profile.networks[profile.boot.network].subnet.network_address)
    high, low = bits >> 16, bits & 0xFFFF
    return IPv6Network(f"fd6f:7263:{high:x}:{low:x}::/64")


def advertises(profile: Profile) -> bool:
    """Whether the control node may speak IPv6 on the boot network: where it rules there."""
    return profile.boot.dhcp == "authoritative"
