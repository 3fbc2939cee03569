"""The disk that keeps layers, and models."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import images
from support.booting import Booting
from support.netboot import Net

from orchestrator.cluster.desired import MODELS_UNIT
from orchestrator.core.templating import render
from orchestrator.node.paths import CACHE, MODELS
from orchestrator.provision.machines.qemu import make_disk

pytestmark = [pytest.mark.netboot, pytest.mark.long]


def test_cache_is_filled_used_and_checked(net: Net, tmp_path: Path) -> None:
    disk = tmp_path / "cache.raw"
    make_disk(disk, 1 << 30)

    def source(booting: Booting, step: str = "layer:base") -> str:
        return str(booting.reports(step, "done"))

    booting = net.start_kernel(disk=disk)
    assert "http://" in source(booting)
    assert "http://" in source(booting, "late:python")
    booting.reaches_ssh()
    booting.shell("systemctl is-system-running --wait")  # the late layer is kept, too
    booting.power_off()  # the plug: what was kept is on the disk

    booting = net.start_kernel(disk=disk)
    assert "cache" in source(booting)
    assert "cache" in source(booting, "late:python")
    booting.reaches_ssh()
    weights = models_on_disk(booting)
    booting.shell(f"echo weights >{weights}")
    booting.power_off(120)

    mounted = tmp_path / "mounted"
    mounted.mkdir()
    base = net.layer_size("base")
    right = images.hashes_in(disk, base, mounted)
    images.damage_in(disk, base, mounted)
    assert images.hashes_in(disk, base, mounted) != right
    booting = net.start_kernel(disk=disk)
    assert "http://" in source(booting)
    booting.reaches_ssh()
    models_on_disk(booting)
    assert booting.shell(f"cat {weights}") == "weights\n"
    booting.power_off(120)
    assert images.hashes_in(disk, base, mounted) == right  # it was put right there too


def models_on_disk(booting: Booting) -> str:
    """Start the unit of `serving.model_cache: disk`; the path of a file of the served model."""
    unit = render(MODELS_UNIT, cache=CACHE, models=MODELS)
    booting.shell(f"cat >/run/systemd/system/{MODELS_UNIT}", unit)
    booting.shell(f"systemctl start {MODELS_UNIT} && mkdir -p {MODELS}/served")
    return f"{MODELS}/served/model.safetensors"
