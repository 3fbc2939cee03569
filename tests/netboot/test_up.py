"""What `up` adds once nodes are there, and what `down` leaves."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from support.netboot import MINIMAL, NAME, OUTSIDE, Net

from orchestrator.core import paths
from orchestrator.provision.machines import PowerState
from orchestrator.provision.machines.processes import Process

pytestmark = pytest.mark.netboot


def test_nodes_reach_the_outside_and_give_layers_to_each_other(net: Net) -> None:
    outside = {"subnet": OUTSIDE["subnet"], "gateway": OUTSIDE["stranger"]}
    boot = {"nat": "outside", "peers": True}
    with net.configured("compute0", boot=boot, networks={"outside": outside}):
        # The stranger has no way to the nodes' network: answers come because of NAT.
        with net.stranger("outside", f"{OUTSIDE['stranger']}/24"):
            net.on("compute0", "ping", "-c", "1", "-W", "5", OUTSIDE["stranger"])
        booting = net.start_kernel("compute1")
        peer = net.node("compute0").links["cluster"].address
        assert f"from http://{peer}:" in str(booting.reports("layer:base", "done"))
        assert f"from http://{peer}:" in str(booting.reports("late:python", "done"))
        booting.reaches_ssh("compute1")


@pytest.fixture
def upping(net: Net) -> Iterator[Net]:
    """`up` takes all machines for one cluster: they boot the image that the control node runs."""
    net.run("image", "use", net.base["image"])
    yield net
    net.run("image", "use", MINIMAL)


def test_a_machine_that_stops_is_named_and_started_anew(upping: Net) -> None:
    net, words = upping, ("up", "--until", "ssh", "--node", "compute0")
    machine = net.machine("compute0")
    with net.started(*words) as first:
        net.sees(first, machine, "Start PXE over IPv4")
        stopped = machine.guest.process.pid()
        machine.guest.qmp("stop")
        _, said = first.communicate(timeout=120)
    assert first.returncode == 1, said
    assert "compute0 does not run: QEMU stopped the guest: paused" in said
    assert str(machine.console) in said
    with net.started(*words) as second:
        net.sees(second, machine, "Start PXE over IPv4", other_than=stopped)
        second.send_signal(signal.SIGINT)
        _, said = second.communicate(timeout=120)
    assert second.returncode == 130, said
    assert machine.state() == PowerState.OFF


def test_down_leaves_nothing(net: Net) -> None:
    net.boot()
    process = Process(paths.cluster(NAME) / "machines/compute0/process.json")
    assert process.pid() is not None
    net.run("down")
    assert net.left() == []
    net.serve()
