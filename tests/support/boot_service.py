"""The boot service as a real process, and what it is told, for its tests."""

from __future__ import annotations

import io
import json
import socket
import ssl
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from orchestrator.core.run import run
from orchestrator.provision.identity import HOST_CERTIFICATE
from orchestrator.provision.netboot import boot_service_file

MAC, ADDRESS = "02:00:0a:4d:00:10", "127.77.0.10"
OTHER_MAC, OTHER_ADDRESS = "02:00:0a:4d:00:11", "127.77.0.11"
STRANGE_MAC, STRANGE_ADDRESS = "02:00:0a:4d:00:99", "127.77.0.99"
SILENT_ADDRESS = "127.77.0.12"
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
#: Of its certificates, in seconds.
LIFETIME = 86400
NODE_FILES = {
    "/etc/hostname": {"content": "compute0\n", "mode": 0o644},
    "/etc/ssh/user_ca.pub": {"content": "ssh-ed25519 USER\n", "mode": 0o600},
}
DOCUMENT = {
    "schema": 1,
    "server": "http://10.77.0.1:8081",
    "ssh_port": 22,
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
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(directory / name)]
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
        argv += ["--lifetime", str(LIFETIME)]
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
        with self.client() as client:
            return client.request(method, path, headers={"X-Real-IP": address}, content=body)

    def client(self) -> httpx.Client:
        """What asks it; for many requests, one is faster."""
        # No TLS here: by default, httpx reads all certificates of the system each time.
        transport = httpx.HTTPTransport(uds=str(self.home / "http.sock"), verify=NO_TLS)
        return httpx.Client(transport=transport, base_url="http://control", timeout=30)

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
        """What it wrote down, of all machines, in the order of time."""
        texts = [file.read_text() for file in (self.state / "events").glob("*.jsonl")]
        found: list[dict[str, Any]] = [
            json.loads(line) for text in texts for line in text.splitlines()
        ]
        found.sort(key=lambda event: float(event["time"]))
        return [event for event in found if kind in ("", event["kind"])]

    def refused(self, count: int) -> list[dict[str, Any]]:
        """The counted refusals, as soon as they are so many."""
        deadline = time.monotonic() + 10
        while sum(event["count"] for event in self.events("refused")) != count:
            assert time.monotonic() < deadline, self.events("refused")
            time.sleep(0.05)
        return self.events("refused")

    def publish(self, document: dict[str, Any]) -> None:
        new = self.home / "boot.json.new"
        new.write_text(json.dumps(document))
        new.replace(self.home / "boot.json")


def unpacked(answer: httpx.Response) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as tar:
        return {member.name: member for member in tar.getmembers()}


def content(answer: httpx.Response, name: str) -> str:
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as tar:
        file = tar.extractfile(name)
        assert file is not None
        return file.read().decode()
