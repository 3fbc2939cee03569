"""Secure Boot's chain: shim, GRUB, a signed kernel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.netboot import Net

from orchestrator.provision.machines.firmware import SECURE

pytestmark = pytest.mark.netboot


@pytest.fixture(scope="module")
def secure(net: Net) -> Iterator[Net]:
    """The control node serves that chain."""
    with net.changed(boot={"secure": True}):
        yield net


def test_secure_boot(secure: Net) -> None:
    booting = secure.boot(firmware=SECURE)
    booting.sees("Secure [Bb]oot (is )?enabled")
    booting.reaches_ssh()
    lockdown = secure.on("compute0", "cat", "/sys/kernel/security/lockdown")
    assert "[none]" not in lockdown


def test_secure_boot_refuses_a_changed_kernel(secure: Net) -> None:
    with secure.damaged("kernel"):
        booting = secure.boot(firmware=SECURE)
        booting.sees("bad shim signature")
        booting.stays_without_kernel()
