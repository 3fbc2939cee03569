"""Layers: faults on the way, and those that come late."""

from __future__ import annotations

import re

import pytest
from support.netboot import Net

from orchestrator.cluster.readiness import missing_layer
from orchestrator.node.paths import VENV

pytestmark = pytest.mark.netboot


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


@pytest.mark.long
def test_no_layer_is_late_where_the_profile_says_so(net: Net) -> None:
    with net.changed(boot={"late_layers": []}):
        booting = net.start_kernel()
        booting.reports("layer:python", "done")
        booting.reports("switch", "done")
        assert not any(str(event.get("step", "")).startswith("late") for event in booting.events())
