"""KVM or translation: what a try decides, what is remembered, and how a stopped guest is named.

The QEMU that plays a KVM is a program of the tests' own (support/qemu.py); guests under translation
are real ones. No KVM and no root are needed.
"""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Callable, Iterator
from os import environ, kill
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from support.qemu import (
    RESET,
    SHUT_DOWN,
    Player,
    image_at,
    player_at,
    says,
    until,
)

from orchestrator.cli.cluster import ACCELERATORS
from orchestrator.cluster.cluster import Cluster
from orchestrator.cluster.readiness import must_have_power
from orchestrator.cluster.up import Bringup, attempt
from orchestrator.core.errors import BadInput, UserError
from orchestrator.core.progress import CLUSTER, Board
from orchestrator.models.profiles import load
from orchestrator.profile import Profile
from orchestrator.provision.machines import accel, composed, driver, health, trial
from orchestrator.provision.machines.accel import KVM, TCG, Decision
from orchestrator.provision.machines.emulator import VirtualHardware
from orchestrator.provision.machines.firmware import BIOS, SECURE, UEFI
from orchestrator.provision.machines.qemu import Chosen, Guest, accel_record, booted_image, chosen
from orchestrator.provision.netboot import images

PROJECT = Path(__file__).resolve().parents[2]
MACHINE = VirtualHardware("compute0", BIOS, 64 << 20, 1, {})
#: What a kernel that reached its init says.
INIT = says("orchestrate: kernel start")
BY_HAND, BY_A_TRY = Chosen("kvm", "--accel kvm"), Chosen()

Make = Callable[..., Guest]


@pytest.fixture
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Player:
    """The player is QEMU, there is a device of KVM, and nothing is known or said yet."""
    made = player_at(tmp_path / "bin")
    (tmp_path / "kvm").touch()
    monkeypatch.setenv("PATH", f"{made.home}:{environ['PATH']}")
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(accel, "DEVICE", tmp_path / "kvm")
    monkeypatch.setattr(accel, "_SAID", set())
    return made


@pytest.fixture
def guest(qemu: Player, tmp_path: Path) -> Iterator[Make]:
    """Makes guests, with an image whose kernel says what the initrd would; stops them."""
    made: list[Guest] = []

    def make(choice: Chosen = BY_A_TRY, code: bytes = INIT) -> Guest:
        image = image_at(tmp_path / "image", code)
        made.append(Guest(tmp_path / f"machine{len(made)}", "", choice, image))
        return made[-1]

    yield make
    for each in made:
        each.stop(0)


#: What a KVM does -> the reason that is told.
BAD = {
    "internal-error": r"QEMU stopped the guest: internal-error: KVM internal error. Suberror: 1",
    "silent": r"no console output in 1 s since power-on",
    "guest-panicked": r"QEMU stopped the guest: guest-panicked",
    "shuts down": r"the guest shut itself down",
    "aborts": r"QEMU ended: error: failed to set MSR 0x10a to 0x69",
}


@pytest.mark.parametrize("mode", BAD)
def test_a_kvm_that_fails_is_noticed_told_and_remembered(
    qemu: Player,
    guest: Make,
    mode: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if mode == "silent":
        monkeypatch.setattr(trial, "SILENCE", 1.0)
    qemu.plays(mode)
    found = guest().decide(MACHINE)
    assert found.way is TCG
    told = capsys.readouterr().err
    assert f"KVM does not run these machines here ({BAD[mode]})" in told
    assert "translation (TCG)" in told and "--accel kvm" in told
    assert qemu.calls_with_kvm == 1

    monkeypatch.setattr(accel, "_SAID", set())  # another command
    assert guest().decide(MACHINE).way is TCG
    assert qemu.calls_with_kvm == 1
    told = capsys.readouterr().err
    assert BAD[mode] in told and "; tried on 20" in told
    assert guest().decide(MACHINE).way is TCG
    assert not capsys.readouterr().err, "once in a command"


def test_a_kvm_that_runs_the_kernel_is_used(qemu: Player, guest: Make) -> None:
    machine = guest()
    machine.start(MACHINE)
    started = machine.started_with
    assert started and started.way is KVM and not started.by
    tried, used = qemu.calls
    assert "-kernel" in tried and "-kernel" not in used
    for words in (tried, used):
        assert words[words.index("-accel") + 1] == "kvm"
        assert words[words.index("-machine") + 1] == BIOS.machine
    assert machine.trouble("compute0") is None
    assert guest().decide(MACHINE).way is KVM
    assert qemu.calls_with_kvm == 2, "it is not tried again"


def test_a_kernel_that_does_not_reach_its_init_is_no_success(
    guest: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The firmware runs, the kernel hangs: so it is with SeaBIOS under kvm_pvm."""
    monkeypatch.setattr(trial, "DEADLINE", 8.0)
    assert guest(code=says("\nearly\n")).decide(MACHINE).way is TCG
    told = capsys.readouterr().err
    assert "no kernel reached its init" in told and "last console line: early" in told


def test_another_kernel_and_another_firmware_are_tried_anew(qemu: Player, guest: Make) -> None:
    qemu.plays("aborts")
    guest().decide(MACHINE)
    guest(code=says("orchestrate: another one")).decide(MACHINE)
    assert qemu.calls_with_kvm == 2
    guest(code=says("orchestrate: another one")).decide(dataclasses.replace(MACHINE, firmware=UEFI))
    assert qemu.calls_with_kvm == 3


@pytest.mark.parametrize("damage", ["", "{", '{"tries": [{"facts": 1}]}', '{"tries": 3}', "\0"])
def test_a_damaged_memory_is_none(qemu: Player, guest: Make, damage: str) -> None:
    qemu.plays("aborts")
    guest().decide(MACHINE)
    accel.memory().write_text(damage)
    assert guest().decide(MACHINE).way is TCG
    assert qemu.calls_with_kvm == 2
    assert len(json.loads(accel.memory().read_text())["tries"]) == 1


def test_the_memory_keeps_the_newest(qemu: Player) -> None:
    for number in range(accel.KEPT + 5):
        accel.remember({"machine": str(number)}, "why")
    accel.remember({"machine": "9"}, "")
    assert accel.recall({"machine": "0"}) is None
    assert accel.recall({"machine": "9"}) == ""
    assert (accel.recall({"machine": "24"}) or "").startswith("why; tried on ")


def test_a_machine_without_kvm_translates_and_says_so(
    qemu: Player, guest: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kvm").unlink()
    assert guest().decide(MACHINE).way is TCG
    assert "This machine has no" in capsys.readouterr().err
    assert not qemu.calls


def test_what_a_person_chooses_is_not_tried(qemu: Player, guest: Make) -> None:
    qemu.plays("aborts")
    for name, way in accel.WAYS.items():
        assert guest(Chosen(name, "here")).decide(MACHINE) == Decision(way, by="here")
    assert not qemu.calls


def test_a_guest_that_stops_under_a_chosen_kvm_is_named(qemu: Player, guest: Make) -> None:
    qemu.plays("internal-error")
    machine = guest(BY_HAND)
    machine.start(MACHINE)
    trouble = until(lambda: machine.trouble("compute0"))
    first, *rest = trouble.message.splitlines()
    assert first == "compute0 does not run: QEMU stopped the guest: internal-error"
    assert "  QEMU: KVM internal error. Suberror: 1" in rest
    assert "  QEMU: (6 more lines of registers)" in rest
    assert rest[-1].startswith("  QEMU: Code=66 90")
    assert "orchestrate up --accel tcg" in trouble.hint
    assert "chosen by --accel kvm" in trouble.hint
    assert str(machine.console) in trouble.hint
    assert not accel.memory().exists(), "a person decides; nothing is noted"


def test_a_guest_that_stops_after_a_good_try_takes_kvms_word_back(
    qemu: Player, guest: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guest().decide(MACHINE).way is KVM
    qemu.plays("internal-error")
    machine = guest()
    machine.start(MACHINE)
    trouble = until(lambda: machine.trouble("compute0"))
    assert "Recorded: 'orchestrate up' restarts it with translation" in trouble.hint
    assert guest().decide(MACHINE).way is TCG
    assert "it passed the trial; then QEMU stopped the guest" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["silent", "guest-panicked", "shuts down", "aborts"])
def test_other_ends_under_a_chosen_kvm_are_named(
    qemu: Player, guest: Make, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mode == "silent":
        monkeypatch.setitem(accel.WAYS, "kvm", dataclasses.replace(KVM, silence=1.0))
    qemu.plays(mode)
    machine = guest(BY_HAND)
    try:
        machine.start(MACHINE)
    except UserError as error:  # it ended before it was there
        trouble = error
    else:
        trouble = until(lambda: machine.trouble("compute0"))
    named, _, cause = BAD[mode].partition(": error: ")
    assert cause in trouble.message
    assert named in trouble.message or "QEMU did not start" in trouble.message
    assert "orchestrate up --accel tcg. KVM was chosen by --accel kvm." in trouble.hint


def test_a_real_guest_that_is_paused_or_killed_is_named(guest: Make) -> None:
    machine = guest(Chosen("tcg", "here"))
    machine.start(dataclasses.replace(MACHINE, firmware=UEFI, memory=512 << 20))
    assert machine.trouble("compute0") is None
    machine.qmp("stop")
    trouble = until(lambda: machine.trouble("compute0"))
    assert "QEMU stopped the guest: paused" in trouble.message
    machine.qmp("cont")
    assert machine.trouble("compute0") is None
    pid = machine.process.pid()
    assert pid is not None
    kill(pid, signal.SIGKILL)
    trouble = until(lambda: machine.trouble("compute0"))
    assert trouble.message.startswith("compute0 does not run: QEMU ended")
    assert "'orchestrate up' restarts it" in trouble.hint
    machine.stop(0)
    assert machine.trouble("compute0") is None, "what is switched off has no trouble"


@pytest.mark.parametrize(
    ("code", "named"),
    [(SHUT_DOWN, "the guest shut itself down"), (RESET, "the guest keeps resetting itself")],
    ids=["shuts down", "resets"],
)
def test_a_real_guest_that_shuts_down_or_resets_is_named(
    guest: Make, code: bytes, named: str
) -> None:
    machine = guest(Chosen("tcg", "here"), code)
    machine.start(trial.bare(MACHINE, machine.image))
    assert named in until(lambda: machine.trouble("compute0")).message


def test_a_try_is_the_very_machine_with_variables_that_take_any_kernel(tmp_path: Path) -> None:
    nics = {"tap0": "02:00:00:00:00:01"}
    machine = dataclasses.replace(MACHINE, firmware=SECURE, nics=nics, disk=tmp_path / "disk")
    bare = trial.bare(machine, tmp_path)
    assert (bare.firmware.machine, bare.firmware.code) == (SECURE.machine, SECURE.code)
    assert bare.firmware.variables == UEFI.variables
    assert not bare.nics and bare.disk is None
    assert bare.extra[0] == "-kernel"


def test_an_interrupted_try_is_not_remembered(qemu: Player, guest: Make) -> None:
    """QEMU gets the signal too, and says so in its events."""
    source = qemu.home / "qemu-system-x86_64"
    text = source.read_text().replace("guest-shutdown", "host-signal")
    source.write_text(text)
    qemu.plays("shuts down")
    with pytest.raises(UserError, match="interrupted"):
        guest().decide(MACHINE)
    assert not accel.memory().exists()


def test_a_panic_is_named_while_it_is_the_last_word(tmp_path: Path) -> None:
    console = tmp_path / "console.log"
    console.write_bytes(
        b"\x1b[2J[    1.2] Run /init as init process\r\n"
        b"[    1.3] ---[ end Kernel panic - not syncing: No working init found. ]---\r\n"
    )
    found = health.panicked(console)
    assert found and "Kernel panic - not syncing: No working init found." in found.text
    with console.open("ab") as file:
        file.write(b"SeaBIOS (version 1.16.2)\r\n")
    assert health.panicked(console) is None


def test_a_wait_ends_with_what_the_machine_says(guest: Make, profile: Profile) -> None:
    """As `up` and `node wait` ask: of a machine of the driver's, by the files that it has left."""
    node = profile.compute_nodes[0]
    made = driver(profile, "qemu")
    assert made.trouble(node) is None and made.trouble(profile.control) is None
    machine = dataclasses.replace(
        guest(Chosen("tcg", "here")), home=composed.home(profile) / node.name
    )
    machine.start(MACHINE)
    try:
        assert made.trouble(node) is None
        machine.qmp("quit")
        trouble = until(lambda: made.trouble(node))
        assert f"{node.name} does not run: QEMU was told to quit" in trouble.message
        here = cast(Cluster, SimpleNamespace(driver=made))
        with pytest.raises(UserError, match="told to quit"):
            must_have_power(here, node)
        # Whatever was waited for meanwhile, it is the node that failed.
        result = Bringup(Board(quiet=True))
        attempt(result, CLUSTER, lambda: must_have_power(here, node))
        assert list(result.failures) == [node.name]
    finally:
        machine.stop(0)


def test_an_image_without_its_kernel_is_none_to_try(profile: Profile, tmp_path: Path) -> None:
    images.write(profile.name, images.ImageChoice(images.Image("1234", "x")))
    assert booted_image(profile) is None
    place = images.directory(profile.name, "1234")
    place.mkdir(parents=True)
    (place / "kernel").touch()
    assert booted_image(profile) == place


# --- by whom it is decided


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "state"))
    text = (PROJECT / "profiles/sim.yml").read_text()
    (tmp_path / "sim.yml").write_text(
        text.replace("\nsimulation:\n", "\nsimulation:\n  accel: tcg\n")
    )
    return load(tmp_path / "sim.yml")


def test_the_option_goes_before_the_profile_until_the_cluster_is_down(profile: Profile) -> None:
    found = chosen(profile)
    assert found.name == "tcg" and "sim.yml" in found.where
    assert chosen(load(PROJECT / "profiles/sim.yml")).name == "auto"
    composed.home(profile).mkdir(parents=True)
    for name in ACCELERATORS:
        accel_record(profile).write_text(name)
        assert chosen(profile) == Chosen(name, f"--accel {name}")


def test_the_option_is_for_qemu_machines(profile: Profile) -> None:
    assert driver(profile, "qemu", "kvm").kind == "qemu"
    with pytest.raises(BadInput, match="--accel is for QEMU machines") as told:
        driver(profile, None, "kvm")
    assert "--machines qemu" in told.value.hint


def test_options_and_keys_are_the_accelerators() -> None:
    assert ACCELERATORS == accel.CHOICES
    assert {*ACCELERATORS} == {accel.AUTO, *accel.WAYS}
