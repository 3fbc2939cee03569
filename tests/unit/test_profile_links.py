"""VLANs, bonds, networks of two addresses: what is refused. Their files: the golden tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import DATA

from orchestrator.core.errors import BadInput
from orchestrator.models.profiles import load
from orchestrator.provision.identity import node_files

LINKS = DATA / "golden/links/profile.yml"
NETWORKS = "/etc/systemd/network"


@pytest.mark.parametrize(
    ("old", "new", "wrong"),
    [
        ("id: 101,", "id: 100,", "links.plain.vlan.id: 100 on enp2s0 is also 'jumbo'; keep one"),
        (
            "id: 101, interface: enp2s0",
            "id: 101, interface: v100",
            "links.plain.vlan.interface: v100 is a VLAN itself; name a card or a bond",
        ),
        ("id: 101,", "id: 4095,", "links.plain.vlan.id: "),
        (
            "mtu: 8996",
            "mtu: 9001",
            "networks.ray.mtu: 9001 is more than networks.lan.mtu, which carries it on node-a; "
            "allowed: 9000 or less",
        ),
        (
            "storage: { subnet: 10.5.0.0/24",
            "storage: { subnet: 10.5.0.0/24, mtu: 9001",
            "networks.storage.mtu: 9001 is more than networks.fast.mtu, which carries it on node-a",
        ),
        (
            "[enp3s0f0, enp3s0f1] } }\n      storage",
            "[] } }\n      storage",
            "bond.interfaces: is empty; allowed: one or more",
        ),
        ("address: 10.6.0.1 }", "address: 10.6.0.2 }", "allowed: 10.6.0.0 to 10.6.0.1"),
        ("address: 10.6.0.1 }", "address: 10.6.0.0 }", "is also the address of node-a"),
    ],
)
def test_links_that_cannot_be(old: str, new: str, wrong: str, tmp_path: Path) -> None:
    text = LINKS.read_text()
    assert old in text
    path = tmp_path / "links.yml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(BadInput) as raised:
        load(path)
    assert wrong in raised.value.message


def test_a_boot_network_of_two_addresses_has_no_broadcast(tmp_path: Path) -> None:
    text = LINKS.read_text().replace("192.168.10.0/24", "192.168.10.0/31")
    path = tmp_path / "links.yml"
    path.write_text(text)
    with pytest.raises(BadInput) as raised:
        load(path)
    assert "networks.lan.subnet: 192.168.10.0/31 has no broadcast address" in raised.value.message


def test_a_vlan_is_not_taken_for_the_card_that_carries_it() -> None:
    """It has the card's hardware address, by which the card is found."""
    profile = load(LINKS)
    for node in profile.compute_nodes:
        files = {path: file.content for path, file in node_files(profile, node, "ca").items()}
        for kind in ("link", "network"):
            assert "Kind=!vlan" in files[f"{NETWORKS}/10-lan.{kind}"]
        assert "VLAN=ray7" in files[f"{NETWORKS}/10-lan.network"]
        others = [text for path, text in files.items() if "10-lan" not in path]
        assert others and not any("MACAddress=" in text for text in others)
