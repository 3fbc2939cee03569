"""A node's last boot as a list of steps, put together from what was seen of it (sources.py). Pure.

Times are seconds since 1970 on the control node's clock, which is this machine's too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.provision.netboot.sources import (
    DONE,
    FAILED,
    FIRMWARE,
    FOREIGN,
    LOADER,
    REFUSED,
    STARTED,
    SYSTEM,
    UNKNOWN,
    BootEvent,
)

#: The steps of a boot in order; `layer` stands for one of each layer (`layer:base`), `late` for one
#: of each that the running system fetches, beside the steps before it.
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
    "late",
    "ray",
    "ready",
)
#: The step of kernel and initrd until the initrd has read its command line.
INIT = "init"
LATE = "late"
#: How many of the last events are told of a boot that is stuck.
LAST = 5


@dataclass(frozen=True)
class Place:
    """A node of the profile, as logs name it."""

    name: str
    mac: str
    address: str

    def is_meant(self, event: BootEvent) -> bool:
        if event.node or event.mac:
            return event.node == self.name or event.mac == self.mac
        return event.address == self.address


@dataclass(frozen=True)
class BootStep:
    """A step of a boot: when it began, how long it took (so far), what came over the wire for it.

    ``status`` is "start" while it goes on.
    """

    step: str
    status: str
    start: float
    seconds: float
    bytes: int = 0
    text: str = ""


@dataclass(frozen=True)
class BootTimeline:
    """A node's last boot; ``seen`` is when something was last seen of it."""

    node: str
    steps: tuple[BootStep, ...] = ()
    seen: float = 0.0
    #: What the logs said last, for people.
    last: tuple[str, ...] = ()
    #: What another DHCP server gave it, empty if none did.
    foreign: str = ""

    @property
    def current(self) -> BootStep | None:
        """What it is at: the step that failed or goes on, else the furthest."""
        open_ones = [step for step in self.steps if step.status != DONE]
        failed = [step for step in open_ones if step.status == FAILED]
        return next(iter([*failed, *open_ones]), None) or self.furthest

    @property
    def furthest(self) -> BootStep | None:
        """Late layers apart: they come beside all else, and say nothing of it."""
        steps = (step for step in self.steps if not is_late(step.step))
        return max(steps, key=lambda step: order(step.step), default=None)

    @property
    def reached(self) -> str:
        """The name of the furthest step that was seen, empty before the first."""
        return self.furthest.step.partition(":")[0] if self.furthest else ""

    @property
    def began(self) -> float:
        return self.steps[0].start if self.steps else 0.0

    @property
    def seconds(self) -> float:
        """From its first step to the end of its last one (so far)."""
        return max((step.start + step.seconds for step in self.steps), default=0.0) - self.began


@dataclass(frozen=True)
class Refusal:
    """What somebody was refused, how often, and when last."""

    mac: str
    address: str
    text: str
    count: int
    time: float


@dataclass(frozen=True)
class Netboot:
    """All that the logs tell: each node's boot, who has no place in the profile, who was refused.

    ``unknown``: hardware address -> when it was last seen.
    """

    boots: Mapping[str, BootTimeline]
    unknown: Mapping[str, float] = field(default_factory=dict)
    refused: tuple[Refusal, ...] = ()


def assemble(places: Sequence[Place], events: Iterable[BootEvent], now: float) -> Netboot:
    """Each node's last boot, and what else the logs tell."""
    ordered = sorted(events, key=lambda event: event.time)
    known = {place.mac for place in places}
    strangers = [e for e in ordered if e.step == UNKNOWN and e.mac not in known]
    return Netboot(
        boots={place.name: _boot(place, ordered, now) for place in places},
        unknown={event.mac: event.time for event in strangers},
        refused=_refusals(event for event in ordered if event.step == REFUSED),
    )


def _refusals(events: Iterable[BootEvent]) -> tuple[Refusal, ...]:
    """The same again and again is told once."""
    found: dict[tuple[str, str, str], Refusal] = {}
    for event in events:
        what = (event.mac, event.address, event.text)
        count = found[what].count + 1 if what in found else 1
        found[what] = Refusal(*what, count, event.time)
    return tuple(found.values())


def _boot(place: Place, events: Sequence[BootEvent], now: float) -> BootTimeline:
    current: list[BootEvent] = []
    foreign = ""
    for event in events:
        if not place.is_meant(event):
            continue
        if event.step == FOREIGN:
            foreign = event.text
        if order(event.step) < 0:
            continue
        if _begins(event, current):
            current, foreign = [], ""
        current.append(event)
    last = tuple(f"{event.step} {event.status} {event.text}".rstrip() for event in current[-LAST:])
    seen = max((event.end for event in current), default=0.0)
    return BootTimeline(place.name, tuple(_steps(current, now)), seen, last, foreign)


def order(step: str) -> int:
    """A step's place in a boot; -1 for what is none."""
    name = step.partition(":")[0]
    return STEPS.index(name) if name in STEPS else -1


def is_late(step: str) -> bool:
    """Whether a step is the fetching of a late layer."""
    return step.partition(":")[0] == LATE


def _begins(event: BootEvent, current: Sequence[BootEvent]) -> bool:
    """Whether an event is of the next boot: power, or a sender of DHCP that is over by now.

    Firmware asks before there is a script, a loader before there is a kernel.
    """
    if event.step == "power":
        return event.status != FAILED
    if event.step != "dhcp" or event.status != STARTED:
        return False
    reached = max((order(before.step) for before in current), default=-1)
    over = {FIRMWARE: "script", LOADER: "kernel"}.get(event.sender)
    return over is not None and reached >= order(over)


def _steps(events: Sequence[BootEvent], now: float) -> Iterable[BootStep]:
    """One for each name, by time; a step that is tried again counts as one.

    What is only known to have ended began when the step before it ended; so did the kernel, of
    which nothing is seen until its initrd speaks.
    """
    by_name: dict[str, list[BootEvent]] = {}
    for event in events:
        if not _is_aside(event, by_name):
            by_name.setdefault(event.step, []).append(event)
    before = 0.0
    for name, seen in sorted(by_name.items(), key=lambda item: (item[1][0].time, order(item[0]))):
        first, final = seen[0], seen[-1]
        unseen = name == INIT or (first.status == DONE and first.seconds == 0)
        start = min(before, first.time) if unseen and before else first.time
        status, end = final.status, max(event.end for event in seen)
        if status != DONE and (after := _left(final, events)):
            # Its end was not seen, or it failed once and that was no matter.
            status, end = DONE, max(end, after)
        elif status == STARTED:
            end = now
        if not is_late(name):
            before = max(before, start if status == STARTED else end)
        size = sum(event.bytes for event in seen)
        yield BootStep(name, status, start, round(max(end - start, 0.0), 3), size, final.text)


def _left(final: BootEvent, events: Sequence[BootEvent]) -> float:
    """When the boot was seen at a later step than that of its event ``final``; 0 for never."""
    later = (e.time for e in events if e.time >= final.time and order(e.step) > order(final.step))
    return min(later, default=0.0)


def _is_aside(event: BootEvent, before: Mapping[str, object]) -> bool:
    """DHCP of loader and initrd: part of the steps in which they ask, and told by those."""
    if event.step != "dhcp":
        return False
    return event.sender == SYSTEM or any(order(step) > order("dhcp") for step in before)
