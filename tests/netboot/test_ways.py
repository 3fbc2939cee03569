"""Ways from power to SSH, with real firmware."""

from __future__ import annotations

import dataclasses
import re
import time
from pathlib import Path

import pytest
from support import images
from support.netboot import HTTP_FIRST, MINIMAL, STRANGE_MAC, Booting, Net

from orchestrator.bench.sample import sampling, series
from orchestrator.image import store
from orchestrator.machines.firmware import BIOS
from orchestrator.machines.qemu import Hardware
from orchestrator.node_paths import VENV
from orchestrator.state import WORKER_UNIT
from orchestrator.waits import missing_layer

pytestmark = pytest.mark.netboot

#: An image of a newer Debian than the control node's.
REAL = "pxe-0.1"


# One machine for all that only look at it; on one of pytest's workers, one after the other.


@pytest.mark.xdist_group("booted")
def test_uefi_over_tftp(net: Net, booted: Booting) -> None:
    booted.sees("Start PXE over IPv4")
    booted.sees("NBP filename is")
    for step in ("kernel", "network", "manifest", "layer:base", "root", "identity", "switch"):
        booted.reports(step, "done")
    assert net.on("compute0", "systemctl", "is-system-running", "--wait") == "running"
    document = net.status_says("layer:base")
    assert booted.mac in document or "compute0" in document


@pytest.mark.xdist_group("booted")
def test_a_late_layer_lies_where_it_belongs(net: Net, booted: Booting) -> None:
    assert "http://" in str(booted.reports("late:python", "done"))
    wait = f"systemctl start $(systemd-escape --path --suffix=mount {VENV})"
    booted.shell(wait)
    assert net.on("compute0", "findmnt", "--noheadings", "--output=FSTYPE", VENV) == "overlay"
    # What the image's other layers have there is there, too: here the plugin for vLLM.
    site = booted.shell(f"ls {VENV}/lib/python3*/site-packages")
    assert {"starlette", "orchestrate_cpu_platform.py"} <= set(site.split())
    with net.driver.network():
        assert missing_layer(net.cluster, booted.machine.node) == ""
    net.status_says("late:python")


@pytest.mark.xdist_group("booted")
def test_samplers_see_the_quota_of_a_service(net: Net, booted: Booting) -> None:
    """As systemd sets one, in control groups of the new kind."""
    spin = "while :; do :; done"
    booted.shell(f"systemd-run --unit={WORKER_UNIT} -p CPUQuota=20% sh -c '{spin}'")
    node = booted.machine.node
    try:
        with net.driver.network(), sampling(net.cluster, [node]) as heard:
            until = time.monotonic() + 120
            while len(lines := heard.lines[node.name]) < 4:
                assert time.monotonic() < until, heard
                time.sleep(0.2)
    finally:
        booted.shell(f"systemctl stop {WORKER_UNIT}")
    found = {each.name: each.values for each in series({node.name: lines}, {})}
    assert max(found["quota"]) > 50


# Machines of their own.


def test_bios(net: Net) -> None:
    booting = net.boot(firmware=BIOS)
    booting.sees("SeaBIOS")
    booting.sees("iPXE")
    booting.reaches_ssh()


def test_uefi_over_http(net: Net) -> None:
    booting = net.boot(extra=HTTP_FIRST)
    booting.sees("Start HTTP Boot over IPv4")
    booting.sees(r"URI: http://\S+/loaders/")
    booting.reaches_ssh()
    assert re.search(r'"GET", "uri": "/loaders/[^"]+\.efi"', net.requests())


def test_two_nodes_at_once(net: Net) -> None:
    both = {name: net.boot(name) for name in ("compute0", "compute1")}
    for name, booting in both.items():
        booting.reaches_ssh(name)
    keys = {net.on(name, "cat", "/etc/ssh/ssh_host_ed25519_key.pub") for name in both}
    assert len(keys) == len(both)


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


def test_a_clock_that_is_years_ahead(net: Net) -> None:
    """sshd would take the operator's certificate for one that has ended."""
    booting = net.start_kernel(extra=("-rtc", "base=2033-05-18T00:00:00"))
    booting.reaches_ssh()
    assert "s off; set to the server's" in booting.console
    assert abs(int(net.on("compute0", "date", "+%s")) - time.time()) < 60


def test_a_second_nic_without_a_cable(net: Net) -> None:
    """It comes first, to the firmware and to the kernel; nobody waits for it for ever."""

    def second(hardware: Hardware) -> Hardware:
        net.switch.add_tap("loose", net.switch.bridge("cluster"))
        return dataclasses.replace(hardware, nics={"loose": STRANGE_MAC, **hardware.nics})

    booting = net.boot(change=second, extra=["-S"])
    booting.mac = net.switch.mac(net.node("compute0"), "cluster")
    booting.machine.guest.qmp("set_link", name="nic0", up=False)
    booting.machine.guest.qmp("cont")
    booting.reaches_ssh()


def test_a_new_image_and_back(net: Net, tmp_path: Path) -> None:
    old = net.image_id
    current = store.built(MINIMAL)
    assert current is not None
    new = images.variant(current, tmp_path / "new")
    images.register("new", tmp_path / "new")
    try:
        net.run("image", "use", "new")
        assert net.image_id == new
        net.boot().reaches_ssh()
        net.run("image", "rollback")
        assert net.image_id == old
        booting = net.boot()
        assert old in str(booting.sees_event("script"))
        booting.reports("manifest", "done")
        net.status_says("held")
    finally:
        net.run("image", "use", MINIMAL)
