"""Power of real machines: real commands, and what is known of them; tests/host has the packets."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.cluster import nodes
from orchestrator.cluster.nodes import choose, must_boot_others
from orchestrator.core.errors import BadInput, UserError
from orchestrator.profile import Profile
from orchestrator.provision.identity import node_files
from orchestrator.provision.machines import driver, wol
from orchestrator.provision.machines.power import supply

MAC = "d8:bb:c1:a2:3e:a3"
#: A namespace that no test here enters.
SPACE = "orchestrate-test-power"
MAGIC = b"\xff" * 6 + bytes.fromhex(MAC.replace(":", "")) * 16

Load = Callable[..., Profile]


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


def test_a_command_that_is_not_there_is_said_to_be(loaded: Load) -> None:
    profile = loaded(driver="command", on=["./nowhere.sh"])
    with pytest.raises(UserError, match=r"switching left on: command not found: /.*nowhere"):
        supply(profile, profile.compute_nodes[0], SPACE).on()


def test_manual_is_one_line(loaded: Load, capsys: pytest.CaptureFixture[str]) -> None:
    profile = loaded(driver="manual", boot_timeout_s=600)
    here = supply(profile, profile.compute_nodes[0], SPACE)
    here.on()
    told = capsys.readouterr()
    assert told.err == f"Switch on left ({MAC}) now: it has 600 s to boot.\n"
    assert not told.out
    assert not here.cut()


# What is known of a real machine.


def test_the_driver_real_is_chosen_by_the_profile(loaded: Load) -> None:
    profile = loaded(driver="manual", boot_timeout_s=1234)
    made = driver(profile)
    assert made.kind == "real" and made.boot_timeout == 1234
    assert made.netboots(profile.compute_nodes[0]) and not made.netboots(profile.control)
    assert "screen" in made.console(profile.compute_nodes[0])
    assert made.console(profile.control).endswith("head/console.log")


# Which nodes are meant.


def test_nodes_are_named_or_counted_from_0(loaded: Load) -> None:
    profile = loaded(driver="manual")
    left, right = profile.compute_nodes
    assert choose(profile, ["1", "left", "right"], everyone=False) == [left, right]
    assert choose(profile, [], everyone=True) == [left, right]
    assert choose(profile, ["head"], everyone=False, control=True) == [profile.control]


@pytest.mark.parametrize(
    ("words", "everyone", "says"),
    [
        ((), False, "which nodes?\n  Compute nodes: 0 left, 1 right, or --all"),
        (("left",), True, "not both"),
        (("2",), False, "there is no node '2'\n  known: head, left, right"),
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


# What nodes boot from, and when a boot is over.


def test_nodes_boot_from_a_control_node_that_runs(loaded: Load) -> None:
    profile = loaded(driver="manual")
    cluster: Any = SimpleNamespace(profile=profile, driver=driver(profile))
    with pytest.raises(UserError, match=r"the control node \(head\) is off, and nodes boot from"):
        must_boot_others(cluster)


@pytest.mark.parametrize("end", ["another boot", "no answer"])
def test_a_boot_is_over_when_another_one_answers_or_nobody(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = ["this boot", "this boot", end, "this boot"]

    def run(argv: list[str], timeout: float) -> SimpleNamespace:
        if answers[0] == "no answer":
            raise UserError("no answer")
        return SimpleNamespace(out=answers.pop(0))

    monkeypatch.setattr(nodes, "POLL", 0.0)
    remote: Any = SimpleNamespace(name="left", run=run, close=lambda: None)
    nodes._wait_until_gone(remote, "this boot")
    assert "this boot" in answers and len(answers) <= 2
