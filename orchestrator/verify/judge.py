"""Facts in, verdicts out: what each check expects. Pure.

Every check has a Rule here: its name, and where to look when it fails. docs/reference/checks.md
lists them for people.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator.models.catalog import Answer
from orchestrator.models.serving import Layout, copies, copy_of
from orchestrator.profile import Node, Profile
from orchestrator.profile.existing import Attached
from orchestrator.verify.facts import Clock, Generated, NodeFacts, RankFacts, RayFacts
from orchestrator.verify.report import Check, Severity

#: The name that a compute node's own loopback address has.
LOOPBACK_NAME = "compute-node"


@dataclass(frozen=True)
class Verdict:
    """A judgement, not yet tied to a name and a node."""

    ok: bool
    expected: str
    seen: str
    ran: bool = True


@dataclass(frozen=True)
class Rule:
    """A check's name and where to look when it fails; ``{node}`` there is the node's name.

    ``warning``: serving does not need what it checks.
    """

    name: str
    look: str
    warning: bool = False

    def check(self, node: str, verdict: Verdict) -> Check:
        look = self.look.format(node=node)
        severity: Severity = "warning" if self.warning else "failure"
        seen = (verdict.ok, verdict.expected, verdict.seen)
        return Check(self.name, node, *seen, look, severity, verdict.ran)

    def of(self, profile: Profile) -> Rule:
        """The same check of one model; with several, its name says which."""
        if len(profile.whole.services) == 1:
            return self
        return replace(self, name=f"{self.name} ({profile.serving.model})")

    def broken(self, node: str, reason: str) -> Check:
        """The check could not run: that is a failure."""
        return self.check(node, Verdict(False, "the check can run", reason))


@dataclass(frozen=True)
class NodeObservation:
    """A node with all that its judges need: what it should be, and what it is."""

    profile: Profile
    node: Node
    image: str
    facts: NodeFacts
    clock: Clock


def same(expected: str, seen: str, nothing: str = "nothing") -> Verdict:
    return Verdict(seen == expected, expected, seen or nothing)


def reachable(observed: NodeObservation) -> Verdict:
    answer = f"an answer within {2 * observed.clock.uncertainty:.1f} s"
    return Verdict(True, "an answer over SSH", answer)


def image(observed: NodeObservation) -> Verdict:
    return same(observed.image, observed.facts.image, "no image id")


def hostname(observed: NodeObservation) -> Verdict:
    return same(observed.node.host_name, observed.facts.hostname)


def loopback(observed: NodeObservation) -> Verdict:
    names = observed.facts.loopback
    ok = LOOPBACK_NAME in names or observed.profile.is_control(observed.node)
    return Verdict(ok, f"{LOOPBACK_NAME} in the line of 127.0.0.1", " ".join(names) or "no names")


def names(observed: NodeObservation) -> Verdict:
    wanted = {node.name: [observed.profile.ray_address(node)] for node in observed.profile.nodes}
    return same(_addresses(wanted), _addresses(observed.facts.names))


def accounts(observed: NodeObservation) -> Verdict:
    wanted = {account.name: account.uid for account in observed.profile.users.accounts}
    return same(_accounts(wanted), _accounts(observed.facts.accounts))


def clock(observed: NodeObservation) -> Verdict:
    tolerance = observed.profile.verification.clock_tolerance_s
    off = observed.clock
    return Verdict(
        abs(off.offset) <= tolerance,
        f"at most {tolerance:g} s from this machine's clock",
        f"{off.offset:+.2f} s (± {off.uncertainty:.2f} s)",
    )


def units(observed: NodeObservation) -> Verdict:
    facts = observed.facts
    idle = [f"{u} {state}" for u, state in facts.units.items() if not runs(state)]
    idle += [f"{unit} failed" for unit in facts.failed if unit not in facts.units]
    listed = ", ".join(facts.units)
    return Verdict(
        facts.system == "running" and not idle,
        f"system running, no failed unit{f', active: {listed}' if listed else ''}",
        f"system {facts.system}: {', '.join(idle)}" if idle else f"system {facts.system}",
    )


def runs(state: str) -> bool:
    """Whether a unit is as it should be; one that is "declined" has conditions that forbid it."""
    return state.split(" ", 1)[0] in ("active", "reloading", "declined")


DRIFT = Rule("drift", "orchestrate plan --node {node} shows it; up reverts it; journalctl -b there")
#: In the order shown. A node that does not answer says why at the first.
NODE_RULES: Mapping[Rule, Callable[[NodeObservation], Verdict]] = {
    Rule("reachable", "the node's console; ping {node}"): reachable,
    Rule("image", "on {node}: cat /proc/cmdline; reboot it"): image,
    Rule("hostname", "on {node}: hostnamectl"): hostname,
    Rule("loopback", "on {node}: cat /etc/hosts"): loopback,
    Rule("names", "on {node}: cat /etc/hosts; getent ahostsv4 NAME"): names,
    Rule("accounts", "on {node}: getent passwd"): accounts,
    Rule("clock", "on {node}: chronyc tracking"): clock,
    Rule("units", "on {node}: systemctl --failed; journalctl -b -u UNIT"): units,
}


def drift(differences: Sequence[str]) -> Verdict:
    nothing = "no difference from the profile"
    return same(nothing, "; ".join(differences) or nothing)


_RAY_LOOK = "on {node}: journalctl -b -u ray-head; on the others: journalctl -b -u ray-worker"
RAY_NODES = Rule("ray nodes", _RAY_LOOK)
RAY_HEAD = Rule("ray head", _RAY_LOOK)
RAY_ACCELERATORS = Rule(
    "ray accelerators", "profile: accelerators; on the nodes: ray start's flags"
)
RAY_STATUS = Rule("ray status", "on {node}: ray status")
RANKS = Rule(
    "ranks",
    "on {node}, with executor ray: ray list actors; the servers' logs: journalctl -b -u vllm",
)


def ray_nodes(profile: Profile, facts: RayFacts) -> Verdict:
    wanted = [_named(profile, profile.ray_address(node)) for node in profile.nodes]
    seen = [_named(profile, node.address) for node in facts.nodes]
    missing, extra = Counter(wanted) - Counter(seen), Counter(seen) - Counter(wanted)
    wrong = [f"missing: {_listed(missing)}"] if missing else []
    wrong += [f"not in the profile: {_listed(extra)}"] if extra else []
    return Verdict(not wrong, f"alive: {_listed(wanted)}", "; ".join(wrong) or _listed(seen))


def ray_head(profile: Profile, facts: RayFacts) -> Verdict:
    heads = [_named(profile, node.address) for node in facts.nodes if node.head]
    return same(_named(profile, profile.ray_address(profile.control)), _listed(heads), "no head")


def ray_accelerators(profile: Profile, facts: RayFacts) -> Verdict:
    counted = {node.address: node.accelerators for node in facts.nodes}
    wanted = {node.name: float(node.accelerators) for node in profile.nodes}
    seen = {node.name: counted.get(profile.ray_address(node), 0.0) for node in profile.nodes}
    return same(_counts(wanted), _counts(seen))


def ray_status(profile: Profile, text: str) -> Verdict:
    """Judge what ``ray status`` prints: sections of nodes that live, a count and a name a line.

    "Healthy" is an old word for "Active", and nodes without work are "Idle" in newer ones.
    """
    parts = re.findall(r"^(?:Active|Healthy|Idle):\n((?: .*\n?)*)", text, re.MULTILINE)
    count = sum(int(n) for part in parts for n in re.findall(r"^ +(\d+) ", part, re.MULTILINE))
    wanted = f"{len(profile.nodes)} active nodes"
    if not parts:
        return Verdict(False, wanted, text.strip()[:200] or "no output")
    return same(wanted, f"{count} active nodes")


def of_models(
    profile: Profile, workers: Sequence[RankFacts]
) -> list[tuple[Profile, list[RankFacts]]]:
    """Each model's ranks: those on its nodes. Ranks that are on no model's nodes count as the
    first one's."""
    views = profile.services
    homes = {
        view.ray_address(node): number
        for number, view in enumerate(views)
        for node in view.compute_nodes
    }
    return [
        (view, [each for each in workers if homes.get(each.address, 0) == number])
        for number, view in enumerate(views)
    ]


def ranks(profile: Profile, layout: Layout, workers: Sequence[RankFacts]) -> Verdict:
    """Every rank on an accelerator of its own: no node holds more than it has, none elsewhere, and
    each copy has all of its ranks on its own nodes."""
    held = Counter(worker.address for worker in workers)
    room = {profile.ray_address(node): node.accelerators for node in profile.nodes}
    fits = all(count <= room.get(address, 0) for address, count in held.items())
    names = {profile.ray_address(node): node.name for node in profile.nodes}
    seen = {names.get(address, address): float(count) for address, count in sorted(held.items())}
    limits = {node.name: float(node.accelerators) for node in profile.compute_nodes}
    most = "" if layout.used == layout.accelerators else "at most "
    whole = [
        sum(held[profile.ray_address(node)] for node in copy.nodes) == layout.ranks
        for copy in copies(profile, layout.data)
    ]
    of = f"{layout.data} copies of {layout.ranks} ranks" if layout.data > 1 else ""
    return Verdict(
        fits and all(whole) and held.total() == layout.used,
        f"{of or f'{layout.used} ranks'}: {most}{_counts(limits)}",
        f"{held.total()} ranks: {_counts(seen)}{_without(profile, layout, held)}"
        if seen
        else "no rank",
    )


def _without(profile: Profile, layout: Layout, held: Mapping[str, int]) -> str:
    """The nodes that have to have a rank and have none. Ray may choose, where it has a choice."""
    full = layout.used == layout.accelerators
    nodes = [
        node
        for node in profile.compute_nodes
        if (full and node.accelerators)
        or (not profile.serving.by_ray and copy_of(profile, layout, node))
    ]
    names = [node.name for node in nodes if not held[profile.ray_address(node)]]
    return f"; none on {', '.join(names)}" if names else ""


_SERVER_LOOK = "the server's log: journalctl -b -u vllm; on {node}: journalctl -u nginx"
LISTED = Rule("model listed", _SERVER_LOOK)
KEY_NEEDED = Rule("key needed", "on {node}: /etc/nginx; on the server: VLLM_API_KEY")
REPEATED = Rule("same answer again", _SERVER_LOOK)


def answer_rule(answer: Answer) -> Rule:
    return Rule(f"answer: {answer.question}", _SERVER_LOOK)


def listed(profile: Profile | Attached, models: Sequence[str]) -> Verdict:
    wanted = profile.serving.model
    return Verdict(wanted in models, wanted, ", ".join(models) or "no model")


def key_needed(status: int) -> Verdict:
    return same("HTTP 401 without the API key", f"HTTP {status} without the API key")


def answer(known: Answer, said: Generated) -> Verdict:
    """Word for word and ended by the model; or, of an answer that is not whole, with its text."""
    if not known.whole:
        fits = known.answer.lower() in said.text.lower()
        return Verdict(fits, f"an answer with {known.answer!r}", repr(said.text))
    ended = said.finish_reason == "stop"
    cut = "" if ended else f" (ended by {said.finish_reason!r}, not by the model)"
    return Verdict(ended and said.text == known.answer, repr(known.answer), f"{said.text!r}{cut}")


def repeated(answers: Sequence[Generated], tolerance: float) -> Verdict:
    """The same tokens each time, with log probabilities no further apart than ``tolerance``."""
    expected = f"the same tokens {len(answers)} times, log probabilities within {tolerance:g}"
    first, *others = answers
    if not first.tokens:
        return Verdict(False, expected, "an answer without tokens")
    for number, other in enumerate(others, 2):
        if other.tokens != first.tokens:
            return Verdict(
                False, expected, f"answer {number} is {other.text!r}, the first {first.text!r}"
            )
    spread = max(
        (
            abs(a - b)
            for other in others
            for a, b in zip(first.logprobs, other.logprobs, strict=True)
        ),
        default=0.0,
    )
    seen = f"{len(first.tokens)} tokens, log probabilities within {spread:.2g}"
    return Verdict(spread <= tolerance, expected, seen)


def _named(profile: Profile, address: str) -> str:
    """``compute0 10.77.0.10``, or the address alone where the profile does not have it."""
    names = {profile.ray_address(node): node.name for node in profile.nodes}
    return f"{names[address]} {address}" if address in names else address


def _listed(words: Sequence[str] | Counter[str]) -> str:
    return ", ".join(words.elements() if isinstance(words, Counter) else words)


def _counts(counts: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {count:g}" for name, count in counts.items())


def _addresses(names: Mapping[str, Sequence[str]]) -> str:
    return ", ".join(f"{name} {' '.join(found) or 'unknown'}" for name, found in names.items())


def _accounts(uids: Mapping[str, int | None]) -> str:
    return ", ".join(f"{name} {'missing' if uid is None else uid}" for name, uid in uids.items())
