"""boot.json: the document that the boot service reads, computed from profile and image. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.core.templating import render
from orchestrator.node.paths import SSH_PORT
from orchestrator.provision import boot_parameters
from orchestrator.provision.identity import HOST_CERTIFICATE, node_files, principals

if TYPE_CHECKING:
    from orchestrator.profile import Node, Profile
    from orchestrator.provision.netboot.images import Image, ImageChoice

#: Placeholder in a script for the boot's nonce; "@mac@" is an unknown machine's hardware address.
NONCE = "@boot@"


def document(profile: Profile, choice: ImageChoice, user_ca_public: str) -> dict[str, Any]:
    """The boot service's input for this cluster; it contains no secret."""
    assert choice.current is not None
    return {
        "schema": 1,
        "server": boot_parameters.server(profile),
        "ssh_port": SSH_PORT,
        "leases": "ours" if profile.boot.dhcp == "authoritative" else "foreign",
        "image": vars(choice.current),
        "previous": vars(choice.previous) if choice.previous else None,
        "certificate": HOST_CERTIFICATE,
        "nodes": {
            profile.boot_link(node).mac: _node(profile, node, choice.current, user_ca_public)
            for node in profile.compute_nodes
        },
        "unknown": {boot_parameters.IPXE: render("unknown.ipxe")},
    }


def _node(profile: Profile, node: Node, image: Image, user_ca_public: str) -> dict[str, Any]:
    link = profile.boot_link(node)
    files = node_files(profile, node, user_ca_public)
    return {
        "name": node.name,
        "address": str(link.address),
        "principals": principals(node),
        boot_parameters.IPXE: render(
            "boot.ipxe",
            name=node.name,
            image=image,
            server=boot_parameters.server(profile),
            command_line=boot_parameters.command_line(profile, node, image.id, NONCE),
            again=_script(profile, link.mac),
        ),
        "files": {path: {"content": f.content, "mode": f.mode} for path, f in files.items()},
    }


def _script(profile: Profile, mac: str) -> str:
    return f"{boot_parameters.server(profile)}/boot/{boot_parameters.IPXE}?mac={mac}"


def grub_cfg(profile: Profile, image: Image, directory: str) -> str:
    """GRUB's configuration for Secure Boot; kernel and initrd are in `directory` of the TFTP root.

    It has no nonce, since the file is the same at each boot: the initrd requests one.
    """
    nodes = [
        {
            "name": node.name,
            "mac": profile.boot_link(node).mac,
            "command_line": boot_parameters.command_line(profile, node, image.id),
        }
        for node in profile.compute_nodes
    ]
    return render("grub.cfg", nodes=nodes, image=image, directory=directory)
