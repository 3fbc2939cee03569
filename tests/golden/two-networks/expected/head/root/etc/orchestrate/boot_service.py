"""The boot service of the control node: boot scripts, identities, and what nodes report.

One file that `up` puts on the control node, where the image's Python runs it behind nginx. It reads
the document that publish.py writes at each request, so a new one counts at once.

A *boot* begins when a machine asks for its script (or, where the loader has no HTTP, when its
initrd asks to begin). It gets a nonce, and for that nonce one certificate: whoever asks again is
refused, and `orchestrate status` shows it. The private key is made on the node and stays there.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import secrets
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")
PUBLIC_KEY = re.compile(r"ssh-ed25519 AAAA[A-Za-z0-9+/]{20,100}={0,2}( [\x21-\x7e]{0,64})?\n?")
REPORT = re.compile(r"(\S{1,64}) (start|done|failed) (\d+(?:\.\d+)?)(?: (.*))?")
#: Bytes of a request's body: a key, or a line of a report.
BODY = 2000
#: Boots that are remembered of each machine.
REMEMBERED = 20
#: Bytes after which events go to a second file, which replaces the one before.
EVENTS_SIZE = 4 << 20
#: Seconds in which an unknown machine's further requests are not written down.
QUIET = 600.0
#: How long a certificate lasts: longer than a boot is thought to.
LIFETIME = "always:+52w"


class NotSaved(Exception):
    """The state directory cannot be written: nothing may be handed out."""


@dataclass(frozen=True)
class Files:
    """Where the service reads and writes."""

    document: Path
    state: Path
    authority: Path
    neighbours: Path = Path("/proc/net/arp")

    def read_document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.document.read_text())
        return document

    def neighbour(self, address: str) -> str:
        """The hardware address that the kernel last heard from `address`; empty if from none."""
        for line in self.neighbours.read_text().splitlines()[1:]:
            words = line.split()
            if words[0] == address:
                return words[3].lower()
        return ""


class Boots:
    """All boots of all machines, in boots.json: written before anything is answered."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.by_mac: dict[str, list[dict[str, Any]]] = {}
        with suppress(FileNotFoundError):
            self.by_mac = json.loads(path.read_text())

    def begin(self, mac: str, address: str) -> str:
        """A new boot; its nonce."""
        nonce = secrets.token_hex(16)
        boot = {"boot": nonce, "time": time.time(), "address": address, "identity": None}
        self.by_mac[mac] = [*self.by_mac.get(mac, []), boot][-REMEMBERED:]
        self._save()
        return nonce

    def find(self, mac: str, nonce: str) -> dict[str, Any] | None:
        for boot in self.by_mac.get(mac, []):
            if secrets.compare_digest(boot["boot"], nonce):
                return boot
        return None

    def claim(self, boot: dict[str, Any]) -> bool:
        """Whether the boot's one identity is still to be had; from now on it is not."""
        if boot["identity"] is not None:
            return False
        boot["identity"] = time.time()
        try:
            self._save()
        except NotSaved:
            boot["identity"] = None
            raise
        return True

    def release(self, boot: dict[str, Any]) -> None:
        """The claimed identity could not be made after all."""
        boot["identity"] = None
        self._save()

    def _save(self) -> None:
        beside = self.path.with_name(f".{self.path.name}")
        try:
            beside.touch(0o600)
            beside.write_text(json.dumps(self.by_mac))
            beside.replace(self.path)
        except OSError as error:
            raise NotSaved(str(error)) from error


class Events:
    """events.jsonl: what happened, a line each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unknown: dict[str, float] = {}

    def add(self, kind: str, **fields: Any) -> None:
        """Append an event; a disk that is full loses events, and stops nobody's boot."""
        event = {"time": round(time.time(), 3), "kind": kind, **fields}
        with suppress(OSError):
            if self.path.exists() and self.path.stat().st_size > EVENTS_SIZE:
                self.path.replace(self.path.with_suffix(".1.jsonl"))
            with self.path.open("a") as file:
                file.write(json.dumps(event) + "\n")

    def add_unknown(self, mac: str, address: str) -> None:
        now = time.monotonic()
        if now - self.unknown.get(mac, -QUIET) >= QUIET:
            self.unknown = {mac: now, **self.unknown} if len(self.unknown) < 1000 else {mac: now}
            self.add("unknown", mac=mac, address=address)


@dataclass(frozen=True)
class Asking:
    """Who asks: the machine by its word, the node that it is in the profile, where it asks from."""

    mac: str
    address: str
    node: dict[str, Any] | None
    document: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.node["name"]) if self.node else ""


class Service:
    """The routes."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.boots = Boots(files.state / "boots.json")
        self.events = Events(files.state / "events.jsonl")

    def application(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/boot/begin", self.begin),
                Route("/boot/report", self.report, methods=["POST"]),
                Route("/boot/identity", self.identity, methods=["POST"]),
                Route("/boot/{loader}", self.script),
                Route("/boot/{loader}/{mac}", self.script),
            ],
            exception_handlers={NotSaved: not_saved},
        )

    async def script(self, request: Request) -> Response:
        """The machine's boot script; a boot begins."""
        loader = request.path_params["loader"]
        asking = self.asking(request)
        if loader not in asking.document["unknown"]:
            raise HTTPException(404, "there is no such loader")
        if asking.node is None:
            self.events.add_unknown(asking.mac, asking.address)
            return PlainTextResponse(
                asking.document["unknown"][loader].replace("@mac@", asking.mac)
            )
        return PlainTextResponse(asking.node[loader].replace("@boot@", self.new_boot(asking)))

    async def begin(self, request: Request) -> Response:
        """A boot begins without a script: the nonce alone."""
        asking = self.asking(request)
        if asking.node is None:
            self.events.add_unknown(asking.mac, asking.address)
            raise HTTPException(404, "this hardware address is not in the profile")
        return PlainTextResponse(self.new_boot(asking))

    def new_boot(self, asking: Asking) -> str:
        nonce = self.boots.begin(asking.mac, asking.address)
        image = asking.document["image"]["id"]
        self.note("script", asking, nonce, text=f"image {image}")
        return nonce

    async def report(self, request: Request) -> Response:
        """What a node's initrd says of a step."""
        asking = self.asking(request)
        line = (await body(request)).decode("utf-8", "replace").strip()
        found = REPORT.fullmatch(line)
        if found is None:
            raise HTTPException(400, "a report is: STEP start|done|failed UPTIME TEXT")
        step, status, uptime, text = found.groups()
        nonce = request.query_params.get("boot", "")
        details = {"step": step, "status": status, "uptime": float(uptime), "text": text or ""}
        self.note("report", asking, nonce, **details)
        return Response(status_code=204)

    async def identity(self, request: Request) -> Response:
        """A certificate for the key that a node made, and its files: once for each boot."""
        asking = self.asking(request)
        nonce = request.query_params.get("boot", "")
        if asking.node is None:
            self.events.add_unknown(asking.mac, asking.address)
            raise HTTPException(404, "this hardware address is not in the profile")
        key = (await body(request)).decode("ascii", "replace")
        if PUBLIC_KEY.fullmatch(key) is None:
            raise HTTPException(400, "the body has to be one public ed25519 key")
        boot = self.boots.find(asking.mac, nonce)
        if boot is None:
            self.note("refused", asking, nonce, text="it names no boot that began here")
            raise HTTPException(410, "no boot with this nonce began here")
        if not self.boots.claim(boot):
            self.note("refused", asking, nonce, text="this boot's identity was handed out already")
            raise HTTPException(409, "this boot's identity was handed out already")
        try:
            answer = await run_in_threadpool(self.certified, asking, key)
        except BaseException:
            self.boots.release(boot)
            raise
        self.note("identity", asking, nonce, text=" ".join(key.split()[:2]))
        return Response(answer, media_type="application/x-tar")

    def certified(self, asking: Asking, key: str) -> bytes:
        assert asking.node is not None
        certificate = certify(self.files.authority, key, asking.node["principals"])
        files = dict(asking.node["files"])
        files[asking.document["certificate"]] = {"content": certificate, "mode": 0o644}
        return archive(files)

    def asking(self, request: Request) -> Asking:
        """Who asks. Raises HTTPException where it is not at the place of the node that it names."""
        mac = request.path_params.get("mac") or request.query_params.get("mac", "")
        mac = mac.lower().replace("-", ":")
        if MAC.fullmatch(mac) is None:
            raise HTTPException(400, "mac= has to be a hardware address like 02:00:0a:4d:00:10")
        document = self.files.read_document()
        address = request.headers.get("x-real-ip", "")
        asking = Asking(mac, address, document["nodes"].get(mac), document)
        heard = self.files.neighbour(address)
        if heard != mac:
            self.note("refused", asking, text=f"it says {mac}, and is {heard or 'no neighbour'}")
            raise HTTPException(403, "this is not the hardware address that the request came from")
        # With another DHCP server, only the hardware address tells who asks.
        ours = document["leases"] == "ours"
        if asking.node and ours and address != asking.node["address"]:
            wanted = asking.node["address"]
            self.note("refused", asking, text=f"it asks from {address}, its address is {wanted}")
            raise HTTPException(403, "this is not the address of that node")
        return asking

    def note(self, kind: str, asking: Asking, nonce: str = "", **details: Any) -> None:
        """An event. Of a nonce, which is a secret until it is used, only the beginning."""
        self.events.add(
            kind,
            node=asking.name,
            mac=asking.mac,
            address=asking.address,
            boot=nonce[:8],
            **details,
        )


async def body(request: Request) -> bytes:
    """The request's body. Raises HTTPException where it is longer than any should be."""
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > BODY:
            raise HTTPException(413, f"more than {BODY} bytes")
    return data


async def not_saved(request: Request, error: Exception) -> Response:
    return PlainTextResponse(f"the control node cannot write its state: {error}\n", 503)


def certify(authority: Path, key: str, principals: list[str]) -> str:
    """The host certificate of a public key, for a node's name (the first) and its addresses.

    Raises HTTPException where ssh-keygen fails.
    """
    with tempfile.TemporaryDirectory(prefix="certify-") as scratch:
        public = Path(scratch, "key.pub")
        public.write_text(key)
        argv = ["ssh-keygen", "-q", "-s", str(authority), "-I", principals[0], "-h"]
        argv += ["-n", ",".join(principals), "-V", LIFETIME, str(public)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
        if done.returncode != 0:
            raise HTTPException(500, f"ssh-keygen: {done.stderr.strip()[-200:]}")
        return Path(scratch, "key-cert.pub").read_text()


def archive(files: dict[str, dict[str, Any]]) -> bytes:
    """A tar of {path: {content, mode}}, root's, the same bytes for the same files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path, file in sorted(files.items()):
            header = tarfile.TarInfo(path.lstrip("/"))
            data = file["content"].encode()
            header.size, header.mode = len(data), file["mode"]
            tar.addfile(header, io.BytesIO(data))
    return out.getvalue()


def main(run: Callable[..., Awaitable[None] | None] = uvicorn.run) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--document", type=Path, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--authority", type=Path, required=True, help="the host CA's private key")
    given = parser.parse_args()
    service = Service(Files(given.document, given.state, given.authority))
    run(
        service.application(),
        uds=given.socket,
        access_log=False,
        log_level="warning",
        limit_concurrency=200,
        timeout_keep_alive=5,
        server_header=False,
    )


if __name__ == "__main__":
    main()
