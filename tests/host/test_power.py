"""Power of real machines: packets on a real cable, commands, and what is known of who answers."""

from __future__ import annotations

import contextlib
import re
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.profiles import PROFILE
from support.sshd import sshd

from orchestrator.cluster.power_intent import keep_off
from orchestrator.cluster.up import Bringup, Way
from orchestrator.core import paths
from orchestrator.core.errors import UserError
from orchestrator.core.progress import Board
from orchestrator.core.run import CommandFailed
from orchestrator.node.trust import open_trust
from orchestrator.profile import Profile
from orchestrator.provision.machines import PowerState, netns, power_states, real, wol
from orchestrator.provision.machines.power import supply
from orchestrator.provision.machines.processes import ended
from orchestrator.provision.machines.real import RealMachine
from orchestrator.provision.netboot.diary import Diary

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
        with pytest.raises(UserError, match=f"cannot send a Wake-on-LAN packet for {MAC} on enx8"):
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
    cluster, node = real.cluster(profile), profile.compute_nodes[0]
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


def script(directory: Path, body: str) -> str:
    """A command of the test's; it runs in the profile's directory."""
    file = directory / "profiles/switch.sh"
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return "./switch.sh"


def test_commands_get_the_nodes_values_and_run_in_the_profiles_directory(
    loaded: Load, tmp_path: Path
) -> None:
    switch = script(tmp_path, 'printf "%s|" "$PWD" "$@" >>record')
    profile = loaded(
        driver="command",
        on=[switch, "on", "{node}", "{mac} {address}", '{"is": "{interface}"}', "{index}; $HOME"],
        off=[switch, "off"],
    )
    here = supply(profile, profile.compute_nodes[1], SPACE)
    here.on()
    assert here.cut()
    assert (tmp_path / "profiles/record").read_text().split("|") == [
        str(tmp_path / "profiles"), "on", "right", "d8:bb:c1:9b:84:8b 10.0.0.101",
        '{"is": "enp6s0"}', "1; $HOME", str(tmp_path / "profiles"), "off", "",
    ]  # fmt: skip
    assert here.state() is None


@pytest.mark.parametrize(
    ("body", "says", "state"),
    [
        ("exit 0", {}, PowerState.ON),
        ("exit 1", {}, PowerState.OFF),
        ("echo Chassis Power is on", {"status_says": "is on"}, PowerState.ON),
        ("echo Chassis Power is off", {"status_says": "is on"}, PowerState.OFF),
    ],
)
def test_status_is_an_exit_code_or_a_text(
    loaded: Load, tmp_path: Path, body: str, says: dict[str, str], state: PowerState
) -> None:
    switch = script(tmp_path, body)
    profile = loaded(driver="command", on=[switch], status=[switch], **says)
    assert supply(profile, profile.compute_nodes[0], SPACE).state() == state
    assert real.cluster(profile).state(profile.compute_nodes[0]) == state


def test_a_failing_command_is_shown_with_its_words(loaded: Load, tmp_path: Path) -> None:
    profile = loaded(driver="command", on=[script(tmp_path, "echo no plug 4 >&2; exit 3"), "{mac}"])
    with pytest.raises(CommandFailed) as told:
        supply(profile, profile.compute_nodes[0], SPACE).on()
    message = told.value.message
    line = PROFILE.count("\n") + 1
    assert re.match(rf"\S*small.yml:{line}: power: switching left on failed\n", message)
    assert f"switch.sh {MAC}\n" in message
    assert "exit code: 3" in message and "stderr: no plug 4" in message
    assert "timeout" not in message


def test_a_hanging_command_is_ended_with_all_that_it_started(loaded: Load, tmp_path: Path) -> None:
    switch = script(tmp_path, "echo dialling; sleep 61.25 & echo $! >pid; wait")
    profile = loaded(driver="command", on=[switch], command_timeout_s=0.5)
    begun = time.monotonic()
    with pytest.raises(UserError) as told:
        supply(profile, profile.compute_nodes[0], SPACE).on()
    assert time.monotonic() - begun < 60  # the sleep would have ended
    assert "power: switching left on failed" in told.value.message
    assert "timed out after 0.5 s" in told.value.message
    assert "stdout: dialling" in told.value.message
    assert "command_timeout_s" in told.value.hint
    assert ended(int((tmp_path / "profiles/pid").read_text()), 2)


def test_a_machine_that_cannot_be_reached_is_cut_off(loaded: Load, tmp_path: Path) -> None:
    switch = script(tmp_path, 'echo "$1" >>record')
    profile = loaded(driver="command", on=[switch, "on"], off=[switch, "off"])
    cluster, node = real.cluster(profile), profile.compute_nodes[0]
    cluster.power_on(node, {})
    cluster.power_off(node)
    assert (tmp_path / "profiles/record").read_text() == "on\noff\n"
    assert cluster.state(node) == PowerState.OFF


@pytest.mark.parametrize("timeout", [30.0, 0.0])
def test_a_machine_that_answers_shuts_down_before_its_power_is_cut(
    loaded: Load, tmp_path: Path, timeout: float
) -> None:
    """What it was told comes first in the record; with no time for it, the cut alone."""
    record = tmp_path / "profiles/record"
    switch = script(tmp_path, 'echo "$1" >>record')
    told = f"echo $SSH_ORIGINAL_COMMAND >>{record}; echo off >{tmp_path}/profiles/now"
    profile = loaded(
        driver="command",
        on=[switch, "on"],
        off=[switch, "cut"],
        status=["/bin/cat", "now"],
        status_says="on",
    )
    (tmp_path / "profiles/now").write_text("on")
    cluster, node = real.cluster(profile), profile.compute_nodes[0]
    machine = cluster.machines[node.name]
    assert isinstance(machine, RealMachine)
    trust, address = open_trust(profile.name), str(profile.boot_link(node).address)
    netns.create(machine.space)
    try:
        netns.ip(machine.space, "address", "add", f"{address}/32", "dev", "lo")
        netns.ip(machine.space, "link", "set", "lo", "up")
        identity = trust.host_identity([node.name])
        with contextlib.ExitStack() as stack:
            with netns.entered(machine.space):
                server = sshd(tmp_path / "sshd", identity, trust.user_ca_public, 22, address, told)
                stack.enter_context(server)
            machine.power_off(timeout)
    finally:
        netns.delete(machine.space)
    said = record.read_text().splitlines()
    assert said[-1] == "cut"
    assert [line for line in said if "systemctl poweroff" in line] == (said[:-1] if timeout else [])
    assert len(said) == (2 if timeout else 1)


def test_a_status_that_fails_does_not_hide_the_other_nodes(
    loaded: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    switch = script(tmp_path, '[ "$1" = left ] || exit 9')
    profile = loaded(driver="command", on=[switch], status=[switch, "{node}"])
    states = power_states(real.cluster(profile), profile.compute_nodes)
    assert states == {"left": PowerState.ON, "right": PowerState.SILENT}
    assert "asking whether right has power failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("when", "switched"), [("before", []), ("while it boots", ["on", "off"]), ("never", ["on"])]
)
def test_what_its_user_switches_off_meanwhile_ends_off(
    loaded: Load, tmp_path: Path, when: str, switched: list[str]
) -> None:
    """`watch` may be on its way to switch a node on when 'node down' comes."""
    meanwhile = (
        "from orchestrator.cluster.power_intent import keep_off; keep_off('small', ['left'])"
    )
    boots = f'[ "$1" = off ] || ORCHESTRATE_STATE=../state {sys.executable} -c "{meanwhile}"'
    body = ['echo "$1" >>record', boots if when == "while it boots" else "true"]
    switch = script(tmp_path, "\n".join(body))
    profile = loaded(
        driver="command",
        on=[switch, "on"],
        off=[switch, "off"],
        status=["/usr/bin/tail", "-n1", "record"],
        status_says="on",
    )
    node = profile.compute_nodes[0]
    if when == "before":
        keep_off(profile.name, [node.name])
    paths.cluster(profile.name).mkdir(parents=True, exist_ok=True)
    (tmp_path / "profiles/record").write_text("")
    driven = real.cluster(profile)
    cluster = SimpleNamespace(
        profile=profile,
        driver=driven,
        boot=lambda node: driven.power_on(node, {}),
        diary=Diary(tmp_path / "timeline.jsonl"),
    )
    way = Way(cluster, node, None, Bringup(Board(quiet=True)), None)  # type: ignore[arg-type]
    if when == "never":
        assert way.power() == ""
    else:
        with pytest.raises(UserError, match="left was switched off meanwhile, and stays off"):
            way.power()
    assert (tmp_path / "profiles/record").read_text().split() == switched
    # What an interrupt has to switch off again is known before it has power.
    assert way.result.started == ([] if when == "before" else [node])
