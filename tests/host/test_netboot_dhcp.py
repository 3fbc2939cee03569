"""What machines are told by DHCP: a real dnsmasq, asked with packets as firmware sends them.

In network namespaces of the test's own: a server with two cables, and a client on each.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

import pytest
import yaml
from support import DATA

from orchestrator.core.run import run
from orchestrator.models.profiles import load
from orchestrator.node.paths import LASTING
from orchestrator.profile import Profile
from orchestrator.provision.machines import netns
from orchestrator.provision.netboot import dhcp
from orchestrator.provision.netboot.state import TFTP_ROOT, dnsmasq_conf

GOLDEN = DATA / "golden"
DNSMASQ = shutil.which("dnsmasq", path="/usr/sbin:/usr/bin:/usr/local/sbin")
NODE, OTHER_NODE, STRANGER = "02:00:0a:4d:00:10", "02:00:0a:4d:00:11", "02:00:0a:4d:00:99"
BIOS, UEFI, UEFI_OLD, UEFI_HTTP = 0, 7, 9, 16
DISCOVER, OFFER, REQUEST, ACK = 1, 2, 3, 5
EVERYBODY = ("255.255.255.255", 67)
#: Where PXE firmware asks for the file, where an offer sends it there.
BOOT_SERVER = ("10.77.0.1", 4011)
SCRIPT = "http://10.77.0.1:8081/boot/ipxe?mac=${netX/mac}"
#: Seconds without an answer that count as none; dnsmasq has a static lease, and pings nobody.
SILENCE = 0.8

pytestmark = pytest.mark.skipif(DNSMASQ is None, reason="needs dnsmasq (Debian: dnsmasq-base)")


@dataclass(frozen=True)
class Answer:
    """A server's answer."""

    kind: int
    address: str
    next_server: str
    options: dict[int, bytes]
    file: str


@dataclass
class Client:
    """A card at the end of a cable."""

    space: str
    log: Path = field(default_factory=Path)

    def ask(
        self, mac: str, kind: int = DISCOVER, at: tuple[str, int] = EVERYBODY, **words: bytes
    ) -> Answer | None:
        """Send a message with options by name; the answer, or None where none comes."""
        with netns.entered(self.space), _socket() as plug:
            number = int.from_bytes(os.urandom(4), "big")
            plug.sendto(_message(mac, number, kind, words), at)
            end = time.monotonic() + SILENCE
            while (left := end - time.monotonic()) > 0:
                plug.settimeout(left)
                with suppress(TimeoutError):
                    data = plug.recv(4096)
                    if struct.unpack("!I", data[4:8])[0] == number:
                        return _answer(data)
        return None

    def boots(
        self, mac: str, architecture: int, *, ipxe: bool = False, at: tuple[str, int] = EVERYBODY
    ) -> Answer | None:
        """Ask as firmware of an architecture does, or as iPXE on it."""
        vendor = "HTTPClient" if architecture == UEFI_HTTP else "PXEClient"
        words = {
            "vendor": f"{vendor}:Arch:{architecture:05}:UNDI:003016".encode(),
            "architecture": struct.pack("!H", architecture),
            "wanted": bytes([1, 3, 43, 54, 60, 66, 67]),
        }
        if ipxe:
            words |= {"user_class": b"iPXE", "ipxe": b"\x01\x01\x01"}
        return self.ask(mac, DISCOVER if at == EVERYBODY else REQUEST, at, **words)

    def fetches(self, file: str) -> bool:
        """Whether a file can be had by TFTP from the server's boot address."""
        with netns.entered(self.space):
            argv = ["busybox", "tftp", "-g", "-r", file, "-l", "/dev/null", "10.77.0.1"]
            with suppress(subprocess.TimeoutExpired):
                done = subprocess.run(argv, capture_output=True, timeout=SILENCE, check=False)
                return done.returncode == 0
        return False


Other = Callable[[Path, str], AbstractContextManager[Client]]

OPTIONS = {"client_id": 61, "vendor": 60, "architecture": 93, "wanted": 55, "user_class": 77,
           "ipxe": 175, "asked": 50, "server": 54}  # fmt: skip


def _socket() -> socket.socket:
    plug = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    plug.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    plug.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"card")
    plug.bind(("", 68))
    return plug


def _message(mac: str, number: int, kind: int, words: dict[str, bytes]) -> bytes:
    head = struct.pack("!4BIHH", 1, 1, 6, 0, number, 0, 0x8000) + bytes(16)
    body = bytes.fromhex(mac.replace(":", "")) + bytes(10 + 64 + 128) + b"\x63\x82\x53\x63"
    options = {53: bytes([kind])} | {OPTIONS[name]: value for name, value in words.items()}
    packed = b"".join(bytes([code, len(value)]) + value for code, value in options.items())
    return (head + body + packed + b"\xff").ljust(300, b"\0")


def _answer(data: bytes) -> Answer:
    options, at = {}, 240
    while at < len(data) and data[at] != 255:
        if data[at] == 0:
            at += 1
            continue
        options[data[at]] = data[at + 2 : at + 2 + data[at + 1]]
        at += 2 + data[at + 1]
    file = options.get(67) or data[108:236]
    return Answer(
        kind=options[53][0],
        address=str(IPv4Address(data[16:20])),
        next_server=str(IPv4Address(data[20:24])),
        options=options,
        file=file.split(b"\0")[0].decode(),
    )


def profile_with(tmp_path: Path, nodes: dict[str, str] | None = None, **boot: object) -> Profile:
    """The golden profile with other `boot` keys, and loaders of its nodes by their names."""
    document = yaml.safe_load((GOLDEN / "sim/profile.yml").read_text())
    document["boot"] |= boot
    for node in document["compute_nodes"]:
        if node["name"] in (nodes or {}):
            node["loader"] = (nodes or {})[node["name"]]
    file = tmp_path / "profile.yml"
    file.write_text(yaml.safe_dump(document))
    return load(file)


@contextmanager
def running(argv: list[str], log: Path, ready: str) -> Iterator[Client]:
    """A server on the server's side, until its log says that it is there."""
    with netns.entered("nbtest-server"), log.open("wb") as stream:
        process = subprocess.Popen(
            argv, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, cwd=log.parent
        )
    try:
        deadline = time.monotonic() + 10
        while ready not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield Client("nbtest-client", log)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


@contextmanager
def served(tmp_path: Path, nodes: dict[str, str] | None = None, **boot: object) -> Iterator[Client]:
    """dnsmasq as the control node runs it."""
    text = dnsmasq_conf(profile_with(tmp_path, nodes, **boot))
    text = text.replace(TFTP_ROOT, str(tmp_path / "tftp")).replace(LASTING, str(tmp_path))
    (tmp_path / "tftp").mkdir()
    (tmp_path / "tftp/ipxe.efi").write_text("a loader")
    with dnsmasq(tmp_path, text.replace("user=dnsmasq", "user=root"), "TFTP root") as client:
        yield client


@contextmanager
def dnsmasq(home: Path, text: str, ready: str) -> Iterator[Client]:
    config = home / "dnsmasq.conf"
    config.write_text(text)
    assert DNSMASQ is not None
    run([DNSMASQ, "--test", f"--conf-file={config}"])
    argv = [DNSMASQ, "--keep-in-foreground", f"--conf-file={config}", "--log-facility=-"]
    with running(argv, home / "log", ready) as client:
        yield client


@contextmanager
def other_dnsmasq(home: Path, lines: str) -> Iterator[Client]:
    """Somebody's dnsmasq, with the lines that it is told to take."""
    own = "port=0\ninterface=cluster0\nbind-interfaces\nexcept-interface=lo\nuser=root\n"
    own += f"dhcp-range=10.77.0.0,static\ndhcp-leasefile={home}/leases\n"
    with dnsmasq(home, own + lines, "sockets bound") as client:
        yield client


@contextmanager
def other_dhcpd(home: Path, lines: str) -> Iterator[Client]:
    head, _, rest = lines.partition("\n\n")
    config, leases = home / "dhcpd.conf", home / "leases"
    config.write_text(f"{head}\nsubnet 10.77.0.0 netmask 255.255.255.0 {{\n{rest}\n}}\n")
    leases.touch()
    argv = [str(shutil.which("dhcpd", path="/usr/sbin")), "-4", "-f", "-d", "-cf", str(config)]
    argv += ["-lf", str(leases), "-pf", str(home / "pid"), "cluster0"]
    with running(argv, home / "log", "Server starting service") as client:
        yield client


@contextmanager
def other_kea(home: Path, lines: str) -> Iterator[Client]:
    classes, _, reservations = lines.partition('"reservations"')
    config = home / "kea.json"
    config.write_text(f"""{{ "Dhcp4": {{
        "interfaces-config": {{ "interfaces": ["cluster0"] }},
        "lease-database": {{ "type": "memfile", "persist": false }},
        "loggers": [ {{ "name": "kea-dhcp4", "severity": "INFO",
                       "output_options": [ {{ "output": "stdout" }} ] }} ],
        {classes}
        "subnet4": [ {{ "subnet": "10.77.0.0/24", "id": 1, "reservations" {reservations} }} ]
    }} }}""")
    argv = ["env", f"KEA_PIDFILE_DIR={home}", f"KEA_LOCKFILE_DIR={home}"]
    argv += [str(shutil.which("kea-dhcp4", path="/usr/sbin")), "-c", str(config)]
    with running(argv, home / "log", "DHCP4_STARTED") as client:
        yield client


@pytest.fixture(autouse=True, scope="module")
def cables() -> Iterator[None]:
    """cluster0 of the server leads to a client; other0, with an address too, to another one."""
    spaces = ["nbtest-server", "nbtest-client", "nbtest-elsewhere"]
    for space in spaces:
        netns.delete(space)
        netns.create(space)
    try:
        ends = [("cluster0", "10.77.0.1/24", spaces[1]), ("other0", "10.88.0.1/24", spaces[2])]
        for link, address, space in ends:
            ip = ["ip", "-n", "nbtest-server"]
            run([*ip, "link", "add", link, "type", "veth", "peer", "name", "card", "netns", space])
            run([*ip, "address", "add", address, "dev", link])
            run([*ip, "link", "set", link, "up"])
            run(["ip", "-n", space, "link", "set", "card", "up"])
        for space, address in (("nbtest-client", "10.77.0.200/24"),
                               ("nbtest-elsewhere", "10.88.0.200/24")):  # fmt: skip
            run(["ip", "-n", space, "address", "add", address, "dev", "card"])
        run(["ip", "-n", "nbtest-elsewhere", "route", "add", "default", "via", "10.88.0.1"])
        yield
    finally:
        for space in spaces:
            netns.delete(space)


def told(answer: Answer | None) -> str:
    assert answer is not None, "no answer"
    return answer.file


def test_each_architecture_gets_its_loader(tmp_path: Path) -> None:
    with served(tmp_path) as client:
        for architecture, file in ((BIOS, "undionly.kpxe"), (UEFI, "ipxe.efi"),
                                   (UEFI_OLD, "ipxe.efi")):  # fmt: skip
            answer = client.boots(NODE, architecture)
            assert told(answer) == file
            assert answer and answer.next_server == "10.77.0.1"
            assert told(client.boots(NODE, architecture, ipxe=True)) == SCRIPT
        over_http = client.boots(NODE, UEFI_HTTP)
        assert told(over_http) == "http://10.77.0.1:8081/loaders/ipxe.efi"
        assert over_http and over_http.options[60] == b"HTTPClient"
        assert client.fetches("ipxe.efi")
        assert not client.fetches("../profile.yml")


def test_a_node_has_its_own_loader(tmp_path: Path) -> None:
    with served(tmp_path, {"compute1": "snponly.efi"}) as client:
        assert told(client.boots(NODE, UEFI)) == "ipxe.efi"
        assert told(client.boots(OTHER_NODE, UEFI)) == "snponly.efi"
        assert told(client.boots(OTHER_NODE, UEFI_HTTP)).endswith("/loaders/snponly.efi")
        assert told(client.boots(OTHER_NODE, BIOS)) == "undionly.kpxe"
        assert told(client.boots(OTHER_NODE, UEFI, ipxe=True)) == SCRIPT


def test_secure_boot_begins_with_shim(tmp_path: Path) -> None:
    with served(tmp_path, secure=True) as client:
        assert told(client.boots(NODE, UEFI)) == "shimx64.efi"
        assert told(client.boots(NODE, BIOS)) == "undionly.kpxe"
        assert told(client.boots(NODE, BIOS, ipxe=True)) == SCRIPT
        assert told(client.boots(NODE, UEFI_HTTP)) == ""  # GRUB could not go on from there


def test_with_an_own_key_each_node_loads_its_signed_image(tmp_path: Path) -> None:
    with served(tmp_path, secure="own") as client:
        for node, name in ((NODE, "compute0"), (OTHER_NODE, "compute1")):
            assert told(client.boots(node, UEFI)) == f"{name}.signed.efi"
            assert told(client.boots(node, UEFI_HTTP)).endswith(f"/loaders/{name}.signed.efi")
        assert told(client.boots(NODE, BIOS)) == "undionly.kpxe"
    (beside := tmp_path / "proxy").mkdir()
    with served(beside, secure="own", dhcp="proxy") as client:
        assert told(client.boots(NODE, UEFI, at=BOOT_SERVER)) == "compute0.signed.efi"


def test_a_node_has_one_address_whatever_its_client_id(tmp_path: Path) -> None:
    with served(tmp_path) as client:
        for client_id in (
            b"\x01\x02\x00\x0a\x4d\x00\x10",
            b"\x00firmware",
            b"\xff\x00\x00\x00\x01x",
        ):
            offer = client.ask(NODE, client_id=client_id)
            assert offer and (offer.kind, offer.address) == (OFFER, "10.77.0.10")
            asked, server = IPv4Address(offer.address).packed, offer.options[54]
            lease = client.ask(NODE, REQUEST, client_id=client_id, asked=asked, server=server)
            assert lease and (lease.kind, lease.address) == (ACK, "10.77.0.10")
        assert client.ask(NODE) is not None  # and with none
        leases = (tmp_path / "dnsmasq.leases").read_text()
        assert len([line for line in leases.splitlines() if NODE in line]) == 1


def test_an_unknown_machine_gets_no_address_and_is_written_down(tmp_path: Path) -> None:
    with served(tmp_path) as client:
        for architecture in (BIOS, UEFI, UEFI_HTTP):
            assert client.boots(STRANGER, architecture) is None
        assert client.ask(STRANGER) is None
        assert f"{STRANGER} no address available" in client.log.read_text()


def test_a_proxy_offers_nothing_to_an_unknown_machine(tmp_path: Path) -> None:
    """So that it goes on to its disk; its address is in the log."""
    kinds = [(kind, ipxe) for kind in (BIOS, UEFI, UEFI_OLD) for ipxe in (False, True)]
    with served(tmp_path, dhcp="proxy") as client:
        for kind, ipxe in kinds:
            for at in (EVERYBODY, BOOT_SERVER):
                assert client.boots(STRANGER, kind, ipxe=ipxe, at=at) is None
        deadline = time.monotonic() + 30
        # Each request came: that none was answered is no accident.
        while client.log.read_text().count(f"{STRANGER} proxy-ignored") < 2 * len(kinds):
            assert time.monotonic() < deadline, client.log.read_text()
            time.sleep(0.1)


def test_a_proxy_adds_to_another_servers_answer_and_gives_no_address(tmp_path: Path) -> None:
    with served(tmp_path, {"compute1": "snponly.efi"}, dhcp="proxy") as client:
        assert client.ask(NODE) is None  # an ordinary client is the other server's
        for architecture in (UEFI, UEFI_OLD):
            for mac, file in ((NODE, "ipxe.efi"), (OTHER_NODE, "snponly.efi")):
                offer = client.boots(mac, architecture)
                assert offer and offer.address == "0.0.0.0" and offer.options[60] == b"PXEClient"
                assert told(client.boots(mac, architecture, at=BOOT_SERVER)) == file
        bios = client.boots(NODE, BIOS)
        assert bios and bios.address == "0.0.0.0" and told(bios) == "undionly.kpxe"
        for architecture in (BIOS, UEFI):
            assert told(client.boots(NODE, architecture, ipxe=True)) == SCRIPT


def test_off_is_silent_but_for_the_files(tmp_path: Path) -> None:
    with served(tmp_path, dhcp="off") as client:
        assert client.boots(NODE, UEFI) is None
        assert client.ask(NODE) is None
        assert client.fetches("ipxe.efi")


@pytest.mark.parametrize(
    ("name", "program", "server"),
    [
        ("dnsmasq", "dnsmasq", other_dnsmasq),
        ("dhcpd", "dhcpd", other_dhcpd),
        ("kea", "kea-dhcp4", other_kea),
    ],
)
@pytest.mark.parametrize("secure", [False, True])
def test_another_server_answers_alike_with_the_lines_for_it(
    name: str, program: str, server: Other, secure: bool, tmp_path: Path
) -> None:
    if shutil.which(program, path="/usr/sbin") is None:
        pytest.skip(f"needs {program}")
    loaders = {} if secure else {"compute1": "snponly.efi"}
    profile = profile_with(tmp_path, loaders, dhcp="off", secure=secure)
    with server(tmp_path, dhcp.lines(profile, name)) as client:
        for architecture in (UEFI, UEFI_OLD):
            answer = client.boots(NODE, architecture)
            assert told(answer) == ("shimx64.efi" if secure else "ipxe.efi")
            assert answer and answer.address == "10.77.0.10"
            assert answer.next_server == "10.77.0.1"
        assert told(client.boots(NODE, BIOS)) == "undionly.kpxe"
        assert told(client.boots(NODE, BIOS, ipxe=True)) == SCRIPT
        if not secure:
            assert told(client.boots(OTHER_NODE, UEFI)) == "snponly.efi"
            assert told(client.boots(OTHER_NODE, UEFI, ipxe=True)) == SCRIPT
            over_http = client.boots(OTHER_NODE, UEFI_HTTP)
            assert told(over_http) == "http://10.77.0.1:8081/loaders/snponly.efi"
            assert over_http and over_http.options[60] == b"HTTPClient"


@pytest.mark.parametrize("mode", ["authoritative", "proxy", "off"])
def test_nothing_answers_on_another_interface(tmp_path: Path, mode: str) -> None:
    with served(tmp_path, dhcp=mode) as client:
        elsewhere = Client("nbtest-elsewhere")
        for architecture in (BIOS, UEFI, UEFI_HTTP):
            assert elsewhere.boots(NODE, architecture) is None
        assert elsewhere.ask(NODE) is None
        assert NODE not in client.log.read_text()
