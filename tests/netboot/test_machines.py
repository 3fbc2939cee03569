"""Two machines at once, and one whose clock is wrong."""

from __future__ import annotations

import time

import pytest
from support.netboot import Net

pytestmark = pytest.mark.netboot


def test_two_nodes_at_once(net: Net) -> None:
    both = {name: net.boot(name) for name in ("compute0", "compute1")}
    for name, booting in both.items():
        booting.reaches_ssh(name)
    keys = {net.on(name, "cat", "/etc/ssh/ssh_host_ed25519_key.pub") for name in both}
    assert len(keys) == len(both)


def test_a_clock_that_is_years_ahead(net: Net) -> None:
    """sshd would take the operator's certificate for one that has ended."""
    booting = net.start_kernel(extra=("-rtc", "base=2033-05-18T00:00:00"))
    booting.reaches_ssh()
    assert "s off; set to the server's" in booting.console
    assert abs(int(net.on("compute0", "date", "+%s")) - time.time()) < 60
