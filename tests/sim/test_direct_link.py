"""A network of two nodes that carries another one's traffic, and what a machine has to have."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
from support.sim import SHIPPED, Sim

from orchestrator.core.waiting import as_long_as

pytestmark = pytest.mark.sim

NAME = "pair"
HARDWARE = """\
hardware:
  container:
    memory: 64MiB
    links: { direct: { ethernet: 10000, advice: the cable } }
    pci: [{ name: card, id: "8086:56a0", driver: i915, advice: none, bars: { 2: 16GiB } }]
    commands: [{ name: echo, argv: [echo, a b], matches: ^a b$, advice: none }]
"""


@pytest.fixture(scope="module")
def pair(sim: Sim, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sim]:
    """The shipped cluster with a cable between its compute nodes, up to SSH."""
    text = SHIPPED.read_text().replace(f"name: {SHIPPED.stem}\n", f"name: {NAME}\n", 1)
    direct = "  direct: { subnet: 10.79.0.0/30, carries: cluster, mtu: 4000 }\n"
    text = text.replace("networks:\n", f"networks:\n{direct}", 1)
    for own, other in (("0", "1"), ("1", "0")):
        address = f"        address: 10.77.0.1{own}\n"
        link = f"{{ interface: to-compute{other}, address: 10.79.0.{int(own) + 1} }}"
        text = text.replace(address, f"{address}      direct: {link}\n")
    text = text.replace("  - name: compute0\n", "  - name: compute0\n    hardware: container\n")
    profile = tmp_path_factory.mktemp(NAME) / f"{NAME}.yml"
    profile.write_text((text + HARDWARE).replace("10.77.", "10.78."))
    found = replace(sim, profile=profile, env=sim.env | {"ORCHESTRATE_PROFILE": str(profile)})
    try:
        found.run("up", "--until", "ssh")
        # SSH answers by the first link; systemd-networkd may still be at the second one.
        cable = ("ip", "-brief", "-4", "address", "show", "up", "scope", "global")
        for node in ("compute0", "compute1"):

            def waits(node: str = node) -> bool:
                return "10.79.0." not in found.shell(node, *cable)

            assert not as_long_as(waits, 60, 0.2)
        yield found
    finally:
        found.run("down")


def way(pair: Sim) -> str:
    """The interface that leads from one compute node to the other's address on ``cluster``."""
    words = pair.shell("compute0", "ip", "-oneline", "route", "get", "10.78.0.11").split()
    return words[words.index("dev") + 1]


def test_its_cable_is_the_way_as_long_as_it_is_in(pair: Sim) -> None:
    assert not as_long_as(lambda: way(pair) != "to-compute1", 30, 0.2)
    whole = ("ping", "-c1", "-W5", "-M", "do", "-s", "3900", "10.78.0.11")
    assert "from 10.78.0.11" in pair.shell("compute0", *whole)
    cable = {"compute0": "to-compute1", "compute1": "to-compute0"}
    for node, interface in cable.items():
        pair.shell(node, "ip", "link", "set", interface, "down")
    assert not as_long_as(lambda: way(pair) != "cluster0", 30, 0.2)
    pair.shell("compute0", "ping", "-c1", "-W5", "10.78.0.11")
    for node, interface in cable.items():
        pair.shell(node, "ip", "link", "set", interface, "up")
        pair.shell(node, "networkctl", "reconfigure", interface)
    assert not as_long_as(lambda: way(pair) != "to-compute1", 30, 0.2)


def test_verify_looks_at_the_hardware_that_the_profile_names(pair: Sim) -> None:
    report = json.loads(pair.run("verify", "--json", ok=False).stdout)
    seen = {
        check["name"].removeprefix("hardware: "): (check["ok"], check["seen"])
        for check in report["checks"]
        if check["name"].startswith("hardware: ")
    }
    assert seen.pop("memory")[0]
    assert seen == {
        "card": (False, "no PCI device 8086:56a0"),
        "card: driver": (False, "device not found"),
        "card: BAR 2": (False, "device not found"),
        "link direct": (True, "to-compute1 is up"),
        "link direct: speed": (True, "10000 Mb/s"),
        "link direct: MTU": (True, "4000"),
        "echo": (True, "a b"),
    }


def test_probes_tell_which_way_the_bytes_took(pair: Sim) -> None:
    probe = ("probe", "--only", "link", "--node", "compute0,compute1")
    found = pair.json(*probe)
    cables = {link["network"]: set(link["interfaces"]) for link in found["links"]}
    assert cables == {network: {"to-compute1", "to-compute0"} for network in ("direct", "cluster")}
    assert not [line for line in found["anomalies"] if "used" in line], found["anomalies"]
    cable = pair.shell("compute0", "ip", "route", "show", "10.78.0.11", "dev", "to-compute1")
    pair.shell("compute0", "ip", "route", "delete", "10.78.0.11", "dev", "to-compute1")
    try:
        odd = pair.json(*probe)["anomalies"]
    finally:
        pair.shell("compute0", "ip", "route", "add", *cable.split(), "dev", "to-compute1")
    assert [line for line in odd if "compute0 used cluster0, not to-compute1" in line], odd
