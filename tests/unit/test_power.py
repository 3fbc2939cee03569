"""Power of real machines: real commands, and what is known of them; tests/host has the packets."""

from __future__ import annotations

import re
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.profiles import PROFILE

from orchestrator import paths
from orchestrator.bring_up import Bringup, Way
from orchestrator.errors import BadInput, UserError
from orchestrator.identity import node_files
from orchestrator.machines import PowerState, driver, power_states, wol
from orchestrator.machines.power import supply
from orchestrator.machines.processes import ended
from orchestrator.machines.real import RealCluster
from orchestrator.netboot.diary import Diary
from orchestrator.nodes import choose
from orchestrator.profile import Profile
from orchestrator.progress import Board
from orchestrator.run import CommandFailed
from orchestrator.wanted import keep_off

MAC = "d8:bb:c1:a2:3e:a3"
#: A namespace that no test here enters.
SPACE = "orchestrate-test-power"
MAGIC = b"\xff" * 6 + bytes.fromhex(MAC.replace(":", "")) * 16

Load = Callable[..., Profile]


def script(directory: Path, body: str) -> str:
    """A command of the test's; it runs in the profile's directory."""
    file = directory / "profiles/switch.sh"
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return "./switch.sh"


# Wake-on-LAN.


def test_a_magic_packet_is_six_ff_and_sixteen_times_the_mac() -> None:
    assert wol.magic_packet(MAC) == MAGIC
    assert len(MAGIC) == 102


def test_a_card_that_is_woken_by_a_packet_is_told_to_wait_for_it(loaded: Load) -> None:
    path = "/etc/systemd/network/10-lan.link"
    for kind, woken in (("wol", True), ("manual", False)):
        profile = loaded(driver=kind)
        text = node_files(profile, profile.compute_nodes[0], "key")[path].content
        assert ("WakeOnLan=magic\n" in text) == woken
        control = node_files(profile, profile.control, "key")[path].content
        assert "WakeOnLan" not in control


# Commands.


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
    assert RealCluster(profile).state(profile.compute_nodes[0]) == state


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
    assert time.monotonic() - begun < 5
    assert "power: switching left on failed" in told.value.message
    assert "no end after 0.5 s" in told.value.message
    assert "stdout: dialling" in told.value.message
    assert "command_timeout_s" in told.value.hint
    assert ended(int((tmp_path / "profiles/pid").read_text()), 2)


def test_a_command_that_is_not_there_is_said_to_be(loaded: Load) -> None:
    profile = loaded(driver="command", on=["./nowhere.sh"])
    with pytest.raises(UserError, match=r"switching left on: there is no command /.*nowhere"):
        supply(profile, profile.compute_nodes[0], SPACE).on()


# A person.


def test_manual_is_one_line(loaded: Load, capsys: pytest.CaptureFixture[str]) -> None:
    profile = loaded(driver="manual", boot_timeout_s=600)
    here = supply(profile, profile.compute_nodes[0], SPACE)
    here.on()
    told = capsys.readouterr()
    assert told.err == f"Switch on left ({MAC}) now: it has 600 s to boot.\n"
    assert not told.out
    assert not here.cut()


# What is known of a real machine.


def test_a_machine_that_cannot_be_reached_is_cut_off(loaded: Load, tmp_path: Path) -> None:
    switch = script(tmp_path, 'echo "$1" >>record')
    profile = loaded(driver="command", on=[switch, "on"], off=[switch, "off"])
    cluster, node = RealCluster(profile), profile.compute_nodes[0]
    cluster.power_on(node, {})
    cluster.power_off(node)
    assert (tmp_path / "profiles/record").read_text() == "on\noff\n"
    assert cluster.state(node) == PowerState.OFF


def test_a_status_that_fails_does_not_hide_the_other_nodes(
    loaded: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    switch = script(tmp_path, '[ "$1" = left ] || exit 9')
    profile = loaded(driver="command", on=[switch], status=[switch, "{node}"])
    states = power_states(RealCluster(profile), profile.compute_nodes)
    assert states == {"left": PowerState.ON, "right": PowerState.SILENT}
    assert "asking whether right has power failed" in capsys.readouterr().err


def test_the_driver_real_is_chosen_by_the_profile(loaded: Load) -> None:
    profile = loaded(driver="manual", boot_timeout_s=1234)
    made = driver(profile)
    assert made.kind == "real" and made.boot_timeout == 1234
    assert made.netboots(profile.compute_nodes[0]) and not made.netboots(profile.control)
    assert "screen" in made.console(profile.compute_nodes[0])
    assert made.console(profile.control).endswith("head/console.log")


@pytest.mark.parametrize(
    ("when", "switched"), [("before", []), ("while it boots", ["on", "off"]), ("never", ["on"])]
)
def test_what_its_user_switches_off_meanwhile_ends_off(
    loaded: Load, tmp_path: Path, when: str, switched: list[str]
) -> None:
    """`watch` may be on its way to switch a node on when 'node down' comes."""
    meanwhile = "from orchestrator.wanted import keep_off; keep_off('small', ['left'])"
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
    driven = RealCluster(profile)
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


# Which nodes are meant.


def test_nodes_are_named_or_counted_from_0(loaded: Load) -> None:
    profile = loaded(driver="manual")
    left, right = profile.compute_nodes
    assert choose(profile, ["1", "left", "right"], everyone=False) == [right, left]
    assert choose(profile, [], everyone=True) == [left, right]
    assert choose(profile, ["head"], everyone=False, control=True) == [profile.control]


@pytest.mark.parametrize(
    ("words", "everyone", "says"),
    [
        ((), False, "which nodes?\n  Compute nodes: 0 left, 1 right, or --all"),
        (("left",), True, "not both"),
        (("2",), False, "there is no compute node 2\n  There are: 0 left, 1 right"),
        (("lef",), False, "there is no node 'lef'\n  did you mean 'left'"),
        (("head",), False, "head is the control node"),
    ],
)
def test_other_words_are_refused(
    loaded: Load, words: tuple[str, ...], everyone: bool, says: str
) -> None:
    with pytest.raises(BadInput) as told:
        choose(loaded(driver="manual"), words, everyone=everyone)
    assert says in str(told.value)
