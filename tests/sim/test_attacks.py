"""A hostile host on the cluster's switch: what it tries, beside what the right key gets.

It has an address of its own and the image's programs, and no key. It may send what it likes.
"""

from __future__ import annotations

import random
import re
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.sim import NAME, NODES, Sim

from orchestrator.node.paths import SSH_PORT, VENV
from orchestrator.provision.machines import netns

pytestmark = pytest.mark.sim

ADDRESS = "10.77.0.66"
SPACE = "orchestrate-test-hostile"
#: A file that a foreign command would leave.
TROPHY = "/tmp/was-here"
RAY, PYTHON = (f"{VENV}/bin/{name}" for name in ("ray", "python"))
#: Ray's own default.
RAY_CLIENT_PORT = 10001


class Hostile:
    """The host, and what it knows of the cluster: addresses and ports, as a scan would tell."""

    def __init__(self, sim: Sim) -> None:
        self.sim = sim
        control = sim.document["control"]
        nodes: list[dict[str, Any]] = [control, *sim.document["compute_nodes"]]
        self.control = control["links"]["cluster"]["address"]
        self.address = {node["name"]: node["links"]["cluster"]["address"] for node in nodes}
        self.mac = {node["name"]: node["links"]["cluster"]["mac"] for node in nodes}
        self.endpoint = f"http://{self.control}:{sim.document['serving']['endpoint_port']}"
        self.files = f"http://{self.control}:{sim.document['boot']['http_port']}"
        self.keys = Path(sim.env["ORCHESTRATE_STATE"], "clusters", NAME)
        self.key, self.token = (
            (self.keys / name).read_text().strip() for name in ("api.key", "ray.token")
        )

    def client(self, key: str | None = None) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(headers=headers, timeout=20, trust_env=False)

    def on_a_node(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """A program as an account of compute1 that may read nothing of the cluster's."""
        pid = self.sim.machine("compute1")
        inside = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
        enter = ["nsenter", f"--target={inside}", "--all", "--"]
        nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env", "-i"]
        return subprocess.run(
            [*enter, *nobody, "HOME=/tmp", "PATH=/usr/bin:/bin", *argv],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def raw(self, port: int, request: str) -> bytes:
        """What the control node's web server answers to these very bytes."""
        with socket.create_connection((self.control, port), timeout=10) as connection:
            connection.sendall(f"{request}\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            answer = b""
            while part := connection.recv(65536):
                answer += part
                if len(answer) > 1 << 20:
                    break
        return answer

    def listening(self, node: str) -> list[int]:
        """TCP ports that this node opens to the network."""
        seen = self.sim.shell(node, "ss", "-Hltn").splitlines()
        ends = [line.split()[3] for line in seen]
        return sorted({int(end.rpartition(":")[2]) for end in ends if not end.startswith("127.")})


@pytest.fixture
def hostile(serving: Sim) -> Iterator[Hostile]:
    switch = f"orchestrate-{NAME}-switch"
    netns.create(SPACE)
    try:
        peer = ["peer", "name", "hostile", "netns", switch]
        netns.ip(SPACE, "link", "add", "eth0", "type", "veth", *peer)
        netns.ip(switch, "link", "set", "hostile", "master", "br0", "up")
        netns.ip(SPACE, "address", "add", f"{ADDRESS}/24", "dev", "eth0")
        netns.ip(SPACE, "link", "set", "eth0", "up")
        yield Hostile(serving)
    finally:
        netns.delete(SPACE)


@contextmanager
def there() -> Iterator[None]:
    with netns.entered(SPACE):
        yield


def test_the_endpoint_answers_to_the_key_alone(hostile: Hostile) -> None:
    with there():
        for key, status in ((None, 401), ("wrong", 401), (hostile.key, 200)):
            with hostile.client(key) as client:
                assert client.get(f"{hostile.endpoint}/v1/models").status_code == status, key


def test_paths_that_vllm_does_not_guard_are_not_passed_on(hostile: Hostile) -> None:
    body = {"prompt": "x", "messages": [{"role": "user", "content": "x"}], "model": "known-answers"}
    with there(), hostile.client(hostile.key) as client:
        for path in ("/invocations", "/tokenize", "/metrics", "/load", "/docs", "/openapi.json",
                     "/v1/../invocations", "/V1/models", "//invocations"):  # fmt: skip
            answer = client.post(hostile.endpoint + path, json=body)
            assert answer.status_code in (400, 404, 405), (path, answer.text)
        assert client.get(f"{hostile.endpoint}/health").status_code == 200


def test_only_ports_for_everybody_are_open(hostile: Hostile) -> None:
    """Each port that a node listens at: from the hostile host, and beside it from another node."""
    boot, serving = hostile.sim.document["boot"], hostile.sim.document["serving"]
    public = {"control": {SSH_PORT, serving["endpoint_port"], boot["http_port"]}}
    for node, address in hostile.address.items():
        ports = hostile.listening(node)
        assert len(ports) > len(public.get(node, {SSH_PORT})), f"{node} has nothing to guard"
        with there():
            opened = {port for port in ports if connects(address, port)}
        assert opened == public.get(node, {SSH_PORT}), node
        # As root of another node: its firewall lets no other account reach the boot port.
        other = "control" if node != "control" else "compute1"
        words = [address, *map(str, ports)]
        said = hostile.sim.shell(other, "/usr/bin/python3", "-c", CONNECTS, *words)
        assert {int(word) for word in said.split()} == set(ports), node


def test_vllm_itself_is_for_the_control_node_alone(hostile: Hostile) -> None:
    """Its own port, past the web server."""
    address, port = hostile.address["compute0"], hostile.sim.document["serving"]["port"]
    for node, is_let_in in (("compute1", False), ("control", True)):
        with netns.entered(f"orchestrate-{NAME}-{node}"):
            assert connects(address, port) is is_let_in, node


def connects(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=10).close()
    except ConnectionRefusedError:
        return False
    return True


def test_ray_runs_nothing_without_the_token(hostile: Hostile) -> None:
    """Every port that speaks HTTP is asked for a job, and for what sets up a job's environment.

    From a node, where these ports are open, by who has no token.
    """
    ports = [(hostile.address[node], port) for node in NODES for port in hostile.listening(node)]
    paths = ("/api/jobs/", "/api/job_agent/jobs/", "/get_or_create_runtime_env")
    job = {"entrypoint": f"touch {TROPHY}", "submission_id": "hostile"}

    def speaks_http(place: tuple[str, int]) -> bool:
        try:
            client.get(f"http://{place[0]}:{place[1]}/", timeout=3)
        except httpx.HTTPError:
            return False
        return True

    guarded = {}
    with netns.entered(f"orchestrate-{NAME}-compute1"):
        with hostile.client() as client, ThreadPoolExecutor(len(ports)) as pool:
            web = [at for at, yes in zip(ports, pool.map(speaks_http, ports), strict=True) if yes]
        for key in (None, "wrong", hostile.token):
            with hostile.client(key) as client:
                answers = {
                    (at, path): client.post(f"http://{at[0]}:{at[1]}{path}", json=job).status_code
                    for at in web
                    for path in paths
                }
            guarded[key] = {place for place, status in answers.items() if status in (401, 403)}
            if key != hostile.token:
                assert {place: status for place, status in answers.items() if status < 400} == {}
    assert guarded[None] == guarded["wrong"], guarded
    # With the token, what asked for it takes it (and finds the request wrong).
    assert guarded[None] - guarded[hostile.token], guarded
    for node in NODES:
        assert hostile.sim.shell(node, "sh", "-c", f"test -e {TROPHY} || echo no") == "no\n"


def test_ray_tells_nothing_without_the_token(hostile: Hostile) -> None:
    address = f"{hostile.control}:{hostile.sim.document['ray']['port']}"
    for token, is_let_in in (("", False), ("wrong", False), (hostile.token, True)):
        words = ["RAY_AUTH_MODE=token", f"RAY_AUTH_TOKEN={token}"] if token else []
        done = hostile.on_a_node(*words, RAY, "status", "--address", address)
        assert ("Active" in done.stdout) is is_let_in, done
        assert is_let_in or "uthenticat" in done.stderr, done  # and for no other reason


#: Asks Ray's client server, which runs any Python that it is sent, for a sign of life.
#: Prints those of the ports that accept a connection.
CONNECTS = """
import socket, sys
for port in sys.argv[2:]:
    with socket.socket() as asking:
        asking.settimeout(10)
        if asking.connect_ex((sys.argv[1], int(port))) == 0:
            print(port)
"""
PING = """
import sys, grpc
address, token = sys.argv[1:]
call = grpc.insecure_channel(address).unary_unary("/ray.rpc.RayletDriver/ClusterInfo")
try:
    call(b"\x08\x06", metadata=[("authorization", f"Bearer {token}")] if token else [], timeout=20)
    print("OK")
except grpc.RpcError as error:
    print(error.code().name)
"""


def test_rays_client_is_not_let_in_without_the_token(hostile: Hostile) -> None:
    assert RAY_CLIENT_PORT in hostile.listening("control")
    address = f"{hostile.control}:{RAY_CLIENT_PORT}"
    for token, said in (
        ("", "UNAUTHENTICATED"),
        ("wrong", "UNAUTHENTICATED"),
        (hostile.token, "OK"),
    ):
        done = hostile.on_a_node(PYTHON, "-c", PING, address, token)
        assert done.stdout == f"{said}\n", done


def test_another_nodes_boot_is_not_told(hostile: Hostile) -> None:
    mac, strange = hostile.mac["compute0"], "02:00:0a:4d:00:66"
    with there(), hostile.client() as client:
        for asked in (mac, strange):
            script = client.get(f"{hostile.files}/boot/ipxe", params={"mac": asked})
            assert "orchestrate.boot=" not in script.text, script.text
            for nonce in ("", "0" * 32):
                query = {"mac": asked, "boot": nonce}
                answer = client.post(
                    f"{hostile.files}/boot/identity", params=query, content="ssh-ed25519 AAAA x"
                )
                assert answer.status_code >= 400, answer.text
                assert "CERT" not in answer.text and "cert" not in answer.text
        # Who asks is what the web server sees, not what a request says of itself.
        claim = {"X-Real-IP": hostile.address["compute0"]}
        for path in ("/boot/ipxe", "/boot/begin"):
            answer = client.get(f"{hostile.files}{path}", params={"mac": mac}, headers=claim)
            assert answer.status_code == 403, answer.text
        images = (hostile.keys / "served/images").iterdir()
        image = next(path.name for path in images if path.is_dir())
        # What is for everybody is given.
        assert client.get(f"{hostile.files}/images/{image}/manifest.json").status_code == 200


#: Ways out of a web root.
PATHS = [
    "/models/../../../etc/orchestrate/host_ca",
    "/models/%2e%2e/%2e%2e/%2e%2e/etc/orchestrate/host_ca",
    "/models/..%2f..%2f..%2fetc/orchestrate/host_ca",
    "/loaders../../../etc/orchestrate/host_ca",
    "/loaders/../../../../etc/orchestrate/host_ca",
    "/loaders/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/orchestrate/host_ca",
    "//etc/orchestrate/host_ca",
    "/images/..\\..\\..\\etc\\orchestrate\\host_ca",
    "/models/%00/../../../etc/orchestrate/host_ca",
    "/boot/../../../../etc/orchestrate/host_ca",
    "/netboot/boot.json",
    "/models/known-answers/.record.json/../../../../../etc/passwd",
]


@pytest.mark.parametrize("path", PATHS)
def test_http_gives_nothing_from_outside_its_root(hostile: Hostile, path: str) -> None:
    port = hostile.sim.document["boot"]["http_port"]
    with there():
        answer = hostile.raw(port, f"GET {path} HTTP/1.1")
    assert re.match(rb"HTTP/1.1 (400|403|404)", answer), answer[:200]
    assert b"PRIVATE KEY" not in answer and b"root:x:" not in answer


def test_tftp_gives_nothing_from_outside_its_root(hostile: Hostile) -> None:
    loader = hostile.sim.document["boot"]["loaders"]["uefi"]
    with there():
        assert tftp(hostile.control, loader)[:2] == b"\0\3"  # data
        for path in ("/etc/passwd", "../../../etc/passwd", "..\\..\\etc\\passwd",
                     f"{loader}/../../../../etc/passwd", "./../../../etc/orchestrate/host_ca",
                     "/etc/orchestrate/host_ca"):  # fmt: skip
            answer = tftp(hostile.control, path)
            assert answer[:2] == b"\0\5", (path, answer)  # an error
            assert b"root:" not in answer and b"PRIVATE" not in answer


def tftp(address: str, path: str) -> bytes:
    """The first packet of the answer to a read request (RFC 1350)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.sendto(b"\0\1" + path.encode() + b"\0octet\0", (address, 69))
        answer, sender = client.recvfrom(2048)
        client.sendto(b"\0\5\0\0enough\0", sender)
        return answer


def test_ssh_lets_no_other_key_in(hostile: Hostile, tmp_path: Path) -> None:
    """A key of its own; one certified for root by an authority of its own; no key; a password."""
    for name in ("ca", "key"):
        keygen("-t", "ed25519", "-N", "", "-f", str(tmp_path / name))
    shutil.copy(tmp_path / "key", tmp_path / "certified")
    shutil.copy(tmp_path / "key.pub", tmp_path / "certified.pub")
    keygen("-s", str(tmp_path / "ca"), "-I", "root", "-n", "root", str(tmp_path / "certified.pub"))
    ways = [
        ["-i", str(tmp_path / "key")],
        ["-i", str(tmp_path / "certified")],
        ["-o", "PubkeyAuthentication=no"],
        [
            "-o",
            "PreferredAuthentications=password,keyboard-interactive",
            "-o",
            "NumberOfPasswordPrompts=1",
        ],
    ]
    for node, address in hostile.address.items():
        known = tmp_path / f"known-{node}"
        known.write_text((hostile.keys / "known_hosts").read_text())
        for account in ("root", hostile.sim.document["users"]["service"]):
            for way in ways:
                ssh = ["ssh", "-F", "none", "-o", f"UserKnownHostsFile={known}",
                       "-o", f"HostKeyAlias={node}", "-o", "BatchMode=yes",
                       "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none",
                       "-o", "ConnectTimeout=10", *way, f"{account}@{address}", "id"]  # fmt: skip
                with there():
                    done = subprocess.run(
                        ssh, capture_output=True, text=True, timeout=60, check=False
                    )
                assert done.returncode == 255 and "Permission denied" in done.stderr, done
    assert hostile.sim.run("node", "ssh", "compute0", "--", "id").stdout.startswith("uid=0")


def keygen(*words: str) -> None:
    subprocess.run(["ssh-keygen", "-q", *words], check=True, capture_output=True, timeout=60)


def test_strangers_cannot_use_up_dhcp(hostile: Hostile) -> None:
    """Hundreds of strange machines ask; none is given anything, and a known one still is."""
    ask = random.Random(0)
    known = discover(bytes.fromhex(hostile.mac["compute1"].replace(":", "")), 0xC0FFEE)
    with there(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        client.bind(("", 68))
        for number in range(500):
            mac = bytes((2, 0xFF, *ask.randbytes(4)))
            client.sendto(discover(mac, number), ("255.255.255.255", 67))
        answer = b""
        # A flood fills the server's queue: what asks then asks again, as firmware does.
        client.settimeout(1)
        for _ in range(20):
            client.sendto(known, ("255.255.255.255", 67))
            with suppress(TimeoutError):
                answer = client.recv(2048)
                break
    # yiaddr, xid: the only answer is the known machine's.
    assert socket.inet_ntoa(answer[16:20]) == hostile.address["compute1"]
    assert struct.unpack("!I", answer[4:8]) == (0xC0FFEE,)


def discover(mac: bytes, xid: int) -> bytes:
    """A DHCPDISCOVER that asks for a broadcast answer (RFC 2131)."""
    head = struct.pack("!BBBBIHH", 1, 1, 6, 0, xid, 0, 0x8000)
    return (
        head + bytes(16) + mac + bytes(10 + 192) + b"\x63\x82\x53\x63\x35\x01\x01\xff" + bytes(60)
    )
