"""DHCP's answers to booting machines, for our dnsmasq and for other DHCP servers. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.core.templating import render
from orchestrator.provision import boot_parameters

if TYPE_CHECKING:
    from orchestrator.profile import Profile

#: The DHCP servers that `lines` supports: name -> template.
SERVERS = {"dnsmasq": "dnsmasq-boot.conf", "dhcpd": "dhcpd-boot.conf", "kea": "kea-boot.json"}


def values(profile: Profile, *, http: bool) -> dict[str, Any]:
    """The values for the templates of DHCP servers. `http`: whether UEFI HTTP boot is answered."""
    uefi = boot_parameters.uefi_loader(profile)
    return {
        "address": profile.boot_link(profile.control).address,
        "secure": boot_parameters.boots_shim(profile),
        "script": boot_parameters.script_url(profile),
        "http": f"{boot_parameters.server(profile)}/loaders" if http else None,
        "bios": profile.boot.loaders.bios,
        "uefi": uefi,
        "nodes": [
            {
                "name": node.name,
                "mac": profile.boot_link(node).mac,
                "address": profile.boot_link(node).address,
                "loader": boot_parameters.uefi_loader(profile, node),
                "own_loader": boot_parameters.uefi_loader(profile, node) != uefi,
            }
            for node in profile.compute_nodes
        ],
    }


def lines(profile: Profile, server: str) -> str:
    """Configuration lines for another server that is the only DHCP server on the network."""
    filled = values(profile, http=not boot_parameters.boots_shim(profile))
    return render(SERVERS[server], dhcp="authoritative", **filled)


def options(profile: Profile) -> Sequence[tuple[str, str, str]]:
    """Rows (client, option, value) of the same answers, for servers without a template."""
    filled = values(profile, http=not boot_parameters.boots_shim(profile))
    rows = [
        ("all", "66 / next-server (TFTP)", str(filled["address"])),
        ("option 93 = 0 (BIOS)", "67 / filename", filled["bios"]),
        ("option 93 = 7 or 9 (UEFI)", "67 / filename", filled["uefi"]),
    ]
    for node in filled["nodes"]:
        if node["own_loader"]:
            who = f"option 93 = 7 or 9 (UEFI), {node['mac']}"
            rows.append((who, "67 / filename", node["loader"]))
            if filled["http"]:
                who = f"option 93 = 16 (UEFI HTTP), {node['mac']}"
                rows.append((who, "67 / filename", f"{filled['http']}/{node['loader']}"))
    if filled["http"]:
        rows += [
            ("option 93 = 16 (UEFI HTTP)", "60 / vendor class", "HTTPClient"),
            ("option 93 = 16 (UEFI HTTP)", "67 / filename", f"{filled['http']}/{filled['uefi']}"),
        ]
    shim = boot_parameters.boots_shim(profile)
    who = "option 93 = 0 and option 77 = iPXE" if shim else "option 77 = iPXE"
    rows.append((who, "67 / filename", filled["script"]))
    rows += [(node["mac"], "its address", str(node["address"])) for node in filled["nodes"]]
    return rows
