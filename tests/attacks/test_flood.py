"""A stranger on the cluster's network who wants others not to be served, and the control node full.

From one address each. What many addresses can still do is in docs/explanation/trust.md.
"""

from __future__ import annotations

import json
import os
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.boot_service import (
    ADDRESS,
    MAC,
    OTHER_ADDRESS,
    OTHER_MAC,
    STRANGE_ADDRESS,
    Running,
    new_key,
)
from support.front import (
    DNSMASQ,
    KEY,
    LOADER,
    OTHERS,
    STRANGER,
    Front,
    by_tftp,
    discover,
    front,
    many_files,
    read_request,
)
from support.golden import GOLDEN, states
from support.web import NFT, NGINX, text

from orchestrator.models.profiles import load
from orchestrator.provision.machines import netns
from orchestrator.provision.netboot import look, probe_boot, sources, timeline

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(NGINX is None, reason="needs nginx (Debian: nginx-light)"),
    pytest.mark.skipif(NFT is None, reason="needs nft (Debian: nftables)"),
]

#: Half-open connections, as the review that found this had.
HALF_OPEN = 1700
MIB = 1 << 20
#: More than the lines that a `status` of before read.
FLOOD = 2050


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Front]:
    many_files()
    with front(tmp_path) as made:
        yield made


@pytest.mark.parametrize("door", ["files", "endpoint"])
def test_half_open_requests_stop_neither_the_endpoint_nor_the_files(
    control: Front, door: str
) -> None:
    port = control.files if door == "files" else control.endpoint
    with control.half_open(port, HALF_OPEN) as accepted:
        assert all(control.serves() for _ in range(20)), accepted


def test_nothing_of_a_body_is_kept_for_who_has_no_key(control: Front) -> None:
    asked = len(control.asked)
    for target in ("/v1/chat/completions", "/health", "/"):
        with control.connect(control.endpoint) as client:
            head = f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {32 * MIB}\r\n\r\n"
            client.sendall(head.encode())
            client.settimeout(1)
            try:
                for _ in range(8):
                    client.sendall(bytes(MIB))
            except OSError:
                pass  # it does not even read on
            assert control.spooled() == 0, target
    assert control.asked[asked:] == []


def test_a_body_of_who_has_it_goes_on_as_it_comes(control: Front) -> None:
    with control.connect(control.endpoint) as client:
        head = f"POST /v1/x HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        client.sendall(f"{head}Content-Length: {8 * MIB}\r\n\r\n".encode())
        for _ in range(8):
            client.sendall(bytes(MIB))
            assert control.spooled() == 0
        assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
    assert control.asked[-1] == "/v1/x"


def test_browsers_may_ask_whether_they_may_ask(control: Front) -> None:
    """Without the key, as they do; vLLM answers them."""
    with control.connect(control.endpoint) as client:
        client.sendall(b"OPTIONS /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 501 " in client.recv(4096).split(b"\r\n")[0]  # the model here knows no OPTIONS


def test_requests_of_strangers_leave_nothing_behind(control: Front) -> None:
    before, asked = control.written(), len(control.asked)
    for port, path in (
        (control.endpoint, "/v1/models"), (control.endpoint, "/health"), (control.endpoint, "/x"),
        (control.files, "/loaders/x"), (control.files, "/loaders/none"), (control.files, "/x"),
        (control.files, "/images/x"), (control.files, "/boot/ipxe?mac=02:00:00:00:00:00"),
    ):  # fmt: skip
        with control.connect(port) as client:
            one = f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"
            for _ in range(10):
                client.sendall(one.encode() * 50)
                client.recv(1 << 20)
    assert control.written() - before < 64 << 10
    # A few questions for its health: 20 at once, and 10 in a second.
    assert len(control.asked) - asked < 100


@pytest.mark.skipif(DNSMASQ is None, reason="needs dnsmasq (Debian: dnsmasq-base)")
def test_reads_that_nobody_acknowledges_do_not_stop_tftp(control: Front) -> None:
    with control.dnsmasq():
        held = []
        with netns.entered(OTHERS):
            for _ in range(300):
                client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                client.bind((STRANGER, 0))
                client.sendto(read_request("x"), (control.address, 69))
                held.append(client)
        try:
            assert by_tftp(control, "x") == LOADER
        finally:
            for client in held:
                client.close()


@pytest.mark.skipif(DNSMASQ is None, reason="needs dnsmasq (Debian: dnsmasq-base)")
def test_a_node_boots_as_often_as_it_likes_by_tftp(control: Front) -> None:
    with control.dnsmasq():
        assert all(by_tftp(control, "x", tries=1) == LOADER for _ in range(90))


@pytest.mark.skipif(DNSMASQ is None, reason="needs dnsmasq (Debian: dnsmasq-base)")
def test_machines_of_nobody_do_not_fill_the_log_of_dhcp(control: Front) -> None:
    """Each frame from another hardware address; a node's are answered all the while."""
    chance = random.Random(0)
    node = bytes.fromhex(
        str(control.profile.boot_link(control.profile.server).mac).replace(":", "")
    )
    with control.dnsmasq() as log, netns.entered(OTHERS):
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
            wire.bind(("eth0", 0))
            for _ in range(20):
                for _ in range(100):
                    mac = bytes((2, 0xFF, *chance.randbytes(4)))
                    wire.send(discover(mac, mac))
                wire.send(discover(node, node))
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and log.read_text().count("DHCPOFFER") < 20:
            time.sleep(0.05)
        said = log.read_text()
        assert said.count("DHCPOFFER") == 20
        assert said.count("no address available") < 200


def logs(service: Running) -> dict[str, object]:
    """What root reads for `orchestrate status`, by the very program."""
    profile = load(GOLDEN / "sim/profile.yml")
    want = look.wanted(profile, str(service.state / "events"))
    done = subprocess.run(
        [sys.executable, "-I", probe_boot.__file__, json.dumps(want)],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    found: dict[str, object] = json.loads(done.stdout)
    return found


def refusals(service: Running) -> dict[str, int]:
    """What `orchestrate status` tells of refusals: text -> count."""
    events = logs(service)["events"]
    assert isinstance(events, list)
    found = timeline.assemble([], sources.from_service(events), time.time()).refused
    return {refusal.text: refusal.count for refusal in found}


def test_a_flood_of_refusals_hides_none(service: Running, tmp_path: Path) -> None:
    """A stolen identity stays in view, whatever is asked in whose name afterwards."""
    key, nonce = new_key(tmp_path), service.boot()
    service.identity(nonce, key)
    assert service.identity(nonce, key).status_code == 409
    service.boot()
    assert service.identity(nonce, key).status_code == 410
    with service.client() as client:
        for number in range(FLOOD):
            mac = (MAC, OTHER_MAC, f"02:ff:00:00:{number // 256:02x}:{number % 256:02x}")[
                number % 3
            ]
            strange, own = {"X-Real-IP": STRANGE_ADDRESS}, {"X-Real-IP": ADDRESS}
            answer = client.get(f"/boot/ipxe?mac={mac}", headers=strange)
            assert answer.status_code in (403, 404)
            path = f"/boot/identity?mac={MAC}&boot={number:032x}"
            assert client.post(path, headers=own, content=key).status_code == 410
    time.sleep(1.5)  # the last ones are written
    found = refusals(service)
    assert found["this boot already has an identity"] == 1
    assert found["its nonce does not belong to the latest boot of this node"] == FLOOD + 1
    assert len(found) < 10
    assert sum(found.values()) == 2 + 2 * FLOOD
    assert sum(file.stat().st_size for file in service.state.rglob("*.jsonl")) < 64 << 10


def test_a_node_pushes_only_its_own_events_out_of_view(service: Running, tmp_path: Path) -> None:
    service.boot(OTHER_MAC, OTHER_ADDRESS)
    nonce = service.boot()
    with service.client() as client:
        for number in range(2 * FLOOD):
            body = f"layer:base failed {number} {'x' * 390}"
            path = f"/boot/report?mac={MAC}&boot={nonce}"
            client.post(path, headers={"X-Real-IP": ADDRESS}, content=body)
    events = logs(service)["events"]
    assert isinstance(events, list)
    assert [event["kind"] for event in events if event["mac"] == OTHER_MAC] == ["script"]
    assert any(event.get("uptime") == 2 * FLOOD - 1 for event in events)
    assert sum(file.stat().st_size for file in service.state.rglob("*")) < 200 << 10


def test_long_logs_are_read_from_their_end(service: Running) -> None:
    """As root, at each `status`: 4 GiB of events cost no more memory than a few."""
    service.boot()
    file = service.state / "events" / f"{MAC.replace(':', '-')}.jsonl"
    line = file.read_text()
    with file.open("r+b") as log:
        log.truncate(4 << 30)
        log.seek(0, os.SEEK_END)
        log.write(b"\n" + line.encode())
    want = look.wanted(load(GOLDEN / "sim/profile.yml"), str(service.state / "events"))
    argv = ["prlimit", f"--as={512 * MIB}", sys.executable, "-I", probe_boot.__file__]
    done = subprocess.run(
        [*argv, json.dumps(want)], capture_output=True, text=True, check=True, timeout=60
    )
    assert [event["kind"] for event in json.loads(done.stdout)["events"]] == ["script"]


def test_units_have_room_for_the_connections_that_their_servers_take() -> None:
    """Else nginx and dnsmasq run out of files before they refuse."""
    profile = load(GOLDEN / "sim/profile.yml")
    state = states(profile)[profile.control.name]

    def number(words: str, name: str) -> int:
        return int(re.split(r"[;\n]", text(state, name).partition(words)[2])[0])

    for config in ("nginx.conf", "files.conf"):
        most = number("worker_connections ", config)
        assert number("worker_rlimit_nofile ", config) > 2 * most  # a file for each, too
    assert number("LimitNOFILE=", "dnsmasq.service") > 2 * number("tftp-max=", "dnsmasq.conf")
