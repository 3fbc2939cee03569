"""Boot events in one common form, from four logs. Pure.

The logs: dnsmasq's, nginx's access log and the boot service's events, all on the control node
(probe_boot.py reads them there), and the diary of `orchestrate up`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.provision.boot_parameters import SIGNED

DONE, STARTED, FAILED = "done", "start", "failed"
#: Senders of a DHCP request: firmware, loader, or a system (the initrd too).
FIRMWARE, LOADER, SYSTEM = "firmware", "loader", "system"
#: Events that are not steps of a boot.
UNKNOWN, REFUSED, FOREIGN = "unknown", "refused", "foreign"
#: The initrd's name for its own first step, here called "init": "kernel" is the kernel's download.
INITRD_START = "kernel"


@dataclass(frozen=True)
class BootEvent:
    """An event of a machine, known by hardware address, IP address or node name.

    ``time``: its start in seconds since 1970. ``seconds``: its duration, 0 if unknown. ``bytes``:
    how many were transferred.
    """

    time: float
    step: str
    status: str = DONE
    mac: str = ""
    address: str = ""
    node: str = ""
    seconds: float = 0.0
    bytes: int = 0
    text: str = ""
    #: The sender of a DHCP request, else empty.
    sender: str = ""
    #: Refusals are counted: how many since ``first``.
    count: int = 1
    first: float = 0.0

    @property
    def end(self) -> float:
        return self.time + self.seconds


_MAC = r"((?:[0-9a-f]{2}:){5}[0-9a-f]{2})"
_ADDRESS = r"(\d+\.\d+\.\d+\.\d+)"
_PACKET = re.compile(r"\d+ available DHCP subnet: ")
_VENDOR = re.compile(r"\d+ (vendor|user) class: (\S+)")
_DHCP = re.compile(
    rf"(?:\d+ )?DHCP(DISCOVER|OFFER|REQUEST|ACK|NAK)\(\S+\)(?: {_ADDRESS})? {_MAC}(?: (.*))?"
)
_PXE = re.compile(rf"(?:\d+ )?PXE\(\S+\) (?:{_ADDRESS} )?{_MAC} (\S+)")
_TFTP = re.compile(rf"sent \S*/(\S+) to {_ADDRESS}")
_TFTP_MISSING = re.compile(rf"file \S*/(\S+) not found for {_ADDRESS}")
#: How dnsmasq's messages begin for a machine that gets no address.
_NO_PLACE = ("no address available", "ignored", "no address range available")
#: What it says of one that a proxy offers nothing to.
_IGNORED = "proxy-ignored"
#: Matches the messages of dnsmasq that are read here.
DNSMASQ_WORDS = r"available DHCP subnet|class: |DHCP[A-Z]+\(|PXE\(|sent /|file /"
#: Files that shim and GRUB request but do not need.
_OPTIONAL = re.compile(r"revocations_\w+\.efi|shim_certificate_\d\.efi|.*\.(?:mod|lst|cfg)")


def from_dnsmasq(lines: Iterable[tuple[float, str]]) -> Iterable[BootEvent]:
    """Events from (time, message) of dnsmasq's log, written with its option `log-dhcp`."""
    sender = SYSTEM
    for time, message in lines:
        if _PACKET.match(message):
            sender = SYSTEM
        elif found := _VENDOR.match(message):
            sender = _sender(sender, *found.groups())
        elif found := _DHCP.match(message):
            yield _dhcp(time, sender, *found.groups())
        elif (found := _PXE.match(message)) and found[3] == _IGNORED:
            yield BootEvent(time, UNKNOWN, FAILED, mac=found[2], text=found[3])
        elif found:
            text = f"PXE {found[3]}"
            yield BootEvent(time, "dhcp", mac=found[2], text=text, sender=sender)
        elif found := _TFTP.match(message):
            text = f"{found[1]} by TFTP"
            yield BootEvent(time, _file_step(found[1]), address=found[2], text=text)
        elif (found := _TFTP_MISSING.match(message)) and not _OPTIONAL.fullmatch(found[1]):
            text = f"{found[1]}: there is no such file"
            yield BootEvent(time, _file_step(found[1]), FAILED, address=found[2], text=text)


def _sender(before: str, kind: str, name: str) -> str:
    if kind == "user":
        return LOADER if name == "iPXE" else before
    return FIRMWARE if name.startswith(("PXEClient", "HTTPClient")) else SYSTEM


def _dhcp(
    time: float, sender: str, kind: str, address: str | None, mac: str, rest: str | None
) -> BootEvent:
    said = rest or ""
    if said.startswith(_NO_PLACE):
        return BootEvent(time, UNKNOWN, FAILED, mac=mac, text=said)
    if "wrong server-ID" in said:
        text = f"it got {address} from another server"
        return BootEvent(time, FOREIGN, FAILED, mac=mac, text=text)
    status = {"ACK": DONE, "NAK": FAILED}.get(kind, STARTED)
    text = " ".join(word for word in (kind, address, said) if word)
    return BootEvent(time, "dhcp", status, mac=mac, text=text, sender=sender)


def _file_step(name: str) -> str:
    if name.endswith(SIGNED):  # kernel and initrd in one
        return "initrd"
    return name if name in ("kernel", "initrd") else "loader"


def from_access(records: Iterable[Mapping[str, Any]]) -> Iterable[BootEvent]:
    """Events from nginx's log of nodes' requests. Layers are left out: the initrd reports them."""
    for record in records:
        parts = str(record["uri"]).partition("?")[0].strip("/").split("/")
        if parts[0] == "loaders":
            step = _file_step(parts[-1])
        elif parts[0] == "images" and parts[-1] in ("kernel", "initrd"):
            step = parts[-1]
        else:
            continue
        seconds = float(record["seconds"])
        code = int(record["status"])
        ok = code < 400
        yield BootEvent(
            float(record["time"]) - seconds,
            step,
            DONE if ok else FAILED,
            address=str(record["address"]),
            seconds=seconds,
            bytes=int(record["bytes"]) if ok else 0,
            text=f"{parts[-1]} by HTTP" if ok else f"{parts[-1]}: HTTP {code}",
        )


def from_service(records: Sequence[Mapping[str, Any]]) -> Iterable[BootEvent]:
    """Events from the boot service's log.

    A report has the machine's uptime, but may arrive late, since it waits for the network. So the
    kernel's start is computed from the report that arrived with the least delay.
    """
    started: dict[str, float] = {}
    for record in records:
        if boot := record.get("uptime") is not None and record.get("boot"):
            since = float(record["time"]) - float(record["uptime"])
            started[boot] = min(since, started.get(boot, since))
    for record in records:
        kind, time = str(record["kind"]), float(record["time"])
        text = str(record.get("text", ""))
        mac, address = str(record.get("mac", "")), str(record.get("address", ""))
        if kind == "report":
            step = str(record["step"])
            if record.get("boot") in started:
                time = started[str(record["boot"])] + float(record["uptime"])
            step = "init" if step == INITRD_START else step
            status, size = str(record["status"]), _bytes(text)
            yield BootEvent(time, step, status, mac=mac, address=address, bytes=size, text=text)
        else:
            status = FAILED if kind in (REFUSED, UNKNOWN) else DONE
            count, first = int(record.get("count", 1)), float(record.get("first", time))
            said = BootEvent(time, kind, status, mac=mac, address=address, text=text)
            yield replace(said, count=count, first=first)


def _bytes(text: str) -> int:
    """The bytes in a report like "145213440 bytes from http://..."; 0 if from the cache."""
    found = re.match(r"(\d+) bytes from http", text)
    return int(found[1]) if found else 0


def from_up(records: Iterable[Mapping[str, Any]]) -> Iterable[BootEvent]:
    """Events from the diary of `orchestrate up`."""
    for record in records:
        yield BootEvent(
            float(record["time"]),
            str(record["step"]),
            str(record.get("status", DONE)),
            node=str(record["node"]),
            text=str(record.get("text", "")),
        )
