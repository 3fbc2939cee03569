"""One control node for all tests of this directory; machines come and go."""

from __future__ import annotations

import os
from collections.abc import Iterator

import netboot_harness
import pytest
from netboot_harness import Net


@pytest.fixture(scope="session")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Net]:
    assert os.geteuid() == 0, "simulated machines need root: run the tests as root"
    root = tmp_path_factory.mktemp("netboot")
    with pytest.MonkeyPatch.context() as patch:
        # The tests use the code itself too, so it is their own environment that is set.
        patch.setenv("ORCHESTRATE_STATE", str(root / "state"))
        patch.setenv("ORCHESTRATE_PROFILE", str(root / f"{netboot_harness.NAME}.yml"))
        net = netboot_harness.make(root)
        try:
            net.serve()
            yield net
        finally:
            net.run("down", ok=None)
            assert net.left() == []


@pytest.fixture(autouse=True)
def machines_off(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test leaves a machine to the next one."""
    yield
    if "net" in request.fixturenames:
        request.getfixturevalue("net").all_off()
