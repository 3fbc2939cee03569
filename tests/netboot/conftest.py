"""One control node for all tests of this directory (one for each worker); machines come and go."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from support import netboot
from support.booting import Booting
from support.netboot import Net


@pytest.fixture(scope="session")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Net]:
    assert os.geteuid() == 0, "simulated machines need root: run the tests as root"
    root = tmp_path_factory.mktemp("netboot")
    with pytest.MonkeyPatch.context() as patch:
        # The tests use the code itself too, so it is their own environment that is set.
        patch.setenv("ORCHESTRATE_STATE", str(root / "state"))
        patch.setenv("ORCHESTRATE_PROFILE", str(root / f"{netboot.NAME}.yml"))
        net = netboot.make(root)
        try:
            net.serve()
            yield net
        finally:
            net.run("down", ok=None)
            assert net.left() == []


@pytest.fixture
def booted(net: Net) -> Booting:
    """A machine at SSH, for tests that leave it as it is."""
    return net.booted()


@pytest.fixture(autouse=True)
def machines_off(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test leaves a machine to the next one, but those that look at the same one."""
    alone = "net" in request.fixturenames and "booted" not in request.fixturenames
    if alone:
        request.getfixturevalue("net").all_off()
    yield
    if alone:
        request.getfixturevalue("net").all_off()
