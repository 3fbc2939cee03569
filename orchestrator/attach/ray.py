"""What Ray says of a cluster: its nodes, alive or dead, their accelerators, where the ranks lie.

It is asked on a node, by vLLM's own Python there, for Ray answers its own version only.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from orchestrator.attach.facts import MachineFacts
from orchestrator.attach.reach import NodeShell, source
from orchestrator.core.errors import UserError
from orchestrator.core.visible import one_line
from orchestrator.profile.existing import AttachedNode

#: Seconds that Ray may take to be imported, on a busy node, and to answer.
TIMEOUT = 90
#: What is taken for the address of Ray's head.
ADDRESS = re.compile(r"[\w.\[\]:-]{3,100}")
#: The most of Ray's clusters that one node is in.
MOST_HEADS = 4
#: Of an engine that Ray starts for data parallelism; it holds a rank where it has no workers.
ENGINE = "EngineCoreActor"
#: Words of an error about Ray's token; without one, Ray 2.60 only fails to connect.
NO_TOKEN = re.compile(r"token|unauthenticated|authentication|connect to GCS", re.IGNORECASE)


@dataclass(frozen=True)
class RayMachine:
    """A machine of Ray's."""

    id: str
    address: str
    hostname: str
    alive: bool
    #: Whether Ray's head runs there.
    head: bool
    #: What it offers, by Ray's names: ``GPU`` are accelerators of any vendor.
    resources: dict[str, float] = field(default_factory=dict)
    #: Of a dead one.
    reason: str = ""

    @property
    def accelerators(self) -> float:
        return self.resources.get("GPU", 0.0)

    @property
    def told(self) -> str:
        return one_line(f"{self.address} ({self.hostname})" if self.hostname else self.address)


@dataclass(frozen=True)
class RayRank:
    """A living actor of vLLM's: a rank, or an engine."""

    what: str
    node: str
    address: str
    pid: int
    job: str


@dataclass(frozen=True)
class RayCluster:
    """A cluster of Ray's. ``error``: why it did not answer."""

    address: str
    version: str = ""
    nodes: list[RayMachine] = field(default_factory=list)
    ranks: list[RayRank] = field(default_factory=list)
    #: Address and process of what started each job.
    drivers: dict[str, tuple[str, int]] = field(default_factory=dict)
    error: str = ""

    @property
    def living(self) -> list[RayMachine]:
        return [each for each in self.nodes if each.alive]

    @property
    def dead(self) -> list[RayMachine]:
        """Nodes that died, without those that came back: Ray keeps every life's entry."""
        back = {each.address for each in self.living}
        last = {each.address: each for each in self.nodes if each.address not in back}
        return list(last.values())

    def of_job(self, job: str) -> list[RayRank]:
        """A job's ranks: workers, or the engines where there are none."""
        mine = [each for each in self.ranks if each.job == job]
        return [each for each in mine if ENGINE not in each.what] or mine

    def on(self, facts: MachineFacts, ranks: Sequence[RayRank]) -> list[RayRank]:
        """Those of these ranks that lie on a node."""
        ids = {each.id for each in self.nodes if is_same(each, facts)}
        return [each for each in ranks if each.node in ids]


def is_same(node: RayMachine, facts: MachineFacts) -> bool:
    """Whether one of Ray's nodes is this machine: by its address, as Ray's own processes say it, or
    an interface has it."""
    own = {link.address for link in facts.addresses}
    own |= {word.partition("=")[2] for each in facts.ray for word in each if "--node-ip-a" in word}
    return node.address in own


def heads(facts: MachineFacts) -> list[str]:
    """Addresses of the heads that Ray's processes on a node name."""
    words = [word for each in facts.ray for word in each if word.startswith("--gcs-address=")]
    found = dict.fromkeys(word.partition("=")[2] for word in words)
    return [each for each in found if ADDRESS.fullmatch(each)][:MOST_HEADS]


def ask(nodes: Iterable[tuple[AttachedNode, MachineFacts]]) -> RayCluster | None:
    """Ask Ray on the first of these nodes that it answers on; None if none of them has one.

    Where a node is in several of Ray's clusters, the one with vLLM's ranks counts.
    """
    failed: RayCluster | None = None
    for node, facts in nodes:
        addresses = heads(facts)
        if not addresses:
            continue
        found = _asked(node, addresses)
        answers = [each for each in found if not each.error]
        if answers:
            return max(answers, key=lambda each: len(each.ranks))
        failed = failed or found[0]
    return failed


def _asked(node: AttachedNode, addresses: list[str]) -> list[RayCluster]:
    if not node.engine:
        return [RayCluster(addresses[0], error=f"{node.name}: the Python of vLLM is not known")]
    try:
        found = NodeShell(node).ask(
            source("node_ray"), list[RayCluster], *addresses, timeout=TIMEOUT, start=[node.engine]
        )
    except UserError as error:
        return [RayCluster(addresses[0], error=error.message.splitlines()[0])]
    return found or [RayCluster(addresses[0], error=f"{node.name}: no answer")]


def why(found: RayCluster) -> str:
    """Why Ray did not answer, and what helps."""
    text = one_line(found.error)
    if NO_TOKEN.search(text):
        return (
            f"Ray at {found.address} did not let this user in; if it wants a token "
            f"(RAY_AUTH_MODE), log in as the user whose processes Ray's are: {text}"
        )
    return f"Ray at {found.address} could not be asked: {text}"


def job_of(found: RayCluster, nodes: Sequence[MachineFacts]) -> str | None:
    """The job whose driver is among vLLM's processes on these nodes; the only one that there is;
    None if that cannot be told."""
    jobs = list(dict.fromkeys(each.job for each in found.ranks))
    pids = {engine.pid for facts in nodes for engine in facts.engines}
    mine = [job for job in jobs if found.drivers.get(job, ("", 0))[1] in pids]
    return (mine if len(mine) == 1 else jobs if len(jobs) == 1 else [None])[0]


def unnamed(found: RayCluster, nodes: Sequence[MachineFacts]) -> list[RayMachine]:
    """Nodes that live and hold accelerators or ranks, and are none of these."""
    holding = {each.node for each in found.ranks}
    return [
        each
        for each in found.living
        if (each.accelerators or each.id in holding)
        and not any(is_same(each, facts) for facts in nodes)
    ]


def told(found: RayCluster) -> Iterator[str]:
    if found.error:
        return
    yield f"{found.version} at {found.address}, {len(found.living)} nodes alive"
    for each in found.living:
        ranks = sum(rank.node == each.id for rank in found.ranks)
        head = ", head" if each.head else ""
        yield f"{each.told}{head}: {each.accelerators:g} accelerators, {ranks} of vLLM's actors"
    for each in found.dead:
        yield f"{each.told}: dead{': ' + one_line(each.reason) if each.reason else ''}"


def missing(found: RayCluster, nodes: Sequence[MachineFacts], silent: bool) -> Iterator[str]:
    """What is not there: an answer, nodes that were not named, nodes that died."""
    if found.error:
        yield why(found)
        return
    # A node that was named and did not answer may be any of them.
    for each in [] if silent else unnamed(found, nodes):
        where = shlex.quote(one_line(each.address))
        yield f"Ray's node {each.told} was not named: add --node {where}, or its name for ssh"
    for each in found.dead:
        yield f"Ray's node {each.told} is dead: {one_line(each.reason) or 'no reason is told'}"
