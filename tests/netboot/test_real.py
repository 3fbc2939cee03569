"""`machines: real`: a machine that a Wake-on-LAN packet starts, and what is done to it.

The control node has a card of the "host", which stays reachable by its other one. A test asks by a
fixture for the state that it needs, and leaves it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest
from support.real import CARD, CARD_ADDRESS, NAME, Metal, metal

from orchestrator.provision.machines import netns

pytestmark = pytest.mark.netboot


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Metal]:
    assert os.geteuid() == 0, "machines need root: run the tests as root"
    root = tmp_path_factory.mktemp("metal")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORCHESTRATE_STATE", str(root / "state"))
        with metal(root) as made:
            yield made


@pytest.fixture
def nothing(host: Metal) -> Metal:
    """Neither the control node nor the machine has power."""
    return host.bring("down")


@pytest.fixture
def running(host: Metal) -> Metal:
    """`up` has configured both."""
    return host.bring("up")


@pytest.fixture
def control_alone(host: Metal) -> Metal:
    """The control node runs, the machine has no power."""
    return host.bring("control")


def test_a_node_needs_the_control_node(nothing: Metal) -> None:
    refused = nothing.run("node", "up", "0", ok=False)
    assert "the control node (control) is off" in refused.stderr
    assert "up --until control" in refused.stderr
    assert nothing.json("node", "status", "0")["nodes"][0]["power"] == "no answer"


def test_up_takes_the_card_and_wakes_the_node(nothing: Metal) -> None:
    host = nothing
    host.packets.clear()
    said = host.json("up", "--until", "base")
    host.state = "up"
    assert said["ok"], said
    assert host.packets, "no magic packet came over the wire"
    # As Ethernet frames of their own, and as UDP to the discard port.
    assert any(frame[12:14] == b"\x08\x42" for frame in host.packets)
    assert any(
        frame[12:14] == b"\x08\x00" and b"\x00\x09" in frame[34:40] for frame in host.packets
    )
    assert CARD not in host.cards()
    assert host.host_is_reached()


def test_a_second_up_changes_nothing(running: Metal) -> None:
    packets = len(running.packets)
    said = running.run("up", "--until", "ssh")
    assert "nothing changed" in said.stdout
    assert len(running.packets) == packets


def test_node_status_tells_of_it(running: Metal) -> None:
    waits = ("node", "ssh", "0", "--", "systemctl", "is-system-running", "--wait")
    assert running.run(*waits).stdout == "running\n"  # with its late layer
    control, compute = running.json("node", "status")["nodes"]
    assert (control["index"], control["node"], control["power"]) == (None, "control", "on")
    assert (compute["index"], compute["node"], compute["power"]) == (0, "compute0", "on")
    assert compute["system"] == "running"
    assert compute["boot"].startswith("configured, ")


def test_ssh_passes_output_and_exit_code_on(running: Metal) -> None:
    words = ("sh", "-c", "echo from $(hostname); exit 7")
    done = running.run("node", "ssh", "0", "--", *words, ok=None)
    assert (done.returncode, done.stdout) == (7, "from compute0\n")
    assert running.run("node", "ssh", "control", "--", "hostname").stdout == "control\n"


def test_up_of_a_node_that_is_on_changes_nothing(running: Metal) -> None:
    assert running.run("node", "up", "0").stdout == "compute0: on already; nothing changed\n"


def test_restart_boots_anew_and_shows_the_steps(running: Metal) -> None:
    asked = ("node", "ssh", "0", "--", "cat", "/proc/sys/kernel/random/boot_id")
    boot = running.run(*asked).stdout
    running.state = "booted"  # and not configured
    said = running.run("node", "restart", "compute0", "--wait")
    assert "compute0: restarts\n" in said.stdout
    for step in ("dhcp", "loader", "kernel", "layer:base", "root", "sshd"):
        assert f" {step} " in said.stdout
    assert running.run(*asked).stdout != boot


def test_node_down_is_in_order_and_idempotent(running: Metal) -> None:
    assert running.run("node", "down", "--all").stdout == "compute0: off\n"
    running.state = "control"
    running.waits_off()
    assert running.run("node", "down", "0").stdout == "compute0: off already; nothing changed\n"
    assert running.json("node", "status", "0")["nodes"][0]["power"] == "off"


@pytest.mark.long
def test_a_person_is_told_and_waited_for(control_alone: Metal) -> None:
    host = control_alone
    host.write({"driver": "manual", "boot_timeout_s": 1200})
    try:
        process = host.start("node", "up", "compute0", "--json")
        assert process.stderr is not None and process.stdout is not None
        line = process.stderr.readline()
        assert line == "Switch on compute0 (02:00:0a:4d:00:aa) now: it has 1200 s to boot.\n"
        assert host.json("node", "status", "0")["nodes"][0]["power"] == "waking"
        host.guest.clear()
        host.guest.start(host.hardware)
        out, err = process.communicate(timeout=1200)
    finally:
        host.write({"driver": "wol"})
    host.state = "booted"
    assert process.returncode == 0, err
    (waited,) = json.loads(out)["waited"]
    assert waited["text"].startswith("answers after ")
    assert not err


def test_down_gives_the_card_back(control_alone: Metal) -> None:
    host = control_alone
    assert CARD not in host.cards()
    host.run("down")
    host.state = "down"
    host.waits_off()
    card = host.cards()[CARD]
    assert "UP" in card["flags"]
    addresses = [f"{one['local']}/{one['prefixlen']}" for one in card["addr_info"]]
    assert CARD_ADDRESS in addresses
    assert not (netns.DIRECTORY / f"orchestrate-{NAME}-control").exists()
