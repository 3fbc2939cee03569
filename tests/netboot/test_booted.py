"""One machine that booted from UEFI over TFTP, and what is seen of it. The last test ends it."""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request

import pytest
from support.booting import Booting
from support.netboot import STRANGE_MAC, Net

from orchestrator.cluster.readiness import missing_layer
from orchestrator.cluster.vllm import WORKER_UNIT
from orchestrator.node.paths import VENV
from orchestrator.performance.bench.sample import sampling, series
from orchestrator.provision.machines import netns

pytestmark = pytest.mark.netboot


def test_uefi_over_tftp(net: Net, booted: Booting) -> None:
    booted.sees("Start PXE over IPv4")
    booted.sees("NBP filename is")
    for step in ("kernel", "network", "manifest", "layer:base", "root", "identity", "switch"):
        booted.reports(step, "done")
    assert net.on("compute0", "systemctl", "is-system-running", "--wait") == "running"
    document = net.status_says("layer:base")
    assert booted.mac in document or "compute0" in document


def test_what_a_node_never_needs_is_not_started(net: Net, booted: Booting) -> None:
    """Two units that the image masks, and one that it does not."""
    units = ("systemd-sysusers.service", "dev-mqueue.mount", "systemd-sysctl.service")
    said = booted.shell(f"systemctl is-enabled {' '.join(units)} || true")
    assert said.split() == ["masked", "masked", "static"]
    started = booted.shell("systemctl list-units --plain --no-legend --state=active")
    assert "systemd-sysctl.service" in started
    assert not any(unit in started for unit in units[:2])


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


def test_identity_is_given_once_and_to_its_owner(net: Net, booted: Booting) -> None:
    nonce = re.search(r"orchestrate\.boot=(\S+)", net.on("compute0", "cat", "/proc/cmdline"))
    assert nonce is not None
    url = f"{net.server}/boot/identity?mac={booted.mac}&boot={nonce[1]}"
    link = net.node("compute0").links["cluster"]

    other = url.replace(booted.mac, STRANGE_MAC)
    with net.stranger("cluster", "10.77.0.99/24") as space:
        assert ask(space, url) == 403  # the address is not the node's
        assert ask(space, other) in (403, 404)  # nor is it one of the profile
    with net.stranger("cluster", "10.77.0.99/24", STRANGE_MAC) as space:
        assert ask(space, other) == 404
    booted.power_off()
    # Even who takes over address and hardware address gets no second one.
    with net.stranger("cluster", f"{link.address}/24", link.mac) as space:
        assert ask(space, url) == 409
        assert ask(space, url.replace(nonce[1], "0" * len(nonce[1]))) == 410
    net.status_says("already has an identity")


def ask(space: str, url: str) -> int:
    """The status of an answer to a key of one's own."""
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43 + " stranger\n"
    request = urllib.request.Request(url, data=key.encode(), method="POST")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with netns.entered(space):
        try:
            with opener.open(request, timeout=20) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
