"""The boot service of the control node: boot scripts, identities, and nodes' reports.

`up` copies this one file to the control node, where the image's Python runs it behind nginx. It
reads publish.py's document at each request, so that a new one takes effect at once.

A *boot* begins when a machine requests its script (or, if the loader has no HTTP, when its initrd
requests a nonce). Each boot has a nonce, and gets one certificate for it. Refused, and shown by
`orchestrate status`, are a second request for a certificate, and a boot of a node that is up: one
that accepts connections at its SSH port. The node makes its private key itself and never sends it.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import re
import secrets
import socket
import subprocess
import sys
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
#: Exactly one ed25519 key: they all have this length and these first bytes. A comment is dropped.
PUBLIC_KEY = re.compile(
    r"(ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI[A-Za-z0-9+/]{43})(?: [ -~]{0,100})?\n?"
)
REPORT = re.compile(r"([a-z0-9:._-]{1,64}) (start|done|failed) (\d{1,9}(?:\.\d{1,6})?)(?: (.*))?")
#: A report's text is cut to so many characters.
TEXT = 400
#: The longest request body in bytes: a key, or one report.
BODY = 2000
#: The number of boots that are kept per machine.
REMEMBERED = 20
#: A machine's event log is rotated when it exceeds so many bytes; one old file is kept.
EVENTS_SIZE = 64 << 10
#: Refusals are written at most once in so many seconds, and kept for so many.
REFUSALS_WRITTEN, REFUSALS_KEPT = 1.0, 30 * 86400.0
#: An unknown machine's requests are logged at most once in so many seconds.
QUIET = 600.0
#: Seconds to wait for an answer of a node's SSH port. A machine that boots refuses at once.
KNOCK = 1.5
#: A node that was up is taken to be up for so many seconds. Its sshd blocks who knocks too often.
STAYS_UP = 5.0
#: The flag in /proc/net/arp of a neighbour that answered ARP (ATF_COM).
COMPLETE = 0x2


class NotSaved(Exception):
    """The state directory cannot be written, so no identity may be handed out."""


@dataclass(frozen=True)
class Files:
    """The service's files. ``lifetime``: of its certificates, in seconds."""

    document: Path
    state: Path
    authority: Path
    neighbours: Path
    lifetime: int

    def read_document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.document.read_text())
        return document

    def neighbours_at(self, address: str) -> set[str]:
        """The hardware addresses that the kernel's ARP table has for `address`."""
        rows = [line.split() for line in self.neighbours.read_text().splitlines()[1:]]
        return {row[3].lower() for row in rows if row[0] == address and int(row[2], 16) & COMPLETE}


class Boots:
    """All machines' last boots, in boots.json, which is written before a request is answered."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.by_mac: dict[str, list[dict[str, Any]]] = {}
        with suppress(FileNotFoundError):
            self.by_mac = json.loads(path.read_text())

    def begin(self, mac: str, address: str) -> str:
        """Record a new boot; return its nonce. Raises NotSaved."""
        nonce = secrets.token_hex(16)
        boot = {"boot": nonce, "time": time.time(), "address": address, "identity": None}
        before = self.by_mac.get(mac, [])
        self.by_mac[mac] = [*before, boot][-REMEMBERED:]
        try:
            self._save()
        except NotSaved:
            self.by_mac[mac] = before
            raise
        return nonce

    def begun(self, mac: str, nonce: str) -> dict[str, Any] | None:
        """The machine's boot with this nonce; None if it is unknown or too old."""
        for boot in self.by_mac.get(mac, []):
            if secrets.compare_digest(boot["boot"].encode(), nonce.encode()):
                return boot
        return None

    def last(self, mac: str, nonce: str) -> dict[str, Any] | None:
        """The machine's latest boot, if it has this nonce: older nonces are not valid any more."""
        boot = self.begun(mac, nonce)
        return boot if boot is not None and boot is self.by_mac[mac][-1] else None

    def claim(self, boot: dict[str, Any]) -> None:
        """Mark the boot's identity as handed out. Raises NotSaved."""
        boot["identity"] = time.time()
        try:
            self._save()
        except NotSaved:
            boot["identity"] = None
            raise

    def _save(self) -> None:
        try:
            replace(self.path, json.dumps(self.by_mac))
        except OSError as error:
            raise NotSaved(str(error)) from error


class Events:
    """The event logs, a line per event, in a file per machine: none pushes another's out of view.

    What machines that are not in the profile do is in one file. `refused.jsonl` has a line for each
    node and reason: refusals are counted.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.unknown: dict[str, float] = {}
        self.refused: dict[tuple[str, str], dict[str, Any]] = {}
        self.waiting = False
        with suppress(OSError, ValueError, KeyError, TypeError):
            for line in (directory / "refused.jsonl").read_text().splitlines():
                event = json.loads(line)
                if event["time"] > time.time() - REFUSALS_KEPT:
                    self.refused[event["node"], event["reason"]] = event

    def add(self, kind: str, mac: str, node: str = "", **fields: Any) -> None:
        """Append an event. If the disk is full, the event is lost, and boots go on."""
        event = {"time": now(), "kind": kind, "node": node, "mac": mac, **fields}
        path = self.directory / f"{mac.replace(':', '-') if node else 'unknown'}.jsonl"
        with suppress(OSError):
            self.directory.mkdir(exist_ok=True)
            if path.exists() and path.stat().st_size > EVENTS_SIZE:
                path.replace(path.with_suffix(".1.jsonl"))
            with path.open("a") as file:
                file.write(json.dumps(event) + "\n")

    def add_unknown(self, mac: str, address: str) -> None:
        at = time.monotonic()
        if at - self.unknown.get(mac, -QUIET) >= QUIET:
            self.unknown = {mac: at, **self.unknown} if len(self.unknown) < 1000 else {mac: at}
            self.add("unknown", mac, address=address)

    def count_refusal(self, reason: str, node: str, **fields: Any) -> None:
        """Count a refusal, and keep the fields of the last one."""
        before = self.refused.get((node, reason), {"first": now(), "count": 0})
        self.refused[node, reason] = {
            **{"time": now(), "kind": "refused", "reason": reason, "node": node, **fields},
            **{"first": before["first"], "count": before["count"] + 1},
        }
        if not self.waiting:
            self.write_refusals()
            self.waiting = True
            asyncio.get_running_loop().call_later(REFUSALS_WRITTEN, self.write_refusals)

    def write_refusals(self) -> None:
        self.waiting = False
        with suppress(OSError):
            self.directory.mkdir(exist_ok=True)
            lines = [json.dumps(event) + "\n" for event in self.refused.values()]
            replace(self.directory / "refused.jsonl", "".join(lines))


@dataclass(frozen=True)
class Asking:
    """A request's sender: the hardware address that it claims, its IP address, and its node.

    `node` is the document's entry for the hardware address; None for an unknown machine.
    """

    mac: str
    address: str
    node: dict[str, Any] | None
    document: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.node["name"]) if self.node else ""


class Service:
    """The service's routes and their state."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.boots = Boots(files.state / "boots.json")
        self.events = Events(files.state / "events")
        self.up: dict[str, float] = {}

    def application(self) -> Starlette:
        application = Starlette(
            routes=[
                route("/boot/begin", "GET", self.begin),
                route("/boot/time", "GET", self.time),
                route("/boot/report", "POST", self.report),
                route("/boot/identity", "POST", self.identity),
                route("/boot/{loader}", "GET", self.script),
                route("/boot/{loader}/{mac}", "GET", self.script),
            ],
            # If the state or the document cannot be read or written: 503, and nothing handed out.
            exception_handlers=dict.fromkeys((NotSaved, OSError, ValueError), not_now),
        )
        application.router.redirect_slashes = False
        return application

    async def script(self, request: Request) -> Response:
        """Begin a boot; answer with the machine's boot script."""
        loader = request.path_params["loader"]
        asking = self.asking(request)
        if loader not in asking.document["unknown"]:
            raise HTTPException(404, "there is no such loader")
        if asking.node is None:
            self.events.add_unknown(asking.mac, asking.address)
            return PlainTextResponse(
                asking.document["unknown"][loader].replace("@mac@", asking.mac)
            )
        nonce = await self.new_boot(asking, asking.node)
        return PlainTextResponse(asking.node[loader].replace("@boot@", nonce))

    async def begin(self, request: Request) -> Response:
        """Begin a boot; answer with its nonce only, for loaders without HTTP."""
        asking = self.asking(request)
        if asking.node is None:
            self.events.add_unknown(asking.mac, asking.address)
            raise HTTPException(404, "this hardware address is not in the profile")
        return PlainTextResponse(await self.new_boot(asking, asking.node))

    async def new_boot(self, asking: Asking, node: dict[str, Any]) -> str:
        await self.require_down(asking, node)
        nonce = self.boots.begin(asking.mac, asking.address)
        image = asking.document["image"]["id"]
        self.note("script", asking, nonce, text=f"image {image}")
        return nonce

    async def time(self, request: Request) -> Response:
        """Seconds since 1970, for nodes without a correct clock: certificates expire."""
        return PlainTextResponse(f"{int(time.time())}\n")

    async def report(self, request: Request) -> Response:
        """Log an initrd's report about a step. A malformed one is ignored: the boot goes on."""
        asking = self.asking(request)
        line = (await body(request)).decode("utf-8", "replace").strip()
        if asking.node and (found := REPORT.fullmatch(line)):
            step, status, uptime, text = found.groups()
            told = "".join(c if c.isprintable() else "?" for c in (text or "")[:TEXT])
            details = {"step": step, "status": status, "uptime": float(uptime), "text": told}
            nonce = request.query_params.get("boot", "")
            known = self.boots.begun(asking.mac, nonce)
            self.note("report", asking, nonce if known else "", **details)
        return Response(status_code=204)

    async def identity(self, request: Request) -> Response:
        """A certificate for the node's public key, and its boot files: once per boot."""
        asking = self.asking(request)
        nonce = request.query_params.get("boot", "")
        if asking.node is None:
            self.events.add_unknown(asking.mac, asking.address)
            raise HTTPException(404, "this hardware address is not in the profile")
        key = PUBLIC_KEY.fullmatch((await body(request)).decode("ascii", "replace"))
        if key is None:
            raise HTTPException(400, "the body must be one public ed25519 key")
        self.entitled(asking, nonce)
        await self.require_down(asking, asking.node)
        answer = await run_in_threadpool(self.certified, asking, key[1])
        # Another request may have got it meanwhile, or a later boot may have begun. Between this
        # check and the claim no other request runs.
        self.boots.claim(self.entitled(asking, nonce))
        self.note("identity", asking, nonce, text=key[1])
        return Response(answer, media_type="application/x-tar")

    def entitled(self, asking: Asking, nonce: str) -> dict[str, Any]:
        """The boot, if it may have an identity. Raises HTTPException where it may not."""
        boot = self.boots.last(asking.mac, nonce)
        if boot is None:
            text = "its nonce does not belong to the latest boot of this node"
            raise self.refused(410, asking, text)
        if boot["identity"] is not None:
            raise self.refused(409, asking, "this boot already has an identity", nonce)
        return boot

    async def require_down(self, asking: Asking, node: dict[str, Any]) -> None:
        """Raises HTTPException if the node is up: then something that runs on it asks, or another
        machine with its addresses. A connection is enough: no boot has a listener at that port."""
        if time.monotonic() - self.up.get(asking.mac, -STAYS_UP) >= STAYS_UP:
            if not await accepts(node["address"], asking.document["ssh_port"]):
                return
            self.up[asking.mac] = time.monotonic()
        text = f"{node['name']} is up: {node['address']} accepts SSH connections"
        raise self.refused(423, asking, text)

    def refused(self, code: int, asking: Asking, text: str, nonce: str = "") -> HTTPException:
        """Count a refusal; return the exception to raise."""
        # Anybody can ask in a node's name. Who has its address too is counted apart.
        own = asking.node is not None and asking.address == asking.node["address"]
        reason = f"{code} {'from its address' if own else 'from elsewhere'}"
        self.events.count_refusal(reason, **about(asking, nonce), text=text)
        return HTTPException(code, text)

    def certified(self, asking: Asking, key: str) -> bytes:
        assert asking.node is not None
        certificate = certify(self.files, key, asking.node["principals"])
        files = dict(asking.node["files"])
        files[asking.document["certificate"]] = {"content": certificate, "mode": 0o644}
        return archive(files)

    def asking(self, request: Request) -> Asking:
        """The request's sender. Raises HTTPException if its addresses do not prove its claim."""
        mac = request.path_params.get("mac") or request.query_params.get("mac", "")
        mac = mac.lower().replace("-", ":")
        if MAC.fullmatch(mac) is None:
            raise HTTPException(400, "mac= must be a hardware address like 02:00:0a:4d:00:10")
        document = self.files.read_document()
        address = request.headers.get("x-real-ip", "")
        asking = Asking(mac, address, document["nodes"].get(mac), document)
        seen = self.files.neighbours_at(address)
        if mac not in seen:
            text = f"it claims {mac}, but its MAC is {', '.join(sorted(seen)) or 'unknown'}"
            raise self.refused(403 if asking.node else 404, asking, text)
        # With another DHCP server, nodes can have other IP addresses than in the profile.
        ours = document["leases"] == "ours"
        if asking.node and ours and address != asking.node["address"]:
            text = (
                f"the request came from {address}; the node's address is {asking.node['address']}"
            )
            raise self.refused(403, asking, text)
        return asking

    def note(self, kind: str, asking: Asking, nonce: str = "", **details: Any) -> None:
        """Log an event."""
        self.events.add(kind, **about(asking, nonce), **details)


def now() -> float:
    return round(time.time(), 3)


def replace(path: Path, text: str) -> None:
    """Write a file whole, or leave it as it was. Raises OSError."""
    beside = path.with_name(f".{path.name}")
    with beside.open("w") as file:
        beside.chmod(0o600)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def about(asking: Asking, nonce: str) -> dict[str, str]:
    """What each event says. Of the nonce the first 8 digits: it is a secret until it is used."""
    sender = {"node": asking.name, "mac": asking.mac, "address": asking.address}
    return {**sender, "boot": nonce[:8]}


async def accepts(address: str, port: int) -> bool:
    """Whether a connection is accepted within KNOCK seconds."""
    with socket.socket() as knocker:
        knocker.setblocking(False)
        with suppress(OSError):  # TimeoutError too
            async with asyncio.timeout(KNOCK):
                await asyncio.get_running_loop().sock_connect(knocker, (address, port))
        with suppress(OSError):
            # Asked of the kernel: where this process is late, the time may be over all the same.
            return bool(knocker.getpeername())
    return False


async def body(request: Request) -> bytes:
    """The request's body. Raises HTTPException if it is longer than BODY."""
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > BODY:
            raise HTTPException(413, f"more than {BODY} bytes")
    return data


def route(path: str, method: str, endpoint: Callable[[Request], Awaitable[Response]]) -> Route:
    """A route for one method. Starlette adds HEAD to GET, and HEAD would begin a boot."""
    made = Route(path, endpoint, methods=[method])
    made.methods = {method}
    return made


async def not_now(request: Request, error: Exception) -> Response:
    print(f"{request.url.path}: {type(error).__name__}: {error}", file=sys.stderr)
    return PlainTextResponse("internal error on the control node; see its log\n", 503)


def certify(ours: Files, key: str, principals: list[str]) -> str:
    """Sign a host certificate for a public key. The first principal is the node's name.

    Raises HTTPException if ssh-keygen fails.
    """
    with tempfile.TemporaryDirectory(prefix="certify-") as scratch:
        public = Path(scratch, "key.pub")
        public.write_text(f"{key} {principals[0]}\n")
        argv = ["ssh-keygen", "-q", "-s", str(ours.authority), "-I", principals[0], "-h"]
        argv += ["-n", ",".join(principals), "-V", f"always:+{ours.lifetime}s", str(public)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
        if done.returncode != 0:
            raise HTTPException(503, f"ssh-keygen: {done.stderr.strip()[-200:]}")
        return Path(scratch, "key-cert.pub").read_text()


def archive(files: dict[str, dict[str, Any]]) -> bytes:
    """A reproducible tar archive of {path: {content, mode}}; root owns all files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path, file in sorted(files.items()):
            header = tarfile.TarInfo(path.lstrip("/"))
            data = file["content"].encode()
            header.size, header.mode = len(data), file["mode"]
            header.uname = header.gname = "root"
            tar.addfile(header, io.BytesIO(data))
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--document", type=Path, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--authority", type=Path, required=True, help="the host CA's private key")
    parser.add_argument("--lifetime", type=int, required=True, help="a certificate's, in seconds")
    parser.add_argument("--neighbours", type=Path, default=Path("/proc/net/arp"))
    given = parser.parse_args()
    files = Files(given.document, given.state, given.authority, given.neighbours, given.lifetime)
    service = Service(files)
    uvicorn.run(
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
