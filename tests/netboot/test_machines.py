"""Two machines at once, with a VLAN and a bond between them, and one whose clock is wrong."""

from __future__ import annotations

import copy
import time

import pytest
from support.booting import Booting, until
from support.netboot import Net

pytestmark = pytest.mark.netboot


#: As QEMU's q35 places them, behind the card of the boot network.
PAIR = ["enp0s3", "enp0s4"]


def test_two_nodes_at_once_with_a_vlan_and_a_bond(net: Net) -> None:
    """The VLAN is on the boot network's card; of the bond's cards one loses its cable."""
    nodes = copy.deepcopy(net.base["compute_nodes"])
    for number, node in enumerate(nodes):
        (card,) = node["links"].values()
        vlan = {"id": 7, "interface": card["interface"]}
        bond = {"interfaces": PAIR, "mode": "active-backup"}
        node["links"] |= {
            "tagged": {"interface": "tagged7", "address": f"10.79.7.{number + 1}", "vlan": vlan},
            "pair": {"interface": "bond0", "address": f"10.79.8.{number + 1}", "bond": bond},
        }
    networks = {"tagged": {"subnet": "10.79.7.0/24"}, "pair": {"subnet": "10.79.8.0/24"}}
    with net.changed(networks=networks, compute_nodes=nodes):
        both = {name: net.boot(name) for name in ("compute0", "compute1")}
        for name, booting in both.items():
            booting.reaches_ssh(name)
        keys = {net.on(name, "cat", "/etc/ssh/ssh_host_ed25519_key.pub") for name in both}
        assert len(keys) == len(both)
        state = ("systemctl", "is-system-running", "--wait")
        assert [net.on(name, *state) for name in both] == ["running"] * 2
        first = both["compute0"]
        assert "vlan protocol 802.1Q id 7" in first.shell("ip -details link show tagged7")
        bonded = first.shell("cat /sys/class/net/bond0/bonding/slaves").split()
        assert sorted(bonded) == PAIR
        answers(first, "10.79.7.2")
        answers(first, "10.79.8.2")
        active = "cat /sys/class/net/bond0/bonding/active_slave"
        cut = first.shell(active).strip()
        first.machine.guest.qmp("set_link", name=f"nic{PAIR.index(cut) + 1}", up=False)
        until("the other card", 30, lambda: first.shell(active).strip() not in ("", cut), str)
        answers(first, "10.79.8.2")


def answers(booting: Booting, address: str) -> None:
    """Wait until an address answers the machine: systemd-networkd may still be at its links."""
    ping = f"ping -c1 -W1 {address} >/dev/null && echo yes || true"
    until(f"{address} answers", 60, lambda: booting.shell(ping).strip() == "yes", booting.tail)


def test_a_clock_that_is_years_ahead(net: Net) -> None:
    """sshd would take the operator's certificate for one that has ended."""
    booting = net.start_kernel(extra=("-rtc", "base=2033-05-18T00:00:00"))
    booting.reaches_ssh()
    assert "s off; set to the server's" in booting.console
    assert abs(int(net.on("compute0", "date", "+%s")) - time.time()) < 60
