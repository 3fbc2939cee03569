"""A node's last boot as a list of steps, assembled from events (sources.py). Pure.

Times are seconds since 1970 by the control node's clock, which is also this machine's.
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

#: The steps of a boot in order. `layer` stands for a step per layer (`layer:base`), `late` for a
#: step per late layer, which the running system fetches in parallel to other steps.
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
#: From the kernel's start until the initrd has read its command line.
INIT = "init"
LATE = "late"
#: The number of last events that are shown for a stuck boot.
LAST = 5


@dataclass(frozen=True)
class Place:
    """The names by which logs know a node of the profile."""

    name: str
    mac: str
    address: str

    def is_meant(self, event: BootEvent) -> bool:
        if event.node or event.mac:
            return event.node == self.name or event.mac == self.mac
        return event.address == self.address


@dataclass(frozen=True)
class BootStep:
    """A step of a boot: start, seconds that it took (so far), bytes fetched over the network.

    ``status`` is "start" while it goes on, then "done" or "failed".
    """

    step: str
    status: str
    start: float
    seconds: float
    bytes: int = 0
    text: str = ""


@dataclass(frozen=True)
class BootTimeline:
    """A node's last boot. ``seen``: the time of its last event."""

    node: str
    steps: tuple[BootStep, ...] = ()
    seen: float = 0.0
    #: The last events, for people.
    last: tuple[str, ...] = ()
    #: A foreign DHCP server's answer to it; empty if there was none.
    foreign: str = ""

    @property
    def current(self) -> BootStep | None:
        """The step that it is at: a failed one, else one that goes on, else the furthest."""
        open_ones = [step for step in self.steps if step.status != DONE]
        failed = [step for step in open_ones if step.status == FAILED]
        return next(iter([*failed, *open_ones]), None) or self.furthest

    @property
    def furthest(self) -> BootStep | None:
        """The furthest step. Late layers do not count: they come in parallel to other steps."""
        steps = (step for step in self.steps if not is_late(step.step))
        return max(steps, key=lambda step: order(step.step), default=None)

    @property
    def reached(self) -> str:
        """The name of the furthest step (`layer` for any layer's); empty before the first."""
        return self.furthest.step.partition(":")[0] if self.furthest else ""

    @property
    def began(self) -> float:
        return self.steps[0].start if self.steps else 0.0

    @property
    def seconds(self) -> float:
        """Seconds from the start of its first step to the end of its last one (so far)."""
        return max((step.start + step.seconds for step in self.steps), default=0.0) - self.began


@dataclass(frozen=True)
class Refusal:
    """Refused requests: the last one's addresses, reason and time, how many since when."""

    mac: str
    address: str
    text: str
    count: int
    first: float
    time: float


@dataclass(frozen=True)
class Netboot:
    """Each node's last boot, machines that are not in the profile, and refused requests.

    ``unknown``: hardware address -> time of its last event.
    """

    boots: Mapping[str, BootTimeline]
    unknown: Mapping[str, float] = field(default_factory=dict)
    refused: tuple[Refusal, ...] = ()


def assemble(places: Sequence[Place], events: Iterable[BootEvent], now: float) -> Netboot:
    """Sort events into boots, unknown machines and refusals. `now`: for steps that go on."""
    ordered = sorted(events, key=lambda event: event.time)
    known = {place.mac for place in places}
    strangers = [e for e in ordered if e.step == UNKNOWN and e.mac not in known]
    return Netboot(
        boots={place.name: _boot(place, ordered, now) for place in places},
        unknown={event.mac: event.time for event in strangers},
        refused=tuple(
            Refusal(e.mac, e.address, e.text, e.count, e.first, e.time)
            for e in ordered
            if e.step == REFUSED
        ),
    )


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
    """A step's index in STEPS; -1 if it is not a step."""
    name = step.partition(":")[0]
    return STEPS.index(name) if name in STEPS else -1


def is_late(step: str) -> bool:
    """Whether a step is the fetch of a late layer."""
    return step.partition(":")[0] == LATE


def _begins(event: BootEvent, current: Sequence[BootEvent]) -> bool:
    """Whether an event starts a new boot: power-on, or a DHCP request that comes too late.

    Firmware sends DHCP before the script is fetched, a loader before the kernel is fetched. After
    that, such a request belongs to the next boot.
    """
    if event.step == "power":
        return event.status != FAILED
    if event.step != "dhcp" or event.status != STARTED:
        return False
    reached = max((order(before.step) for before in current), default=-1)
    over = {FIRMWARE: "script", LOADER: "kernel"}.get(event.sender)
    return over is not None and reached >= order(over)


def _steps(events: Sequence[BootEvent], now: float) -> Iterable[BootStep]:
    """One step for each name, by time; retries of a step count as one.

    Some steps have only an end event. They are taken to start when the step before ended. So is
    `init`, since a kernel sends nothing before its initrd does.
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
            # A later step was reached: its end was not logged, or a failure was retried.
            status, end = DONE, max(end, after)
        elif status == STARTED:
            end = now
        if not is_late(name):
            before = max(before, start if status == STARTED else end)
        size = sum(event.bytes for event in seen)
        yield BootStep(name, status, start, round(max(end - start, 0.0), 3), size, final.text)


def _left(final: BootEvent, events: Sequence[BootEvent]) -> float:
    """The time of the first event of a later step than ``final``'s; 0 if there is none."""
    later = (e.time for e in events if e.time >= final.time and order(e.step) > order(final.step))
    return min(later, default=0.0)


def _is_aside(event: BootEvent, before: Mapping[str, object]) -> bool:
    """Whether an event is DHCP of loader or initrd, which belongs to their own steps."""
    if event.step != "dhcp":
        return False
    return event.sender == SYSTEM or any(order(step) > order("dhcp") for step in before)
