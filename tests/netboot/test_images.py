"""Other images than the control node's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import images
from support.netboot import MINIMAL, Net

from orchestrator.image import store

pytestmark = pytest.mark.netboot

#: An image of a newer Debian than the control node's.
REAL = "pxe-0.1"


def test_an_image_for_real_machines(net: Net) -> None:
    """Another release of Debian, with a real cluster's kernel and drivers, and few of its wheels.

    The control node runs its own image still: only what it hands out is another.
    """
    net.run("image", "fetch", REAL, "--available")
    images.register(REAL, images.build(f"{REAL}.available.minimal"))
    net.run("image", "use", REAL)
    try:
        booting = net.boot()
        booting.reaches_ssh()
        assert net.on("compute0", "systemctl", "is-system-running", "--wait") == "running"
        assert 'VERSION_ID="13"' in net.on("compute0", "cat", "/etc/os-release").splitlines()
        assert net.on("compute0", "python3", "--version").startswith("Python 3.13.")
        assert net.on("compute0", "modinfo", "-n", "i915")
    finally:
        net.run("image", "use", MINIMAL)


def test_a_new_image_and_back(net: Net, tmp_path: Path) -> None:
    old = net.image_id
    current = store.built(MINIMAL)
    assert current is not None
    new = images.variant(current, tmp_path / "new")
    images.register("new", tmp_path / "new")
    try:
        net.run("image", "use", "new")
        assert net.image_id == new
        booting = net.boot()
        assert new in str(booting.sees_event("script"))
        booting.leaves_initrd()
        net.run("image", "rollback")
        assert net.image_id == old
        booting = net.boot()
        assert old in str(booting.sees_event("script"))
        booting.reports("manifest", "done")
        net.status_says("held")
    finally:
        net.run("image", "use", MINIMAL)
