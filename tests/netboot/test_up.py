"""What `up` adds once nodes are there, and what `down` leaves."""

from __future__ import annotations

import pytest
from support.netboot import NAME, OUTSIDE, Net

from orchestrator import paths
from orchestrator.machines.processes import Process

pytestmark = pytest.mark.netboot


def test_nodes_reach_the_outside_and_give_layers_to_each_other(net: Net) -> None:
    outside = {"subnet": OUTSIDE["subnet"], "gateway": OUTSIDE["stranger"]}
    with net.configured(boot={"nat": "outside", "peers": True}, networks={"outside": outside}):
        # The stranger has no way to the nodes' network: answers come because of NAT.
        with net.stranger("outside", f"{OUTSIDE['stranger']}/24"):
            net.on("compute0", "ping", "-c", "1", "-W", "5", OUTSIDE["stranger"])
        booting = net.start_kernel("compute1")
        peer = net.node("compute0").links["cluster"].address
        assert f"from http://{peer}:" in str(booting.reports("layer:base", "done"))
        assert f"from http://{peer}:" in str(booting.reports("late:python", "done"))
        booting.reaches_ssh("compute1")


def test_down_leaves_nothing(net: Net) -> None:
    net.boot()
    process = Process(paths.cluster(NAME) / "machines/compute0/process.json")
    assert process.pid() is not None
    net.run("down")
    assert net.left() == []
    net.serve()
