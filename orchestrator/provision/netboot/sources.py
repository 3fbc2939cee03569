"""What four places saw of booting machines, each in its own words, as events of one form. Pure.

The places: dnsmasq's log, nginx's access log and the boot service's events on the control node
(probe_boot.py brings them), and what `orchestrate up` did itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DONE, STARTED, FAILED = "done", "start", "failed"
#: Who sends a DHCP request: firmware, the loader that it loaded, or a system.
FIRMWARE, LOADER, SYSTEM = "firmware", "loader", "system"
#: Events that are no steps of a boot.
UNKNOWN, REFUSED, FOREIGN = "unknown", "refused", "foreign"
#: What the initrd calls its own start; the kernel's file is a step before.
INITRD_START = "kernel"


@dataclass(frozen=True)
class BootEvent:
    """Something that was seen of a machine: by hardware address, address or name, as known.

    ``time`` is seconds since 1970, when it began; ``seconds`` how long it took, where known.
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
    #: Of a DHCP request: who sent it.
    sender: str = ""

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
#: dnsmasq's words for a machine that it has no address for.
_NO_PLACE = ("no address available", "ignored", "no address range available")
#: Of dnsmasq's many lines, those that are read here.
DNSMASQ_WORDS = r"available DHCP subnet|class: |DHCP[A-Z]+\(|PXE\(|sent /|file /"
#: What shim and GRUB ask for in passing, and do without.
_OPTIONAL = re.compile(r"revocations_\w+\.efi|shim_certificate_\d\.efi|.*\.(?:mod|lst|cfg)")


def from_dnsmasq(lines: Iterable[tuple[float, str]]) -> Iterable[BootEvent]:
    """(time, message) of dnsmasq's log, written with `log-dhcp`."""
    sender = SYSTEM
    for time, message in lines:
        if _PACKET.match(message):
            sender = SYSTEM
        elif found := _VENDOR.match(message):
            sender = _sender(sender, *found.groups())
        elif found := _DHCP.match(message):
            yield _dhcp(time, sender, *found.groups())
        elif found := _PXE.match(message):
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
    return name if name in ("kernel", "initrd") else "loader"


def from_access(records: Iterable[Mapping[str, Any]]) -> Iterable[BootEvent]:
    """nginx's access log. Layers are told by the initrd itself, which checks them too."""
    for record in records:
        parts = str(record["uri"]).partition("?")[0].strip("/").split("/")
        if parts[0] == "loaders":
            step = "loader"
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
    """The boot service's events.

    A report has the machine's own time since its kernel started. It may have waited for the
    network: the one of a boot that waited least tells when that kernel started.
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
            yield BootEvent(time, kind, status, mac=mac, address=address, text=text)


def _bytes(text: str) -> int:
    """What the initrd says of a layer: "145213440 bytes from http://..."; from its disk: none."""
    found = re.match(r"(\d+) bytes from http", text)
    return int(found[1]) if found else 0


def from_up(records: Iterable[Mapping[str, Any]]) -> Iterable[BootEvent]:
    """What `orchestrate up` wrote down of its own steps."""
    for record in records:
        yield BootEvent(
            float(record["time"]),
            str(record["step"]),
            str(record.get("status", DONE)),
            node=str(record["node"]),
            text=str(record.get("text", "")),
        )
