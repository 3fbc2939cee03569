"""One report in minutes: what a cluster is, what is wrong, what limits it, what to change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.attach.bench import bench, speeds
from orchestrator.attach.collectives import ADVICE, SOCKETS, network, ports
from orchestrator.attach.explain import LIKELY, POSSIBLE, SURE, Bottleneck, findings
from orchestrator.attach.facts import MachineFacts
from orchestrator.attach.verify import Looked, checks, look
from orchestrator.core.errors import UserError
from orchestrator.core.progress import CLUSTER, Board
from orchestrator.performance.predict.load import limits
from orchestrator.performance.results.bench import Asked, Run, Workload
from orchestrator.profile.existing import Attached
from orchestrator.verify.report import Report

#: The short load: tokens of a prompt and of an answer, requests at once, repeats.
PROMPT, ANSWER, MANY, REPEATS = 512, 128, 8, 3
#: Bits per second below which a link between ranks of tensor parallelism is named.
SLOW_LINK = 10e9
#: So many things to change are named first.
FIRST = 3


@dataclass(frozen=True)
class Diagnosis:
    """All of the report. ``run`` is None, and ``note`` the reason, if no load was possible."""

    seen: Looked
    report: Report
    run: Run | None
    note: str
    findings: tuple[Bottleneck, ...]

    def document(self) -> dict[str, Any]:
        return {
            "ok": self.report.ok,
            "checks": self.report.document()["checks"],
            "run": self.run.id if self.run else None,
            "note": self.note,
            "findings": [each.document() for each in self.findings],
        }


def diagnose(profile: Attached, board: Board) -> Diagnosis:
    """Check, load for a short time, and judge. A failed check does not hold the load back."""
    with board.step(CLUSTER, "verify") as step:
        seen = look(profile, profile.nodes)
        report = Report(tuple(checks(profile, seen, whole=True)))
        step.detail, step.failed = report.summary, not report.ok
    run, note = None, seen.error
    if seen.said:
        try:
            run = bench(profile, board, Asked(workloads(profile), REPEATS, rates=False), seen=seen)
            note = run.note
        except UserError as error:
            note = error.message
    found = list(standing(profile, seen))
    if run:
        found += findings(run, profile, speeds(seen))
    unique = {each.what: each for each in sorted(found, key=lambda each: each.weight)}
    ranked = sorted(unique.values(), key=lambda each: -each.weight)
    return Diagnosis(seen, report, run, note, tuple(ranked))


def workloads(profile: Attached) -> tuple[Workload, ...]:
    """A single request, and several at once, within the context and what the server takes."""
    allowed = limits(profile)
    context = allowed.context or PROMPT + ANSWER
    prompt = min(PROMPT, context // 2)
    answer = max(1, min(ANSWER, context - prompt - 1))
    many = min(MANY, allowed.sequences)
    one = Workload("single stream", prompt, answer, 1, 1)
    if many < 2:
        return (one,)
    return (one, Workload(f"{many} at once", prompt, answer, many, many))


def standing(profile: Attached, seen: Looked) -> Iterator[Bottleneck]:
    """What limits without any load: cards, slots, flags, links."""
    facts = {each.node.name: each.facts for each in seen.nodes if each.facts}
    for name, each in facts.items():
        yield from _cards(name, each)
    if any(each.accelerators for each in facts.values()) and profile.serving.args.get(
        "enforce-eager"
    ):
        yield Bottleneck(
            "eager mode",
            POSSIBLE,
            "--enforce-eager is on: the host launches every operation of every token",
            "Leave it out where the engine supports graphs; on small batches the host often "
            "decides the time per token",
            0.3,
        )
    yield from _between(profile, facts)


def _cards(node: str, facts: MachineFacts) -> Iterator[Bottleneck]:
    for card in facts.accelerators:
        if card.throttled:
            clock = ""
            if card.clock_mhz and card.clock_most_mhz:
                clock = f", {card.clock_mhz:.0f} of {card.clock_most_mhz:.0f} MHz"
            yield Bottleneck(
                f"{node}: {card.place} is slowed down",
                SURE,
                f"{card.throttled}{clock}, as its driver said at that moment",
                "Cooling, or the power limit",
                0.25,
            )
        if card.port and card.port.is_narrow:
            yield Bottleneck(
                f"{node}: {card.place} has a narrow slot",
                LIKELY if len(facts.ranks) > 1 else POSSIBLE,
                f"{card.port.told} PCIe lanes",
                "Another slot. It matters for loading, and for messages between cards of a node",
                0.2 if len(facts.ranks) > 1 else 0.02,
            )


def _between(profile: Attached, facts: Mapping[str, MachineFacts]) -> Iterator[Bottleneck]:
    """Ranks of tensor parallelism on several nodes talk for every layer of every token."""
    holding = {name: each for name, each in facts.items() if each.ranks}
    if len(holding) < 2 or profile.serving.tensor_parallel < 2:
        return
    fastest = {
        name: max((link.speed or 0) * 1e6 for link in each.addresses)
        for name, each in holding.items()
        if each.addresses
    }
    slow = {name: speed for name, speed in fastest.items() if 0 < speed < SLOW_LINK}
    yield from _rdma(holding)
    if slow and not any(ports(each) for each in holding.values()):
        told = ", ".join(f"{name} {speed / 1e9:g} Gb/s" for name, speed in slow.items())
        yield Bottleneck(
            "tensor parallelism over a slow link",
            LIKELY,
            f"{len(holding)} nodes exchange two messages a layer and token over {told}",
            "Pipeline parallelism needs one message a stage, a copy on each node none; or a faster "
            "link. How much it brings: measure with tensor_parallel 1",
            0.5,
        )


def _rdma(holding: Mapping[str, MachineFacts]) -> Iterator[Bottleneck]:
    """RDMA that is there, and not taken."""
    for name, facts in holding.items():
        if not ports(facts) or network(facts) != SOCKETS:
            continue
        yield Bottleneck(
            f"{name}: the collectives do not take RDMA",
            SURE,
            f"{', '.join(ports(facts))} works, and the engine's log says sockets",
            "NCCL_IB_HCA and NCCL_IB_DISABLE, /dev/infiniband and IPC_LOCK in the container; to "
            f"see why, {ADVICE}",
            0.6,
        )
