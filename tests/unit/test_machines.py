"""Simulated machines, without starting one: command lines, names, and which driver is meant."""

from __future__ import annotations

import dataclasses
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.cli.cluster import STEPS
from orchestrator.cluster import up
from orchestrator.core.errors import BadInput, UserError
from orchestrator.core.waiting import as_long_as
from orchestrator.models.profiles import load
from orchestrator.profile import Profile
from orchestrator.provision.identity import BootFile
from orchestrator.provision.machines import accel, composed, driver, qmp
from orchestrator.provision.machines.emulator import VirtualHardware, argv
from orchestrator.provision.machines.firmware import BIOS, SECURE, UEFI, firmware
from orchestrator.provision.machines.nspawn import write_boot_files
from orchestrator.provision.machines.processes import Process, kill, start_time
from orchestrator.provision.machines.switch import Switch, cards

PROJECT = Path(__file__).resolve().parents[2]
HARDWARE = VirtualHardware("n", UEFI, 1 << 30, 2, {"tap0": "02:00:00:00:00:01", "tap1": "02::2"})


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path))
    return load(PROJECT / "profiles/sim.yml")


def joined(hardware: VirtualHardware) -> str:
    return " ".join(argv(hardware, accel.TCG))


def test_the_nics_boot_in_their_order() -> None:
    words = joined(HARDWARE)
    assert "ifname=tap0,script=no" in words and "mac=02:00:00:00:00:01,bootindex=1" in words
    assert "mac=02::2,bootindex=2" in words


def test_bios_boots_by_the_roms_of_its_nics_and_uefi_by_its_own() -> None:
    assert ",romfile=" in joined(HARDWARE)
    bios = joined(dataclasses.replace(HARDWARE, firmware=BIOS))
    assert ",romfile=" not in bios and "pflash" not in bios


def test_secure_boot_is_for_uefi() -> None:
    assert firmware("uefi", secure=True) is SECURE
    assert firmware("uefi", secure=False) is UEFI
    assert firmware("bios", secure=True) is BIOS
    assert "smm=on" in joined(dataclasses.replace(HARDWARE, firmware=SECURE))


def test_missing_firmware_names_its_package(tmp_path: Path) -> None:
    wrong = dataclasses.replace(UEFI, code=tmp_path / "nowhere.fd")
    with pytest.raises(UserError, match=r"nowhere\.fd") as told:
        wrong.prepare(tmp_path / "variables")
    assert "ovmf" in told.value.hint


def test_a_link_without_a_mac_gets_one_of_its_own(profile: Profile) -> None:
    switch = Switch(profile, "orchestrate-x")
    node = profile.compute_nodes[0]
    assert switch.mac(node, "cluster") == node.links["cluster"].mac
    bare = {"cluster": node.links["cluster"].model_copy(update={"mac": ""})}
    macs = {
        switch.mac(each.model_copy(update={"links": bare}), "cluster")
        for each in profile.compute_nodes
    }
    assert len(macs) == len(profile.compute_nodes)
    assert all(mac.startswith("02:") for mac in macs)


def test_the_driver_is_the_option_then_what_was_recorded_then_the_profiles(
    profile: Profile,
) -> None:
    assert driver(profile).kind == "nspawn"
    assert driver(profile, "qemu").kind == "qemu"
    composed.home(profile).mkdir(parents=True)
    composed.write_kind(profile, "qemu")
    assert driver(profile).kind == "qemu"
    assert driver(profile, "nspawn").kind == "nspawn"  # what is recorded does not run


def test_a_running_cluster_keeps_its_driver(profile: Profile) -> None:
    home = composed.home(profile) / profile.compute_nodes[0].name
    home.mkdir(parents=True)
    composed.write_kind(profile, "nspawn")
    process = Process(home / "process.json")
    process.start(["sleep", "60"], log=home / "log")
    pid = process.pid()
    assert pid is not None
    try:
        with pytest.raises(UserError, match="runs with machines: nspawn"):
            driver(profile, "qemu")
    finally:
        kill([pid])
    assert process.pid() is None


def test_unknown_kinds_are_refused(profile: Profile) -> None:
    with pytest.raises(BadInput, match="--machines: 'xen'"):
        driver(profile, "xen")


def test_a_qemu_machine_has_no_leader(profile: Profile) -> None:
    made = driver(profile, "qemu")
    node = profile.compute_nodes[0]
    assert made.netboots(node) and not made.netboots(profile.control)
    with pytest.raises(UserError, match="a separate machine") as told:
        made.leader(node)
    assert f"node ssh {node.name}" in told.value.hint


def test_the_boot_nic_is_the_first(profile: Profile) -> None:
    """In whatever order the profile lists the links."""
    node = profile.compute_nodes[0]
    link = node.links["cluster"]
    both = node.model_copy(
        update={"links": {"aside": link.model_copy(update={"interface": "x"}), "cluster": link}}
    )
    assert cards(both, "cluster") == {link.interface: "cluster", "x": "aside"}


def test_a_bond_is_several_cards_and_a_vlan_is_none() -> None:
    """Unless it is on a card that has no link."""
    found = cards(load(PROJECT / "tests/data/golden/links/profile.yml").compute_nodes[0], "lan")
    assert found == {
        "enp1s0": "lan", "enp2s0": "jumbo", "enp3s0f0": "fast", "enp3s0f1": "fast",
        "enp4s0": "cable",
    }  # fmt: skip


def test_a_process_whose_id_is_used_again_is_not_ours(tmp_path: Path) -> None:
    process = Process(tmp_path / "process.json")
    assert process.pid() is None
    process.record.write_text(json.dumps({"pid": 1, "started": "before the flood"}))
    assert process.pid() is None
    assert start_time(1) is not None


def test_a_process_is_known_also_where_its_starter_was_killed_at_once(tmp_path: Path) -> None:
    """Else nobody would ever stop it, and the next start would be a second one."""
    process = Process(tmp_path / "process.json")
    code = (
        "import os, subprocess; from pathlib import Path\n"
        "from orchestrator.provision.machines import processes\n"
        "begun = subprocess.Popen\n"
        "def popen(*argv, **how):\n"
        "    begun(*argv, **how); os.kill(os.getpid(), 9)\n"
        "subprocess.Popen = popen\n"
        f"home = Path({str(tmp_path)!r})\n"
        "processes.Process(home / 'process.json').start(['sleep', '60'], log=home / 'log')\n"
    )
    starter = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=False)
    assert starter.returncode == -signal.SIGKILL
    assert not as_long_as(lambda: process.pid() is None, 60, 0.02)
    pid = process.pid()
    assert pid is not None
    kill([pid])
    assert process.pid() is None


def test_qmp_skips_events_and_tells_refusals(tmp_path: Path) -> None:
    """Through a directory whose name is too long for a socket's address."""
    home = tmp_path / ("long" * 30)
    home.mkdir()
    said = [b'{"QMP": {}}', b'{"return": {}}', b'{"event": "STOP"}', b'{"error": {"desc": "no"}}']
    with serving_qmp(home, said), pytest.raises(RuntimeError, match="no"):
        qmp.execute(home / "qmp", "quit")
    with pytest.raises(OSError):
        qmp.execute(tmp_path / "qmp", "quit")


@contextmanager
def serving_qmp(home: Path, lines: list[bytes]) -> Iterator[None]:
    """Says the greeting, an answer, and the rest to whoever connects."""
    server = socket.socket(socket.AF_UNIX)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        server.bind("qmp")
    server.listen()

    def talk() -> None:
        client, _ = server.accept()
        with client, client.makefile("rb") as stream:
            client.sendall(lines[0] + b"\n")
            stream.readline()
            client.sendall(lines[1] + b"\n")
            stream.readline()
            client.sendall(b"\n".join(lines[2:]) + b"\n")

    thread = threading.Thread(target=talk)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        server.close()


def test_up_offers_the_stops_that_it_has() -> None:
    assert STEPS == up.STOPS


def test_boot_files_have_their_modes_whatever_is_there(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/key").write_text("of before")
    files = {"/etc/key": BootFile("secret", 0o600), "/etc/hosts": BootFile("127.0.0.1 localhost")}
    write_boot_files(tmp_path, files)
    assert (tmp_path / "etc/key").read_text() == "secret"
    assert (tmp_path / "etc/key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "etc/hosts").stat().st_mode & 0o777 == 0o644
