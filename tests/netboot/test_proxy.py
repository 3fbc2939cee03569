"""Beside another DHCP server: one that knows nothing of booting, one that was told all of it."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.netboot import STRANGE_MAC, Net
from support.qemu import says

from orchestrator.provision.machines import netns
from orchestrator.provision.machines.emulator import VirtualHardware
from orchestrator.provision.machines.firmware import BIOS, UEFI, Firmware

pytestmark = pytest.mark.netboot


@pytest.fixture(scope="module")
def proxy(net: Net) -> Iterator[Net]:
    """The control node only adds what is needed to boot."""
    with net.changed(boot={"dhcp": "proxy"}):
        yield net


@pytest.mark.parametrize(
    "firmware", [UEFI, pytest.param(BIOS, marks=pytest.mark.long)], ids=["uefi", "bios"]
)
def test_proxy_beside_another_dhcp_server(proxy: Net, tmp_path: Path, firmware: Firmware) -> None:
    link = proxy.node("compute0").links["cluster"]
    with proxy.stranger("cluster", "10.77.0.250/24") as space:
        with other_dhcp(space, tmp_path, f"dhcp-host={link.mac},{link.address}\n") as log:
            proxy.boot(firmware=firmware).leaves_initrd()
        assert f"DHCPACK(eth0) {link.address} {link.mac}" in log.read_text()


#: What the stranger's disk says where BIOS boots it.
DISK = "from the disk"
#: UEFI tries the disk, which has no file for it.
MISC = "UEFI Misc Device"


@pytest.fixture(scope="module")
def off(net: Net) -> Iterator[Net]:
    """The other server has the lines that `netboot options` gives for it."""
    with net.changed(boot={"dhcp": "off"}):
        yield net


@pytest.mark.parametrize(
    "firmware", [pytest.param(UEFI, marks=pytest.mark.long), BIOS], ids=["uefi", "bios"]
)
def test_anothers_lines_boot_a_node_and_leave_a_stranger_to_his_disk(
    off: Net, tmp_path: Path, firmware: Firmware
) -> None:
    """Everybody gets the loader then. A stranger's machine goes on to its disk, by itself."""
    lines = off.run("netboot", "options", "--for", "dnsmasq").stdout
    # Without partitions, which is enough for BIOS.
    disk = tmp_path / "disk"
    disk.write_bytes(says(DISK).ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20))

    def other(hardware: VirtualHardware) -> VirtualHardware:
        return dataclasses.replace(hardware, nics=dict.fromkeys(hardware.nics, STRANGE_MAC))

    with off.stranger("cluster", "10.77.0.250/24") as space:
        range_ = "dhcp-range=10.77.0.200,10.77.0.209\n"
        with other_dhcp(space, tmp_path, range_ + lines):
            off.boot(firmware=firmware).leaves_initrd()
            off.all_off()
            drive = ("-drive", f"if=none,id=own,format=raw,file={disk}")
            device = ("-device", "virtio-blk-pci,drive=own,bootindex=9")
            stranger = off.boot(firmware=firmware, change=other, extra=(*drive, *device))
            stranger.sees("is in no profile of this cluster")
            stranger.sees(DISK if firmware is BIOS else MISC)
    assert "Linux version" not in stranger.console
    off.status_says(STRANGE_MAC)


@contextmanager
def other_dhcp(space: str, home: Path, lines: str) -> Iterator[Path]:
    """A DHCP server in a namespace, which knows no more of booting than these lines; its log."""
    log = home / "dnsmasq.log"
    (home / "lines").write_text(lines)
    argv = ["dnsmasq", "--keep-in-foreground", f"--conf-file={home / 'lines'}", "--port=0"]
    argv += ["--user=root"]
    argv += ["--interface=eth0", "--bind-interfaces", "--dhcp-range=10.77.0.0,static"]
    argv += [f"--dhcp-leasefile={home / 'leases'}", "--log-facility=-"]
    with netns.entered(space), log.open("w") as stream:
        process = subprocess.Popen(argv, stdout=stream, stderr=stream)
    try:
        yield log
    finally:
        process.terminate()
        process.wait(10)
