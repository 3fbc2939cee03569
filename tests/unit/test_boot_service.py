"""The boot service as a real process behind its socket, with the real ssh-keygen."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.boot_service import (
    ADDRESS,
    DOCUMENT,
    LIFETIME,
    MAC,
    NEIGHBOURS,
    OTHER_ADDRESS,
    OTHER_MAC,
    SILENT_ADDRESS,
    STRANGE_ADDRESS,
    STRANGE_MAC,
    Running,
    content,
    new_key,
    unpacked,
)

from orchestrator.core.run import run
from orchestrator.node.trust import valid_until
from orchestrator.provision.identity import HOST_CERTIFICATE

# The way that a node goes


def test_a_node_gets_its_script_and_then_its_identity(service: Running, tmp_path: Path) -> None:
    nonce = service.boot()
    key = new_key(tmp_path)
    answer = service.identity(nonce, key)
    assert answer.status_code == 200
    files = unpacked(answer)
    certificate = HOST_CERTIFICATE.lstrip("/")
    assert set(files) == {"etc/hostname", "etc/ssh/user_ca.pub", certificate}
    assert files["etc/ssh/user_ca.pub"].mode == 0o600
    assert all((file.uid, file.gid, file.mtime) == (0, 0, 0) for file in files.values())
    assert content(answer, "etc/hostname") == "compute0\n"
    (tmp_path / "cert.pub").write_text(content(answer, certificate))
    shown = run(["ssh-keygen", "-L", "-f", tmp_path / "cert.pub"]).out
    assert "host certificate" in shown
    assert [line.strip() for line in shown.splitlines()[8:10]] == ["compute0", ADDRESS]
    fingerprints = [
        run(["ssh-keygen", "-l", "-f", tmp_path / name]).out.split()[1]
        for name in ("key.pub", "host_ca.pub")
    ]
    assert all(fingerprint in shown for fingerprint in fingerprints)
    left = valid_until(content(answer, certificate)) - datetime.now(UTC)
    assert timedelta(seconds=LIFETIME - 300) < left <= timedelta(seconds=LIFETIME + 60)


def test_what_happened_is_written_down_without_the_nonce(service: Running, tmp_path: Path) -> None:
    nonce = service.boot()
    path = f"/boot/report?mac={MAC}&boot={nonce}"
    for line in ("network done 4.25 eth0 up", "layer:base failed 5 wrong \x1b[31mhash"):
        assert service.ask("POST", path, body=line).status_code == 204
    service.identity(nonce, new_key(tmp_path))
    script, network, layer, identity = service.events()
    assert [event["kind"] for event in (script, identity)] == ["script", "identity"]
    assert (network["step"], network["status"], network["uptime"]) == ("network", "done", 4.25)
    assert network["text"] == "eth0 up"
    assert layer["text"] == "wrong ?[31mhash"
    for event in (script, network, layer, identity):
        assert (event["node"], event["mac"], event["address"]) == ("compute0", MAC, ADDRESS)
        assert event["boot"] == nonce[:8]
        assert abs(event["time"] - time.time()) < 60
    assert nonce not in json.dumps(service.events())
    assert (service.state / "boots.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mac", [MAC.upper(), MAC.replace(":", "-")])
def test_the_mac_may_stand_in_the_path_and_in_other_forms(service: Running, mac: str) -> None:
    assert "orchestrate.boot=" in service.ask("GET", f"/boot/ipxe/{mac}").text
    assert "orchestrate.boot=" in service.ask("GET", f"/boot/ipxe?mac={mac}").text


def test_a_loader_without_http_leaves_it_to_the_initrd_to_begin(
    service: Running, tmp_path: Path
) -> None:
    nonce = service.ask("GET", f"/boot/begin?mac={MAC}").text
    assert service.identity(nonce, new_key(tmp_path)).status_code == 200


def test_it_tells_the_time(service: Running) -> None:
    assert abs(int(service.ask("GET", "/boot/time").text) - time.time()) < 60


def test_looking_at_a_script_begins_no_boot(service: Running) -> None:
    nonce = service.boot()
    assert service.ask("HEAD", f"/boot/ipxe?mac={MAC}").status_code == 405
    assert len(service.events("script")) == 1
    assert nonce


# Once, and to its owner


def test_a_second_identity_is_refused_and_written_down(service: Running, tmp_path: Path) -> None:
    nonce = service.boot()
    key = new_key(tmp_path)
    assert service.identity(nonce, key).status_code == 200
    assert service.identity(nonce, key).status_code == 409
    assert service.identity(nonce, new_key(tmp_path, "another")).status_code == 409
    (told,) = service.refused(2)
    assert told["text"] == "this boot already has an identity"
    assert (told["address"], told["mac"], told["node"]) == (ADDRESS, MAC, "compute0")
    assert told["first"] < told["time"]


def test_of_many_at_once_exactly_one_gets_it(service: Running, tmp_path: Path) -> None:
    nonce = service.boot()
    keys = [new_key(tmp_path, f"key{number}") for number in range(8)]
    with ThreadPoolExecutor(len(keys)) as pool:
        codes = list(pool.map(lambda key: service.identity(nonce, key).status_code, keys))
    assert sorted(codes) == [200] + [409] * 7
    assert len(service.events("identity")) == 1


def test_each_boot_has_its_own(service: Running, tmp_path: Path) -> None:
    """Only the last boot's nonce counts, so that none is left over to be found."""
    key = new_key(tmp_path)
    first, second = service.boot(), service.boot()
    assert first != second
    assert service.identity(first, key).status_code == 410
    assert service.identity(second, key).status_code == 200
    assert service.identity(service.boot(), key).status_code == 200


@pytest.mark.parametrize("nonce", ["", "0" * 32, "ä", "%00", "../../x"])
def test_an_unknown_nonce(service: Running, tmp_path: Path, nonce: str) -> None:
    service.boot()
    assert service.identity(nonce, new_key(tmp_path)).status_code == 410
    assert len(service.events("refused")) == 1


def test_another_nodes_nonce_is_worth_nothing(service: Running, tmp_path: Path) -> None:
    nonce = service.boot()
    answer = service.identity(nonce, new_key(tmp_path), mac=OTHER_MAC, address=OTHER_ADDRESS)
    assert answer.status_code == 410


@pytest.mark.parametrize("address", [OTHER_ADDRESS, STRANGE_ADDRESS, SILENT_ADDRESS, "", "x"])
def test_the_wrong_place(service: Running, tmp_path: Path, address: str) -> None:
    nonce = service.boot()
    assert service.script(address=address).status_code == 403
    assert service.identity(nonce, new_key(tmp_path), address=address).status_code == 403
    service.refused(2)
    assert service.identity(nonce, new_key(tmp_path, "own")).status_code == 200


def test_a_nodes_address_at_another_machine(service: Running, tmp_path: Path) -> None:
    nonce = service.boot()
    taken = NEIGHBOURS.replace(MAC, STRANGE_MAC)
    (service.home / "arp").write_text(taken)
    assert service.identity(nonce, new_key(tmp_path)).status_code == 403


def test_with_another_dhcp_server_the_address_may_be_any(service: Running, tmp_path: Path) -> None:
    service.publish({**DOCUMENT, "leases": "foreign"})
    (service.home / "arp").write_text(NEIGHBOURS.replace(ADDRESS, "10.77.0.200"))
    nonce = service.boot(address="10.77.0.200")
    key = new_key(tmp_path)
    assert service.identity(nonce, key, address=STRANGE_ADDRESS).status_code == 403
    assert service.identity(nonce, key, address="10.77.0.200").status_code == 200


def test_an_unknown_machine(service: Running, tmp_path: Path) -> None:
    answer = service.script(STRANGE_MAC, STRANGE_ADDRESS)
    assert (answer.status_code, answer.text) == (200, f"#!ipxe\necho {STRANGE_MAC}\n")
    answer = service.identity("0" * 32, new_key(tmp_path), STRANGE_MAC, STRANGE_ADDRESS)
    assert answer.status_code == 404
    (event,) = service.events()
    assert (event["kind"], event["mac"]) == ("unknown", STRANGE_MAC)


def test_nobody_else_can_report_a_machine_as_unknown(service: Running) -> None:
    assert service.script(STRANGE_MAC, OTHER_ADDRESS).status_code == 404
    assert not service.events("unknown")


# What makes no sense


@pytest.mark.parametrize(
    "mac",
    [
        "",
        "x",
        "../../etc/passwd",
        "02:00:0a:4d:00",
        f"{MAC}:00",
        f"{MAC}%0a",
        f"{MAC}%00",
        "ä" * 17,
    ],
)
def test_a_mac_that_is_none(service: Running, mac: str) -> None:
    assert service.ask("GET", f"/boot/ipxe?mac={mac}").status_code == 400
    assert service.ask("GET", f"/boot/ipxe/{mac}").status_code in (400, 404)
    assert service.ask("POST", f"/boot/identity?mac={mac}&boot=0").status_code == 400
    assert not service.events()


GOOD = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43


@pytest.mark.parametrize(
    "key",
    [
        "",
        "ssh-ed25519",
        GOOD[:-1],
        GOOD + "A",
        f"{GOOD}\n{GOOD}\n",
        f'command="id" {GOOD}',
        f" {GOOD}",
        f"{GOOD} " + "c" * 101,
        f"{GOOD} ä",
        GOOD.replace("ssh-ed25519", "ssh-rsa"),
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        b"\xff\x00" * 20,
    ],
)
def test_a_body_that_is_no_key(service: Running, key: str | bytes) -> None:
    nonce = service.boot()
    assert service.identity(nonce, key).status_code == 400
    assert service.identity(nonce, f"{GOOD} a comment\n").status_code == 200


def test_a_body_that_is_too_long(service: Running) -> None:
    nonce = service.boot()
    assert service.identity(nonce, GOOD + " " * 3000).status_code == 413
    path = f"/boot/report?mac={MAC}&boot={nonce}"
    assert service.ask("POST", path, body="network done 1 " + "x" * 3000).status_code == 413


@pytest.mark.parametrize("line", ["", "x", "network over 1", "a b c", "ä done 1", "net done -1"])
def test_a_report_that_makes_no_sense_stops_no_boot(service: Running, line: str) -> None:
    nonce = service.boot()
    assert service.ask("POST", f"/boot/report?mac={MAC}&boot={nonce}", body=line).status_code == 204
    assert not service.events("report")


def test_a_report_of_a_boot_that_nobody_began(service: Running) -> None:
    path = f"/boot/report?mac={MAC}&boot=0123456789"
    assert service.ask("POST", path, body="network done 1").status_code == 204
    assert service.events("report")[0]["boot"] == ""


def test_other_paths_and_methods(service: Running) -> None:
    assert service.ask("GET", f"/boot/grub?mac={MAC}").status_code == 404
    assert service.ask("GET", f"/boot/identity?mac={MAC}").status_code in (404, 405)
    assert service.ask("DELETE", f"/boot/ipxe?mac={MAC}").status_code == 405
    assert service.ask("GET", "/boot/ipxe/../../boot.json").status_code in (400, 404)


def test_nonces_are_the_services_own(service: Running) -> None:
    """Those of boots that go on still buy an identity."""
    service.boot()
    assert (service.state / "boots.json").stat().st_mode & 0o777 == 0o600


def test_a_neighbour_that_never_answered_is_none(service: Running) -> None:
    """The kernel keeps a row for whoever it looks for; only its mark says that somebody is there.
    With another DHCP server nothing else tells."""
    service.publish({**DOCUMENT, "leases": "foreign"})
    assert service.script(MAC, SILENT_ADDRESS).status_code == 403
