"""A node's boot as a list of steps, put together from what four places saw of it.

Pure. The places: dnsmasq's log, nginx's access log and the boot service's events on the control
node (probe_boot.py brings them), and what `orchestrate up` did itself. Times are seconds since 1970
on the control node's clock, which is this machine's too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

#: The steps of a boot in order; `layer` stands for one of each layer (`layer:base`).
STEPS = (
    "power",
    "dhcp",
    "loader",
    "script",
    "kernel",
    "initrd",
    "init",
    "network",
    "manifest",
    "layer",
    "root",
    "identity",
    "switch",
    "sshd",
    "configured",
    "ray",
    "ready",
)
#: What the initrd calls its own start; the kernel's file is a step before.
INIT = "kernel"
DONE, STARTED, FAILED = "done", "start", "failed"


@dataclass(frozen=True)
class Event:
    """Something that was seen of a machine: by hardware address, address or name, as known."""

    time: float
    step: str
    status: str = DONE
    mac: str = ""
    address: str = ""
    node: str = ""
    seconds: float = 0.0
    bytes: int = 0
    text: str = ""


@dataclass(frozen=True)
class Place:
    """A node of the profile, as logs name it."""

    name: str
    mac: str
    address: str

    def is_meant(self, event: Event) -> bool:
        if event.node or event.mac:
            return event.node == self.name or event.mac == self.mac
        return event.address == self.address


@dataclass(frozen=True)
class Step:
    """A step of a boot: when it began, how long it took, what came over the wire for it."""

    step: str
    status: str
    start: float
    seconds: float
    bytes: int = 0
    text: str = ""


@dataclass(frozen=True)
class Boot:
    """A node's last boot."""

    node: str
    steps: tuple[Step, ...] = ()
    #: What the boot was last seen doing, for people.
    last: tuple[str, ...] = ()

    @property
    def reached(self) -> str:
        """The last step that was seen, empty before the first."""
        return self.steps[-1].step if self.steps else ""

    @property
    def began(self) -> float:
        return self.steps[0].start if self.steps else 0.0

    @property
    def seen(self) -> float:
        """When something was last seen of it."""
        return max((step.start + step.seconds for step in self.steps), default=0.0)


@dataclass(frozen=True)
class Netboot:
    """All that the logs tell: each node's boot, and who has no place in the profile."""

    boots: Mapping[str, Boot]
    #: Hardware address -> when it was last seen.
    unknown: Mapping[str, float] = field(default_factory=dict)
    #: Requests for an identity, or in a node's name, that were refused.
    refused: tuple[Event, ...] = ()
    #: DHCP servers that are not the control node's, as nodes answered them.
    foreign_servers: tuple[str, ...] = ()


# Each log's own words.

_DHCP = re.compile(
    r"(?:\d+ )?DHCP(DISCOVER|OFFER|REQUEST|ACK|NAK)\(\S+\)(?: (\d+\.\d+\.\d+\.\d+))? "
    r"((?:[0-9a-f]{2}:){5}[0-9a-f]{2})(?: (.*))?"
)
_PXE = re.compile(r"(?:\d+ )?PXE\(\S+\) (\S+) ((?:[0-9a-f]{2}:){5}[0-9a-f]{2}) (\S+)")
_TFTP = re.compile(r"sent \S*/(\S+) to (\d+\.\d+\.\d+\.\d+)")
_OTHER_SERVER = re.compile(r"(?:\d+ )?DHCPREQUEST\(\S+\).* wrong server-ID")
#: dnsmasq's words for a machine that it has no address for.
NO_PLACE = ("no address available", "ignored", "address not available")


def from_dnsmasq(lines: Iterable[tuple[float, str]]) -> Iterable[Event]:
    """(time, message) of dnsmasq's log."""
    for time, message in lines:
        if found := _DHCP.search(message):
            kind, address, mac, rest = found.groups()
            if rest and rest.startswith(NO_PLACE):
                yield Event(time, "unknown", mac=mac)
            elif rest and "wrong server-ID" in rest:
                yield Event(time, "foreign", mac=mac, text=message)
            else:
                status = DONE if kind == "ACK" else FAILED if kind == "NAK" else STARTED
                yield Event(time, "dhcp", status, mac=mac, text=f"{kind} {address or ''}".strip())
        elif found := _PXE.search(message):
            yield Event(time, "dhcp", mac=found[2], text=f"PXE {found[3]}")
        elif found := _TFTP.search(message):
            yield Event(time, _file_step(found[1]), address=found[2], text=f"{found[1]} by TFTP")


def _file_step(name: str) -> str:
    return name if name in ("kernel", "initrd") else "loader"


def from_access(records: Iterable[Mapping[str, Any]]) -> Iterable[Event]:
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
        yield Event(
            float(record["time"]) - seconds,
            step,
            DONE if code < 400 else FAILED,
            address=str(record["address"]),
            seconds=seconds,
            bytes=int(record["bytes"]),
            text="" if code < 400 else f"{parts[-1]}: HTTP {code}",
        )


def from_service(records: Iterable[Mapping[str, Any]]) -> Iterable[Event]:
    """The boot service's events."""
    for record in records:
        event = Event(
            float(record["time"]),
            str(record["kind"]),
            mac=str(record.get("mac", "")),
            address=str(record.get("address", "")),
            text=str(record.get("text", "")),
        )
        if event.step == "report":
            step, status = str(record["step"]), str(record["status"])
            yield replace(event, step="init" if step == INIT else step, status=status)
        else:
            yield event


def from_up(records: Iterable[Mapping[str, Any]]) -> Iterable[Event]:
    """What `orchestrate up` wrote down of its own steps."""
    for record in records:
        yield Event(
            float(record["time"]),
            str(record["step"]),
            str(record.get("status", DONE)),
            node=str(record["node"]),
            text=str(record.get("text", "")),
        )


# Put together.


def assemble(places: Sequence[Place], events: Iterable[Event]) -> Netboot:
    """Each node's last boot, and what else the logs tell."""
    ordered = sorted(events, key=lambda event: event.time)
    known = {place.mac for place in places}
    unknown = {
        event.mac: event.time
        for event in ordered
        if event.step == "unknown" and event.mac not in known
    }
    return Netboot(
        boots={place.name: _boot(place, ordered) for place in places},
        unknown=unknown,
        refused=tuple(event for event in ordered if event.step == "refused"),
        foreign_servers=tuple(event.text for event in ordered if event.step == "foreign"),
    )


def _boot(place: Place, events: Sequence[Event]) -> Boot:
    current: list[Event] = []
    for event in events:
        if _order(event.step) < 0 or not place.is_meant(event):
            continue
        if _begins(event, current):
            current = []
        current.append(event)
    last = tuple(f"{event.step} {event.status} {event.text}".rstrip() for event in current[-5:])
    return Boot(place.name, tuple(_steps(current)), last)


def _order(step: str) -> int:
    """A step's place in a boot; -1 for what is none."""
    name = step.partition(":")[0]
    return STEPS.index(name) if name in STEPS else -1


def _begins(event: Event, current: Sequence[Event]) -> bool:
    """Whether an event is of the next boot: power, or firmware after the root was switched to."""
    if event.step == "power":
        return event.status != FAILED
    left = any(_order(before.step) >= STEPS.index("switch") for before in current)
    return event.step in ("dhcp", "script") and left and event.status == STARTED


def _steps(events: Sequence[Event]) -> Iterable[Step]:
    """One for each name, in the order of a boot; a step seen again (a retry) counts as one."""
    by_name: dict[str, list[Event]] = {}
    for event in events:
        by_name.setdefault(event.step, []).append(event)
    for name in sorted(by_name, key=lambda step: (_order(step), by_name[step][0].time)):
        seen = by_name[name]
        final = seen[-1]
        start = seen[0].time
        yield Step(
            name,
            final.status,
            start=start,
            seconds=round(final.time + final.seconds - start, 3),
            bytes=sum(event.bytes for event in seen),
            text=final.text,
        )
