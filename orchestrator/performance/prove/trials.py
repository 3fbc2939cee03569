"""What is changed for each cause, in which doses, and what the cause predicts of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from orchestrator.performance.predict.phase import Cause
from orchestrator.performance.prove.changes import (
    Edit,
    NotHere,
    bucket,
    delay,
    limit_of,
    queue_change,
    queue_command,
)
from orchestrator.performance.prove.claim import Claim
from orchestrator.performance.prove.guards import Guards, Site
from orchestrator.performance.prove.knobs import KNOBS, CommandKnob, FileKnob, QuotaKnob
from orchestrator.performance.results.bench import Workload

#: How many times as slow what is changed becomes.
FACTORS = (2.0, 3.0, 4.0)
#: The same of a node that does not limit: less than what makes a node a slow one.
GENTLY = (1.1, 1.15, 1.2)
#: Bytes on the wire for each byte that TCP carries: headers of Ethernet, IP and TCP.
WIRE = 1.05
#: Prompts of the trial, as shares of the load's own.
LENGTHS = (0.5, 0.75, 1.5)


@dataclass(frozen=True)
class Dose:
    """A step of a change. ``x``: what was changed, in its unit; ``changes``: by place."""

    text: str
    x: float
    workload: Workload
    changes: Mapping[str, Edit] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """All doses, and the slope that the cause predicts. ``what``: what is changed, and where;
    ``unit``: what a slope counts; ``x``: of the unchanged state. ``no_effect``: the cause says that
    this changes nothing; ``predicted`` is then what another cause would give."""

    what: str
    unit: str
    predicted: float
    x: float
    doses: tuple[Dose, ...]
    places: Mapping[str, Site] = field(default_factory=dict)
    no_effect: bool = False


class Intervention(Protocol):
    """Something that can be changed on purpose."""

    def available(self, guards: Guards) -> Trial:
        """The trial, made from the present state. Raises NotHere where it cannot be changed."""


@dataclass(frozen=True)
class End:
    """A link's end: where, and the words of tc there."""

    place: Site
    link: str
    tc: tuple[str, ...] = ("tc",)


@dataclass(frozen=True)
class Links:
    """The links between the model's nodes: their bandwidth, or their latency.

    ``unchanged``: bytes per second, or seconds one way, as they were probed.
    """

    claim: Claim
    ends: Sequence[End]
    unchanged: float

    def available(self, guards: Guards) -> Trial:
        if not self.ends:
            raise NotHere("the model's ranks are on one node: no link is between them")
        wide = self.claim.cause is Cause.LINK_BANDWIDTH
        x = 1 / self.unchanged if wide else self.unchanged
        shown = {
            end: guards.run(end.place, queue_command(end.tc, end.link)).out for end in self.ends
        }
        most = self.unchanged * WIRE * 8
        for end, text in shown.items():
            if wide and (limit_of(text) or most) < most / FACTORS[0]:
                raise NotHere(
                    f"{end.link} is limited to less than half of its probed rate: none is slower",
                    "Run: orchestrate probe, then bench run",
                )
        doses = []
        for factor in FACTORS:
            if wide:
                wanted = bucket(most / factor)
                text = f"{self.unchanged * 8e-6 / factor:.4g} Mb/s"
            else:
                wanted = delay(self.unchanged * (factor - 1))
                text = f"{self.unchanged * 1e6 * factor:.4g} us"
            changes: dict[str, Edit] = {}
            for end, queues in shown.items():
                one = queue_change(end.tc, end.link, queues, wanted)
                so_far = changes.get(end.place.name, Edit((), ()))
                changes[end.place.name] = Edit(
                    (*so_far.apply, *one.apply), (*so_far.undo, *one.undo)
                )
            doses.append(Dose(text, x * factor, self.claim.found.workload, changes))
        places = {end.place.name: end.place for end in self.ends}
        return Trial(
            f"the links' {'bandwidth' if wide else 'latency'} on {', '.join(places)}",
            "bytes" if wide else "messages",
            self.claim.seconds / x,
            x,
            tuple(doses),
            places,
        )


@dataclass(frozen=True)
class Clocks:
    """The clocks of processors or cards. ``also_s``: seconds of other causes that the same change
    slows; ``no_effect``: these nodes do not limit, so that nothing is to happen."""

    claim: Claim
    places: Sequence[Site]
    cause: Cause
    also_s: float = 0.0
    no_effect: bool = False

    def available(self, guards: Guards) -> Trial:
        knobs = [each for each in KNOBS if self.cause in each.slows]
        for knob in knobs:
            held = {each.name: knob.found(guards.run(each, knob.read).out) for each in self.places}
            if held and all(held.values()):
                return self._trial(knob, held)
        tried = "; ".join(each.name for each in knobs)
        where = ", ".join(each.name for each in self.places)
        raise NotHere(
            f"nothing can be slowed down by a known factor on {where} (tried: {tried})"
            if where
            else f"no node is known where a clock could be limited (would try: {tried})",
            "Needs root there, and a driver that lets a clock be limited (a virtual machine's "
            "processors have none).",
        )

    def _trial(
        self, knob: FileKnob | CommandKnob | QuotaKnob, held: Mapping[str, Mapping[str, int]]
    ) -> Trial:
        factors = GENTLY if self.no_effect else FACTORS
        doses = tuple(
            Dose(
                f"{factor:g} times as slow",
                factor,
                self.claim.found.workload,
                {name: knob.change(factor, was) for name, was in held.items()},
            )
            for factor in factors
        )
        return Trial(
            f"{knob.name} on {', '.join(held)}",
            "seconds for each time as slow",
            self.claim.seconds + self.also_s,
            1.0,
            doses,
            {each.name: each for each in self.places},
            self.no_effect,
        )


@dataclass(frozen=True)
class AtOnce:
    """More and fewer requests at once than the load's, from the limit on that is said to queue.

    Each request beyond the limit waits for one more to end: by Little's law a mean time between two
    ends, which the run measured. Nothing on the server is changed.
    """

    claim: Claim
    limit: int

    def available(self, guards: Guards) -> Trial:
        load = self.claim.found.workload
        if load.concurrency is None or load.concurrency <= self.limit:
            raise NotHere(
                f"the load has at most {load.load}, and the limit is {self.limit}: none waits",
                f"Needs a workload with more than {self.limit} at once: bench.workloads.",
            )
        beyond = load.concurrency - self.limit
        counts = sorted({self.limit, self.limit + beyond // 2, load.concurrency + beyond})
        doses = tuple(
            Dose(f"{count} at once", count, _scaled(load, count))
            for count in counts
            if count != load.concurrency
        )
        return Trial(
            "the requests at once",
            "seconds for each request more",
            1 / self.claim.found.requests_per_s.median,
            load.concurrency,
            doses,
        )


def _scaled(load: Workload, count: int) -> Workload:
    """So many at once, and as many rounds of them as before."""
    rounds = load.requests / (load.concurrency or count)
    return replace(load, concurrency=count, requests=max(count, round(rounds * count)))


@dataclass(frozen=True)
class PromptLength:
    """Shorter and longer prompts. ``context``: the most tokens of a request, if there is a limit.

    Nothing on the server is changed.
    """

    claim: Claim
    context: int | None

    def available(self, guards: Guards) -> Trial:
        load = self.claim.found.workload
        most = (self.context or 1 << 30) - load.output_tokens
        tokens = sorted({max(1, min(most, round(load.prompt_tokens * each))) for each in LENGTHS})
        doses = tuple(
            Dose(f"prompts of {count}", count, replace(load, prompt_tokens=count))
            for count in tokens
            if count != load.prompt_tokens
        )
        return Trial(
            "the prompts' length",
            "seconds for each token of a prompt",
            self.claim.seconds / load.prompt_tokens,
            load.prompt_tokens,
            doses,
        )


@dataclass(frozen=True)
class Ground:
    """What interventions need of a cluster; ours and others' give it.

    ``ends``, ``bytes_per_s``, ``latency_s``: of the links between the model's nodes; None: not
    measured. ``hosts``: where the engine's processors may be slowed; ``cards``: where accelerators
    may be. ``synchronous``: the device is the processors. ``limit``, ``context``: of the engine.
    """

    hosts: Sequence[Site]
    cards: Sequence[Site]
    ends: Callable[[Cause], Sequence[End]]
    bytes_per_s: float | None
    latency_s: float | None
    synchronous: bool
    limit: int
    context: int | None


def intervention(claim: Claim, ground: Ground, node: str = "") -> Sequence[Intervention]:
    """What can be changed for a cause; all of it has to come out as predicted. ``node``: the one
    that is said to be slow. Raises NotHere for a cause that nothing can be changed for."""
    cause = claim.cause
    device = (Cause.COMPUTE, Cause.MEMORY)
    if cause in (Cause.LINK_BANDWIDTH, Cause.LINK_LATENCY):
        wide = cause is Cause.LINK_BANDWIDTH
        unchanged = ground.bytes_per_s if wide else ground.latency_s
        if unchanged is None:
            raise NotHere(
                f"the {cause} between the model's nodes was not measured",
                "Run: orchestrate probe --only link (two nodes or more)",
            )
        return [Links(claim, ground.ends(cause), unchanged)]
    if cause is Cause.BATCH_LIMIT:
        return [AtOnce(claim, ground.limit)]
    if cause is Cause.LONG_PREFILL:
        return [PromptLength(claim, ground.context)]
    if cause is Cause.SLOW_NODE:
        return _slow_node(claim, ground, node)
    slowed = (Cause.HOST, Cause.SCHEDULING, *(device if ground.synchronous else ()))
    if cause in slowed:
        also = sum(claim.parts.get(each, 0.0) for each in slowed if each is not cause)
        return [Clocks(claim, ground.hosts, Cause.HOST, also)]
    if cause in device:
        return [Clocks(claim, ground.cards, cause)]
    raise NotHere(
        "the report names no cause that could be changed",
        "Try one: --cause NAME, such as host or 'link bandwidth'.",
    )


def _slow_node(claim: Claim, ground: Ground, node: str) -> Sequence[Intervention]:
    """The slow node's speed decides; another node's does not, until that one is the slowest."""
    places = ground.hosts if ground.synchronous else ground.cards
    cause = Cause.HOST if ground.synchronous else Cause.COMPUTE
    slow = [each for each in places if each.name == node]
    others = [each for each in places if each.name != node]
    if not slow or not others:
        raise NotHere(f"the slow node is not known, or is alone: {node or 'none is named'}")
    own = sum(claim.parts.get(each, 0.0) for each in (Cause.COMPUTE, Cause.MEMORY, Cause.HOST))
    whole = replace(claim, seconds=max(claim.seconds, own))
    return [
        Clocks(whole, slow, cause),
        Clocks(whole, others[:1], cause, no_effect=True),
    ]
