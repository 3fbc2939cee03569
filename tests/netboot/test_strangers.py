"""Who else is on the wire: an unknown machine, another network."""

from __future__ import annotations

import dataclasses
import socket
from contextlib import suppress

import pytest
from support.booting import tells
from support.netboot import OUTSIDE, STRANGE_MAC, Net

from orchestrator.provision.machines import netns
from orchestrator.provision.machines.emulator import VirtualHardware

pytestmark = pytest.mark.netboot


def test_an_unknown_machine_gets_nothing(net: Net) -> None:
    def other_mac(hardware: VirtualHardware) -> VirtualHardware:
        return dataclasses.replace(hardware, nics=dict.fromkeys(hardware.nics, STRANGE_MAC))

    booting = net.boot(change=other_mac)
    booting.sees("Start PXE over IPv4")
    net.status_says(rf"mac: \\?\"{STRANGE_MAC}")
    booting.stays_without_kernel()
    assert not any(tells(event, STRANGE_MAC, "identity") for event in net.events())


def test_nothing_answers_on_another_network(net: Net) -> None:
    """The same questions are answered on the boot network, so that silence means something."""
    address = str(net.cluster.profile.control.links["cluster"].address)
    port = int(net.server.rpartition(":")[2])
    with net.stranger("cluster", "10.77.0.99/24") as space:
        assert answers(space, address, port) == {"dhcp", "tftp", "http"}
    with net.stranger("outside", f"{OUTSIDE['stranger']}/24") as space:
        assert answers(space, OUTSIDE["control"], port) == set()


def answers(space: str, address: str, port: int) -> set[str]:
    """Which of DHCP, TFTP and HTTP say something to a stranger."""
    found = set()
    with netns.entered(space):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
            client.bind(("", 68))
            client.settimeout(4)
            for _ in range(3):  # as clients do: one may get lost
                client.sendto(discover("02:00:0a:4d:00:10"), ("255.255.255.255", 67))
                with suppress(TimeoutError):
                    client.recv(2048)
                    found.add("dhcp")
                    break
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(3)
            client.sendto(b"\0\1nothing\0octet\0", (address, 69))  # an error is an answer
            with suppress(TimeoutError, ConnectionRefusedError):
                client.recv(2048)
                found.add("tftp")
        with suppress(OSError), socket.create_connection((address, port), timeout=3):
            found.add("http")
    return found


def discover(mac: str) -> bytes:
    """A DHCPDISCOVER that asks for a broadcast answer (RFC 2131)."""
    hardware = bytes.fromhex(mac.replace(":", ""))
    head = bytes([1, 1, 6, 0]) + b"ABCD" + b"\0\0" + b"\x80\0" + b"\0" * 16
    return head + hardware.ljust(16, b"\0") + b"\0" * 192 + b"\x63\x82\x53\x63" + b"\x35\1\1\xff"
