"""Layers: the cache, faults on the way, and those that come late."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support import images
from support.netboot import Booting, Net

from orchestrator.machines.qemu import make_disk
from orchestrator.node_paths import CACHE, MODELS, VENV
from orchestrator.state import MODELS_UNIT
from orchestrator.templating import render
from orchestrator.waits import missing_layer

pytestmark = pytest.mark.netboot


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

    images.damage_in(disk, net.layer_size("base"), tmp_path / "mounted")
    booting = net.start_kernel(disk=disk)
    assert "http://" in source(booting)
    booting.reports("switch", "done")
    booting.power_off()

    booting = net.start_kernel(disk=disk)  # it was put right there too
    assert "cache" in source(booting)
    booting.reaches_ssh()
    models_on_disk(booting)
    assert booting.shell(f"cat {weights}") == "weights\n"


def models_on_disk(booting: Booting) -> str:
    """Start the unit of `serving.model_cache: disk`; the path of a file of the served model."""
    unit = render(MODELS_UNIT, cache=CACHE, models=MODELS)
    booting.shell(f"cat >/run/systemd/system/{MODELS_UNIT}", unit)
    booting.shell(f"systemctl start {MODELS_UNIT} && mkdir -p {MODELS}/served")
    return f"{MODELS}/served/model.safetensors"


# Faults. Each ends when the image's own system starts; what comes then is as ever.


def test_the_control_node_restarts_during_a_download(net: Net) -> None:
    with net.slow("compute0", "60mbit"):
        booting = net.start_kernel()
        booting.reports("layer:base", "start")
        net.carries("compute0", 30 << 20)
        net.driver.power_off(net.cluster.profile.control, timeout=0)
        net.serve()
    booting.reports("layer:base", "done")
    booting.reports("switch", "done")
    # It went on where it was, it did not begin again.
    assert re.search(r'base\.squashfs", "status": 206', net.requests())


def test_a_layer_damaged_on_the_server(net: Net) -> None:
    with net.damaged("base.squashfs"):
        booting = net.start_kernel()
        booting.reports("layer:base", "failed")
        booting.sees("base.*(sha256|hash|wrong|damaged|differs)")
        net.status_says("layer:base")
    booting.reports("layer:base", "done")
    booting.reports("switch", "done")


def test_a_stale_image_id(net: Net) -> None:
    """The kernel is told of an image whose files are gone; they come back."""
    with net.missing("manifest.json"):
        booting = net.start_kernel()
        booting.reports("manifest", "failed")
        booting.sees("manifest")
        net.status_says("manifest")
    booting.reports("switch", "done")


# Late layers.


def test_a_late_layer_that_cannot_be_had_is_seen_on_a_node_that_answers(net: Net) -> None:
    with net.missing("python.squashfs"):
        booting = net.start_kernel()
        booting.reaches_ssh()
        assert "404" in str(booting.reports("late:python", "failed"))
        net.status_says("late:python failed")
        net.status_says("compute0 is stuck .*not served")
        with net.driver.network():
            unit = missing_layer(net.cluster, booting.machine.node)
        assert "404" in booting.shell(f"journalctl --output=cat --unit={unit}")
        needs = f"-p RequiresMountsFor={VENV} --unit=needs test -e {VENV}/pyvenv.cfg"
        booting.shell(f"systemd-run --no-block -p RemainAfterExit=yes {needs}")
        assert "needs.service start waiting" in " ".join(
            booting.shell("systemctl list-jobs").split()
        )
    with net.damaged("python.squashfs"):
        booting.reports("late:python", "failed", text="not what the manifest says")
    booting.reports("late:python", "done")
    booting.shell("systemctl is-system-running --wait")
    shown = booting.shell("systemctl show needs --property=ActiveState,Result")
    assert set(shown.split()) == {"ActiveState=active", "Result=success"}


def test_no_layer_is_late_where_the_profile_says_so(net: Net) -> None:
    with net.changed(boot={"late_layers": []}):
        booting = net.start_kernel()
        booting.reports("layer:python", "done")
        booting.reports("switch", "done")
        assert not any(str(event.get("step", "")).startswith("late") for event in booting.events())
