"""Wake-on-LAN on a real cable, and what is known of a machine that answers."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator

import pytest

from orchestrator.errors import UserError
from orchestrator.machines import PowerState, netns, wol
from orchestrator.machines.power import supply
from orchestrator.machines.real import RealCluster, RealMachine
from orchestrator.profile import Profile

MAC = "d8:bb:c1:a2:3e:a3"


MAGIC = b"\xff" * 6 + bytes.fromhex(MAC.replace(":", "")) * 16


SPACE = "orchestrate-test-power"


Load = Callable[..., Profile]


def test_wol_puts_both_packets_on_the_wire(loaded: Load) -> None:
    profile = loaded(driver="wol")
    node = profile.compute_nodes[0]
    with wire(profile) as listener:
        supply(profile, node, SPACE).on()
        frames = received(listener)
    raw = [frame for frame in frames if frame[12:14] == b"\x08\x42"]
    udp = [frame for frame in frames if frame[12:14] == b"\x08\x00"]
    assert len(raw) == len(udp) == wol.TIMES
    source = bytes.fromhex(profile.boot_link(profile.control).mac.replace(":", ""))
    assert set(raw) == {b"\xff" * 6 + source + b"\x08\x42" + MAGIC}
    for frame in udp:
        assert frame[:6] == b"\xff" * 6
        assert frame[30:34] == bytes([10, 0, 0, 255])  # the boot network's broadcast address
        assert frame[36:38] == (9).to_bytes(2, "big")
        assert frame[42:] == MAGIC


def test_wol_without_a_card_says_where(loaded: Load) -> None:
    profile = loaded(driver="wol")
    netns.create(SPACE)
    try:
        with pytest.raises(UserError, match=f"no Wake-on-LAN packet for {MAC} went out at enx8"):
            supply(profile, profile.compute_nodes[0], SPACE).on()
    finally:
        netns.delete(SPACE)


@contextlib.contextmanager
def wire(profile: Profile) -> Iterator[socket.socket]:
    """The control node's card in SPACE, and a listener at the other end of its cable."""
    other, link = f"{SPACE}-2", profile.boot_link(profile.control)
    try:
        for space in (SPACE, other):
            netns.create(space)
        add = ["link", "add", link.interface, "address", link.mac, "type", "veth"]
        netns.ip(SPACE, *add, "peer", "name", "end", "netns", other)
        netns.ip(SPACE, "address", "add", f"{link.address}/24", "dev", link.interface)
        netns.ip(SPACE, "link", "set", link.interface, "up")
        netns.ip(other, "link", "set", "end", "up")
        with netns.entered(other):
            listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        with listener:
            listener.bind(("end", 3))
            yield listener
    finally:
        for space in (SPACE, other):
            netns.delete(space)


def received(listener: socket.socket) -> list[bytes]:
    """Frames with a magic packet that came so far."""
    listener.settimeout(0.3)
    frames = []
    with contextlib.suppress(TimeoutError):
        while True:
            frames.append(listener.recv(2048))
    return [frame for frame in frames if b"\xff" * 6 + MAGIC[6:12] in frame]


def test_the_state_is_what_it_answers_and_what_was_done_last(loaded: Load) -> None:
    profile = loaded(driver="manual")
    cluster, node = RealCluster(profile), profile.compute_nodes[0]
    machine = cluster.machines[node.name]
    assert isinstance(machine, RealMachine)
    assert cluster.state(node) == PowerState.SILENT
    machine.power_on({})
    assert cluster.state(node) == PowerState.WAKING
    assert not cluster.running(node)
    with pytest.raises(UserError, match="left does not answer; the power driver 'manual' cannot"):
        cluster.power_off(node)
    netns.create(machine.space)
    try:
        netns.ip(machine.space, "address", "add", f"{node.links['lan'].address}/32", "dev", "lo")
        assert cluster.state(node) == PowerState.ON  # it refuses, so it is there
    finally:
        netns.delete(machine.space)
