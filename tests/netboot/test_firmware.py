"""Other firmware, and other ways to the loader."""

from __future__ import annotations

import dataclasses
import re

import pytest
from support.netboot import HTTP_FIRST, STRANGE_MAC, Net

from orchestrator.provision.machines.emulator import VirtualHardware
from orchestrator.provision.machines.firmware import BIOS

pytestmark = pytest.mark.netboot


def test_bios(net: Net) -> None:
    booting = net.boot(firmware=BIOS)
    booting.sees("SeaBIOS")
    booting.sees("iPXE")
    booting.leaves_initrd()


def test_uefi_over_http(net: Net) -> None:
    booting = net.boot(extra=HTTP_FIRST)
    booting.sees("Start HTTP Boot over IPv4")
    booting.sees(r"URI: http://\S+/loaders/")
    booting.leaves_initrd()
    assert re.search(r'"GET", "uri": "/loaders/[^"]+\.efi"', net.requests())


def test_a_second_nic_without_a_cable(net: Net) -> None:
    """It comes first, to the firmware and to the kernel; nobody waits for it for ever."""

    def second(hardware: VirtualHardware) -> VirtualHardware:
        net.switch.add_tap("loose", net.switch.bridge("cluster"))
        return dataclasses.replace(hardware, nics={"loose": STRANGE_MAC, **hardware.nics})

    booting = net.boot(change=second, extra=["-S"])
    booting.mac = net.switch.mac(net.node("compute0"), "cluster")
    booting.machine.guest.qmp("set_link", name="nic0", up=False)
    booting.machine.guest.qmp("cont")
    booting.reaches_ssh()
