"""The boot service as a real process behind its socket, with the real ssh-keygen."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.identity import HOST_CERTIFICATE
from orchestrator.machines import netns
from orchestrator.netboot import boot_service, boot_service_file
from orchestrator.run import run

MAC, ADDRESS = "02:00:0a:4d:00:10", "10.77.0.10"
OTHER_MAC, OTHER_ADDRESS = "02:00:0a:4d:00:11", "10.77.0.11"
STRANGE_MAC, STRANGE_ADDRESS = "02:00:0a:4d:00:99", "10.77.0.99"
SILENT_ADDRESS = "10.77.0.12"
NODE_FILES = {
    "/etc/hostname": {"content": "compute0\n", "mode": 0o644},
    "/etc/ssh/user_ca.pub": {"content": "ssh-ed25519 USER\n", "mode": 0o600},
}
DOCUMENT = {
    "schema": 1,
    "server": "http://10.77.0.1:8081",
    "leases": "ours",
    "image": {"id": "a" * 64, "name": "pxe"},
    "certificate": HOST_CERTIFICATE,
    "unknown": {"ipxe": "#!ipxe\necho @mac@\n"},
    "nodes": {
        MAC: {
            "name": "compute0",
            "address": ADDRESS,
            "principals": ["compute0", ADDRESS],
            "ipxe": "#!ipxe\nkernel orchestrate.boot=@boot@\n",
            "files": NODE_FILES,
        },
        OTHER_MAC: {
            "name": "compute1",
            "address": OTHER_ADDRESS,
            "principals": ["compute1", OTHER_ADDRESS],
            "ipxe": "#!ipxe\nkernel orchestrate.boot=@boot@\n",
            "files": {},
        },
    },
}
#: As the kernel prints it; the second to last did not answer.
NEIGHBOURS = f"""\
IP address       HW type     Flags       HW address            Mask     Device
{ADDRESS}       0x1         0x2         {MAC}     *        cluster0
{OTHER_ADDRESS}       0x1         0x2         {OTHER_MAC}     *        cluster0
{STRANGE_ADDRESS}       0x1         0x2         {STRANGE_MAC}     *        cluster0
{SILENT_ADDRESS}       0x1         0x0         {MAC}     *        cluster0
"""


def new_key(directory: Path, name: str = "key") -> str:
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", directory / name]
    run(argv)
    return (directory / f"{name}.pub").read_text()


@dataclass
class Running:
    """A running service, and what asks it as nginx would."""

    home: Path
    prefix: list[str] = field(default_factory=list)
    process: subprocess.Popen[str] | None = None

    @property
    def state(self) -> Path:
        return self.home / "state"

    def start(self, *, neighbours: Path | None = None) -> None:
        argv = [*self.prefix, sys.executable, "-I", str(boot_service_file())]
        argv += ["--socket", f"{self.home}/http.sock", "--document", f"{self.home}/boot.json"]
        argv += ["--state", str(self.state), "--authority", f"{self.home}/host_ca"]
        argv += ["--neighbours", str(neighbours or self.home / "arp")]
        self.process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 30
        while not self.answers():
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < deadline, "the service does not start"
            time.sleep(0.05)

    def answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.home / "http.sock")) == 0

    def stop(self) -> str:
        """End it; what it wrote on stderr."""
        assert self.process is not None
        self.process.terminate()
        said = self.process.communicate(timeout=30)[1]
        self.process = None
        return said

    def ask(
        self, method: str, path: str, *, address: str = ADDRESS, body: str | bytes = b""
    ) -> httpx.Response:
        transport = httpx.HTTPTransport(uds=str(self.home / "http.sock"))
        with httpx.Client(transport=transport, base_url="http://control", timeout=30) as client:
            return client.request(method, path, headers={"X-Real-IP": address}, content=body)

    def script(self, mac: str = MAC, address: str = ADDRESS) -> httpx.Response:
        return self.ask("GET", f"/boot/ipxe?mac={mac}", address=address)

    def boot(self, mac: str = MAC, address: str = ADDRESS) -> str:
        """A boot begins; its nonce."""
        answer = self.script(mac, address)
        assert answer.status_code == 200, answer.text
        return answer.text.partition("orchestrate.boot=")[2].strip()

    def identity(
        self, nonce: str, key: str | bytes, mac: str = MAC, address: str = ADDRESS
    ) -> httpx.Response:
        path = f"/boot/identity?mac={mac}&boot={nonce}"
        return self.ask("POST", path, address=address, body=key)

    def events(self, kind: str = "") -> list[dict[str, Any]]:
        file = self.state / "events.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        found: list[dict[str, Any]] = [json.loads(line) for line in lines]
        return [event for event in found if kind in ("", event["kind"])]

    def publish(self, document: dict[str, Any]) -> None:
        new = self.home / "boot.json.new"
        new.write_text(json.dumps(document))
        new.replace(self.home / "boot.json")


@pytest.fixture
def stopped(tmp_path: Path) -> Iterator[Running]:
    """A service with all that it needs, not started yet."""
    service = Running(tmp_path)
    service.state.mkdir()
    service.publish(DOCUMENT)
    (tmp_path / "arp").write_text(NEIGHBOURS)
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "host_ca"])
    yield service
    if service.process is not None:
        service.stop()


@pytest.fixture
def service(stopped: Running) -> Running:
    stopped.start()
    return stopped


def unpacked(answer: httpx.Response) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as tar:
        return {member.name: member for member in tar.getmembers()}


def content(answer: httpx.Response, name: str) -> str:
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as tar:
        file = tar.extractfile(name)
        assert file is not None
        return file.read().decode()


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
    assert "forever" not in shown


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
    assert nonce not in (service.state / "events.jsonl").read_text()
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
    first, second = service.events("refused")
    assert first["text"] == second["text"] == "this boot's identity was handed out already"
    assert (first["address"], first["mac"], first["node"]) == (ADDRESS, MAC, "compute0")


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
    assert len(service.events("refused")) == 2
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


# Faults


def test_it_goes_on_where_it_was_after_a_restart(service: Running, tmp_path: Path) -> None:
    used, key = service.boot(), new_key(tmp_path)
    service.identity(used, key)
    open_one = service.boot(OTHER_MAC, OTHER_ADDRESS)
    service.stop()
    service.start()
    assert service.identity(used, key).status_code == 409
    answer = service.identity(open_one, key, OTHER_MAC, OTHER_ADDRESS)
    assert answer.status_code == 200


def test_boots_that_are_long_over_are_forgotten(service: Running) -> None:
    for _ in range(boot_service.REMEMBERED + 5):
        service.boot()
    boots = json.loads((service.state / "boots.json").read_text())
    assert len(boots[MAC]) == boot_service.REMEMBERED


@contextlib.contextmanager
def full_disk(directory: Path) -> Iterator[Callable[[], None]]:
    """A file system of its own at ``directory``; the function that it gives fills it."""
    run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", directory])

    def fill() -> None:
        with contextlib.suppress(OSError), (directory / "rest").open("wb", buffering=0) as file:
            while True:
                file.write(b"0" * 4096)

    try:
        yield fill
    finally:
        run(["umount", directory])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root (mount)")
def test_a_full_disk_hands_out_nothing_until_there_is_room(
    stopped: Running, tmp_path: Path
) -> None:
    with full_disk(stopped.state) as fill:
        stopped.start()
        nonce, key = stopped.boot(), new_key(tmp_path)
        fill()
        assert stopped.script().status_code == 503
        assert stopped.identity(nonce, key).status_code == 503
        path = f"/boot/report?mac={MAC}&boot={nonce}"
        assert stopped.ask("POST", path, body="network done 1").status_code == 204
        (stopped.state / "rest").unlink()
        assert stopped.identity(nonce, key).status_code == 200
        assert stopped.identity(nonce, key).status_code == 409
        assert "No space left" in stopped.stop()


@pytest.mark.parametrize("text", ["", "{"])
def test_a_document_that_is_no_document(service: Running, text: str) -> None:
    (service.home / "boot.json").write_text(text)
    assert service.script().status_code == 503
    (service.home / "boot.json").unlink()
    assert service.script().status_code == 503
    service.publish(DOCUMENT)
    assert service.script().status_code == 200


def test_without_its_authority_it_hands_out_nothing(service: Running, tmp_path: Path) -> None:
    nonce, key = service.boot(), new_key(tmp_path)
    ca = (service.home / "host_ca").read_text()
    (service.home / "host_ca").unlink()
    assert service.identity(nonce, key).status_code == 503
    (service.home / "host_ca").touch(0o600)
    (service.home / "host_ca").write_text(ca)
    assert service.identity(nonce, key).status_code == 200


def test_the_log_of_events_does_not_grow_for_ever(tmp_path: Path) -> None:
    events = boot_service.Events(tmp_path / "events.jsonl")
    line = "x" * 1000
    for _ in range(2 * boot_service.EVENTS_SIZE // 1000 + 10):
        events.add("report", text=line)
    sizes = [file.stat().st_size for file in tmp_path.iterdir()]
    assert len(sizes) == 2
    assert sum(sizes) < 2.1 * boot_service.EVENTS_SIZE


# The kernel's own table of neighbours


def knock(space: str, address: str) -> None:
    """Let ``address`` see who is in the namespace: its refusal has to find the way back."""
    with netns.entered(space), pytest.raises(ConnectionRefusedError):
        socket.create_connection((address, 1), timeout=10)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root (network namespaces)")
def test_who_asks_is_what_the_kernel_sees(stopped: Running, tmp_path: Path) -> None:
    control, node = f"boot-test-{os.getpid()}-c", f"boot-test-{os.getpid()}-n"
    try:
        for space in (control, node):
            netns.create(space)
        peer = ["peer", "name", "eth0", "address", MAC, "netns", node]
        run(["ip", "-n", control, "link", "add", "cluster0", "type", "veth", *peer])
        for space, link, address in (
            (control, "cluster0", "10.77.0.1/24"),
            (node, "eth0", f"{ADDRESS}/24"),
        ):
            run(["ip", "-n", space, "addr", "add", address, "dev", link])
            run(["ip", "-n", space, "link", "set", link, "up"])
        stopped.prefix = ["ip", "netns", "exec", control]
        stopped.start(neighbours=Path("/proc/net/arp"))
        assert stopped.script().status_code == 403
        knock(node, "10.77.0.1")
        nonce = stopped.boot()
        assert stopped.identity(nonce, new_key(tmp_path)).status_code == 200
        # Another machine takes the address.
        run(["ip", "-n", node, "link", "set", "eth0", "address", STRANGE_MAC])
        run(["ip", "-n", control, "neigh", "flush", "dev", "cluster0"])
        knock(node, "10.77.0.1")
        assert stopped.script().status_code == 403
        assert STRANGE_MAC in stopped.events("refused")[-1]["text"]
    finally:
        if stopped.process is not None:
            stopped.stop()
        for space in (control, node):
            netns.delete(space)
