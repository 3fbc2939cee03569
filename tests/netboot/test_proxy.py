"""Beside another DHCP server, which knows nothing of booting."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.netboot import Net

from orchestrator.provision.machines import netns
from orchestrator.provision.machines.firmware import BIOS, UEFI, Firmware

pytestmark = pytest.mark.netboot


@pytest.fixture(scope="module")
def proxy(net: Net) -> Iterator[Net]:
    """The control node only adds what is needed to boot."""
    with net.changed(boot={"dhcp": "proxy"}):
        yield net


@pytest.mark.parametrize("firmware", [UEFI, BIOS], ids=["uefi", "bios"])
def test_proxy_beside_another_dhcp_server(proxy: Net, tmp_path: Path, firmware: Firmware) -> None:
    link = proxy.node("compute0").links["cluster"]
    with proxy.stranger("cluster", "10.77.0.250/24") as space:
        with other_dhcp(space, tmp_path, f"{link.mac},{link.address}") as log:
            proxy.boot(firmware=firmware).leaves_initrd()
        assert f"DHCPACK(eth0) {link.address} {link.mac}" in log.read_text()


@contextmanager
def other_dhcp(space: str, home: Path, host: str) -> Iterator[Path]:
    """A DHCP server that knows nothing of booting, in a namespace; its log."""
    log = home / "dnsmasq.log"
    argv = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root"]
    argv += ["--interface=eth0", "--bind-interfaces", "--dhcp-range=10.77.0.0,static"]
    argv += [f"--dhcp-host={host}", f"--dhcp-leasefile={home / 'leases'}", "--log-facility=-"]
    with netns.entered(space), log.open("w") as stream:
        process = subprocess.Popen(argv, stdout=stream, stderr=stream)
    try:
        yield log
    finally:
        process.terminate()
        process.wait(10)
