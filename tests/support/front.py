"""The control node's services before strangers: real nginx, nftables and dnsmasq."""

from __future__ import annotations

import http.client
import re
import resource
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from orchestrator.core.run import run
from orchestrator.models.profiles import load
from orchestrator.node.paths import FILES_ROOT, LASTING
from orchestrator.node.state import NodeState
from orchestrator.profile import Profile
from orchestrator.provision.machines import netns
from support.golden import GOLDEN, states
from support.web import NFT, SBIN, serve, stop, text

CONTROL, OTHERS = "flood-control", "flood-others"
STRANGER, FRIEND = "10.77.0.99", "10.77.0.50"
KEY = "API KEY"  # the golden context's
MODEL_FILE, LOADER = b"a model's file", b"a loader"
DNSMASQ = next((path for each in SBIN.split(":") if (path := Path(each, "dnsmasq")).exists()), None)


class Model(BaseHTTPRequestHandler):
    """Stands where vLLM does: says how long the body was."""

    protocol_version = "HTTP/1.1"
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        left = int(self.headers.get("Content-Length") or 0)
        said = f"{left} bytes".encode()
        while left:
            left -= len(self.rfile.read(min(left, 1 << 16)))
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing."""


@dataclass
class Front:
    """The control node, and others on its network."""

    home: Path
    profile: Profile
    state: NodeState
    servers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    #: What reached the model.
    asked: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        return str(self.profile.ray_address(self.profile.control))

    @property
    def endpoint(self) -> int:
        return self.profile.serving.endpoint_port

    @property
    def files(self) -> int:
        return self.profile.boot.http_port

    def connect(self, port: int, source: str = STRANGER) -> socket.socket:
        with netns.entered(OTHERS):
            return socket.create_connection((self.address, port), 5, source_address=(source, 0))

    def get(self, port: int, path: str, source: str = FRIEND, **headers: str) -> tuple[int, bytes]:
        """Status and body, to a client that waits 5 s."""
        connection = http.client.HTTPConnection(self.address, port, timeout=5)
        with closing(connection):
            connection.sock = self.connect(port, source)
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def serves(self) -> bool:
        """Whether the endpoint and the files are there for who behaves well."""
        try:
            model = self.get(self.endpoint, "/v1/models", Authorization=f"Bearer {KEY}")
            file = self.get(self.files, "/models/tiny/config.json")
        except OSError:
            return False
        return (model, file) == ((200, b"0 bytes"), (200, MODEL_FILE))

    @contextmanager
    def half_open(self, port: int, count: int, source: str = STRANGER) -> Iterator[int]:
        """So many connections that begin a request; gives how many were accepted."""
        held = []
        try:
            for _ in range(count):
                with suppress(OSError):
                    held.append(self.connect(port, source))
                    held[-1].sendall(b"GET / HTTP/1.1\r\nHost:")
            yield len(held)
        finally:
            for each in held:
                each.close()

    def spooled(self) -> int:
        """Bytes in files that the web servers have open for the bodies of requests."""
        size = 0
        for server in self.servers:
            for worker in run(["pgrep", "-P", str(server.pid)]).out.split():
                for handle in Path(f"/proc/{worker}/fd").iterdir():
                    with suppress(OSError):
                        if "/body/" in str(handle.readlink()):
                            size += handle.stat().st_size
        return size

    def written(self) -> int:
        """Bytes of logs and state."""
        places = [*self.home.rglob("*"), *Path("/var/log/nginx").glob("*")]
        return sum(place.stat().st_size for place in places if place.is_file())

    @contextmanager
    def dnsmasq(self) -> Iterator[Path]:
        """With DHCP and TFTP as on the control node; gives their log."""
        config = text(self.state, "dnsmasq.conf").replace(LASTING, str(self.home))
        config = config.replace(FILES_ROOT, f"{self.home}/files")
        config = config.replace("user=dnsmasq", "user=root")
        (self.home / "dnsmasq.conf").write_text(config)
        unit = text(self.state, "dnsmasq.service")
        most = re.search(r"^LimitNOFILE=(\d+)$", unit, re.MULTILINE)
        log = self.home / "dnsmasq.log"
        argv = ["prlimit", f"--nofile={most[1] if most else 1024}", str(DNSMASQ)]
        argv += ["--keep-in-foreground", f"--conf-file={self.home}/dnsmasq.conf"]
        argv += [f"--log-facility={log}", f"--pid-file={self.home}/dnsmasq.pid"]
        with netns.entered(CONTROL):
            process = subprocess.Popen(argv)
        try:
            deadline = time.monotonic() + 10
            while "TFTP root is" not in (log.read_text() if log.exists() else ""):
                assert process.poll() is None and time.monotonic() < deadline, "dnsmasq"
                time.sleep(0.05)
            yield log
        finally:
            process.terminate()
            process.wait(10)


@contextmanager
def front(home: Path) -> Iterator[Front]:
    profile = load(GOLDEN / "sim/profile.yml")
    state = states(profile)[profile.control.name]
    made = Front(home, profile, state)
    interface = profile.boot_link(profile.control).interface
    node = profile.boot_link(profile.server)
    for name, content in (("models/tiny/config.json", MODEL_FILE), ("netboot/loaders/x", LOADER)):
        (home / "files" / name).parent.mkdir(parents=True)
        (home / "files" / name).write_bytes(content)
    for space in (CONTROL, OTHERS):
        netns.delete(space)
        netns.create(space)
    peer = ["peer", "name", "eth0", "address", str(node.mac), "netns", OTHERS]
    netns.ip(CONTROL, "link", "add", interface, "type", "veth", *peer)
    for space, link, addresses in (
        (CONTROL, interface, [made.address]),
        (OTHERS, "eth0", [str(node.address), STRANGER, FRIEND]),
    ):
        for address in addresses:
            netns.ip(space, "address", "add", f"{address}/24", "dev", link)
        netns.ip(space, "link", "set", link, "up")
    rules = home / "firewall.nft"
    rules.write_text(text(state, "firewall.nft"))
    run(["ip", "netns", "exec", CONTROL, str(NFT), "-f", rules])
    with netns.entered(OTHERS):
        handler = type("Asked", (Model,), {"asked": made.asked})
        server = (str(profile.ray_address(profile.server)), profile.serving.port)
        model = ThreadingHTTPServer(server, handler)
    threading.Thread(target=model.serve_forever, daemon=True).start()
    try:
        made.servers = serve(CONTROL, state, home)
        deadline = time.monotonic() + 10
        while not made.serves():
            assert time.monotonic() < deadline, [log.read_text() for log in home.glob("*.log")]
            time.sleep(0.05)
        yield made
    finally:
        stop(made.servers)
        model.shutdown()
        model.server_close()
        for space in (CONTROL, OTHERS):
            netns.delete(space)


def discover(mac: bytes, sender: bytes) -> bytes:
    """An Ethernet frame with a DHCPDISCOVER that asks for a broadcast answer (RFC 2131)."""
    body = struct.pack("!BBBBIHH", 1, 1, 6, 0, int.from_bytes(mac[2:]), 0, 0x8000) + bytes(16)
    body += mac + bytes(10 + 192) + b"\x63\x82\x53\x63\x35\x01\x01\xff" + bytes(60)
    udp = struct.pack("!HHHH", 68, 67, 8 + len(body), 0)
    head = struct.pack("!BBHIBBH4s4s", 0x45, 0, 28 + len(body), 0, 64, 17, 0, bytes(4), b"\xff" * 4)
    total = sum(struct.unpack("!10H", head))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack("!H", ~total & 0xFFFF) + head[12:]
    return b"\xff" * 6 + sender + struct.pack("!H", 0x0800) + head + udp + body


def read_request(name: str) -> bytes:
    """TFTP's request for a file (RFC 1350)."""
    return b"\x00\x01" + name.encode() + b"\x00octet\x00"


def by_tftp(front: Front, name: str, source: str = FRIEND, tries: int = 3) -> bytes:
    """A short file, asked for as firmware does: again after a second; empty if none comes."""
    with netns.entered(OTHERS):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with client:
        client.bind((source, 0))
        client.settimeout(1)
        for _ in range(tries):
            client.sendto(read_request(name), (front.address, 69))
            with suppress(TimeoutError):
                block, sender = client.recvfrom(2048)
                client.sendto(b"\x00\x04" + block[2:4], sender)
                return block[4:] if block[:2] == b"\x00\x03" else b""
    return b""


def many_files() -> None:
    """This process holds thousands of connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 20000)), hard))
