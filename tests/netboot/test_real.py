"""`machines: real`, in this order: a machine that a Wake-on-LAN packet starts, up to its end.

The control node has a card of the "host", which stays reachable by its other one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest
from real_harness import CARD, CARD_ADDRESS, NAME, Metal, metal

from orchestrator.machines import netns

pytestmark = pytest.mark.netboot


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Metal]:
    assert os.geteuid() == 0, "machines need root: run the tests as root"
    root = tmp_path_factory.mktemp("metal")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORCHESTRATE_STATE", str(root / "state"))
        with metal(root) as made:
            yield made


def test_a_node_needs_the_control_node(host: Metal) -> None:
    refused = host.run("node", "up", "0", ok=False)
    assert "the control node (control) is off" in refused.stderr
    assert "up --until control" in refused.stderr
    assert host.json("node", "status", "0")["nodes"][0]["power"] == "no answer"


def test_up_takes_the_card_and_wakes_the_node(host: Metal) -> None:
    said = host.json("up", "--until", "base")
    assert said["ok"], said
    assert host.packets, "no magic packet came over the wire"
    # As Ethernet frames of their own, and as UDP to the discard port.
    assert any(frame[12:14] == b"\x08\x42" for frame in host.packets)
    assert any(
        frame[12:14] == b"\x08\x00" and b"\x00\x09" in frame[34:40] for frame in host.packets
    )
    assert CARD not in host.cards()
    assert host.host_is_reached()


def test_a_second_up_changes_nothing(host: Metal) -> None:
    packets = len(host.packets)
    said = host.run("up", "--until", "ssh")
    assert "nothing changed" in said.stdout
    assert len(host.packets) == packets


def test_node_status_tells_of_it(host: Metal) -> None:
    control, compute = host.json("node", "status")["nodes"]
    assert (control["index"], control["node"], control["power"]) == (None, "control", "on")
    assert (compute["index"], compute["node"], compute["power"]) == (0, "compute0", "on")
    assert compute["system"] == "running"
    assert compute["boot"].startswith("configured, ")


def test_ssh_passes_output_and_exit_code_on(host: Metal) -> None:
    done = host.run("node", "ssh", "0", "--", "sh", "-c", "echo from $(hostname); exit 7", ok=None)
    assert (done.returncode, done.stdout) == (7, "from compute0\n")
    assert host.run("node", "ssh", "control", "--", "hostname").stdout == "control\n"


def test_up_of_a_node_that_is_on_changes_nothing(host: Metal) -> None:
    assert host.run("node", "up", "0").stdout == "compute0: on already; nothing changed\n"


def test_restart_boots_anew_and_shows_the_steps(host: Metal) -> None:
    boot = host.run("node", "ssh", "0", "--", "cat", "/proc/sys/kernel/random/boot_id").stdout
    said = host.run("node", "restart", "compute0", "--wait")
    assert "compute0: restarts\n" in said.stdout
    for step in ("dhcp", "loader", "kernel", "layer:base", "root", "sshd"):
        assert f" {step} " in said.stdout
    after = host.run("node", "ssh", "0", "--", "cat", "/proc/sys/kernel/random/boot_id").stdout
    assert after != boot


def test_down_is_in_order_and_idempotent(host: Metal) -> None:
    assert host.run("node", "down", "--all").stdout == "compute0: off\n"
    host.waits_off()
    assert host.run("node", "down", "0").stdout == "compute0: off already; nothing changed\n"
    assert host.json("node", "status", "0")["nodes"][0]["power"] == "off"


def test_a_person_is_told_and_waited_for(host: Metal) -> None:
    host.write({"driver": "manual", "boot_timeout_s": 1200})
    process = host.start("node", "up", "compute0", "--json")
    assert process.stderr is not None and process.stdout is not None
    line = process.stderr.readline()
    assert line == "Switch on compute0 (02:00:0a:4d:00:aa) now: it has 1200 s to boot.\n"
    assert host.json("node", "status", "0")["nodes"][0]["power"] == "waking"
    host.guest.clear()
    host.guest.start(host.hardware)
    out, err = process.communicate(timeout=1200)
    assert process.returncode == 0, err
    (waited,) = json.loads(out)["waited"]
    assert waited["text"].startswith("answers after ")
    assert not err


def test_down_gives_the_card_back(host: Metal) -> None:
    host.run("down")
    host.waits_off()
    card = host.cards()[CARD]
    assert "UP" in card["flags"]
    addresses = [f"{one['local']}/{one['prefixlen']}" for one in card["addr_info"]]
    assert CARD_ADDRESS in addresses
    assert not (netns.DIRECTORY / f"orchestrate-{NAME}-control").exists()
