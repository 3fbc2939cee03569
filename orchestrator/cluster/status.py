"""`orchestrate status`: what is there now, with no judgement (that is `verify`)."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

import httpx
from rich.table import Table
from rich.text import Text

from orchestrator.cluster.cluster import Cluster
from orchestrator.cluster.targets import verify_context
from orchestrator.core.errors import UserError
from orchestrator.profile import Node, Profile
from orchestrator.provision.machines import PowerState, power_states
from orchestrator.provision.netboot import look
from orchestrator.provision.netboot.images import ImageChoice
from orchestrator.provision.netboot.look import Seen
from orchestrator.provision.netboot.sources import DONE, FAILED
from orchestrator.provision.netboot.timeline import BootTimeline
from orchestrator.verify import gather
from orchestrator.verify.gather import VerifyContext
from orchestrator.verify.judge import runs

UNKNOWN = "-"


@dataclass(frozen=True)
class NodeStatus:
    """One node; "-" where it could not be asked."""

    name: str
    address: str
    power: str
    system: str
    image: str
    units: dict[str, str]
    ray: str
    note: str = ""


@dataclass(frozen=True)
class Status:
    """The cluster. `models` is what the endpoint serves; `note` why it does not answer."""

    profile: str
    image: str
    image_id: str
    layout: dict[str, object]
    endpoint: str
    model: str
    models: list[str]
    note: str
    nodes: list[NodeStatus]
    choice: ImageChoice
    seen: Seen

    def document(self) -> dict[str, Any]:
        plain = asdict(replace(self, seen=None))  # type: ignore[arg-type]
        del plain["seen"]
        return plain | self.seen.document()

    def tables(self) -> list[Table]:
        """The nodes, then the cluster, for a terminal."""
        nodes = Table(
            "node", "address", "power", "boot", "system", "ray", "units", box=None, pad_edge=False
        )
        for node in self.nodes:
            cells = [node.address, node.power, self.boot_of(node.name), node.system, node.ray]
            nodes.add_row(*map(Text, [node.name, *cells, "\n".join(self._told(node))]))
        layout = ", ".join(f"{key} {value}" for key, value in self.layout.items())
        cluster = Table.grid(padding=(0, 2))
        cluster.add_row("image", Text(f"{self.image} {self.image_id[:12]}{self.told_of_choice()}"))
        cluster.add_row("model", Text(self.model))
        cluster.add_row("layout", Text(layout))
        served = f"serves {', '.join(self.models)}" if self.models else self.note
        cluster.add_row("endpoint", Text(f"{self.endpoint}/v1  {served}"))
        for kind, text in self.warnings():
            cluster.add_row(Text(kind, "bold red"), Text(text))
        return [nodes, cluster]

    def _told(self, node: NodeStatus) -> Iterator[str]:
        """How many units run, and a line for each that needs a word; another image is one."""
        if node.note:
            yield node.note
        if node.image not in (UNKNOWN, self.image_id):
            yield f"booted another image: {node.image[:12] or 'unknown'}"
        if running := sum(state == "active" for state in node.units.values()):
            yield f"{running} active"
        yield from (f"{unit} {state}" for unit, state in node.units.items() if state != "active")

    @property
    def all_up(self) -> bool:
        """Whether every node answers, with all of its units running."""
        return all(
            node.system != UNKNOWN and all(map(runs, node.units.values())) for node in self.nodes
        )

    def boot_of(self, node: str) -> str:
        """What a node's boot is at and for how long, or how far it came in how long."""
        power = next(found.power for found in self.nodes if found.name == node)
        return UNKNOWN if power == PowerState.OFF else told(self.seen.netboot.boots[node])

    def told_of_choice(self) -> str:
        previous = self.choice.previous
        before = f", before: {previous.name} {previous.id[:12]}" if previous else ""
        return before + (", held (orchestrate image use releases it)" if self.choice.held else "")

    def warnings(self) -> Iterator[tuple[str, str]]:
        """What needs a look: boots that do not get on, strangers, refusals."""
        for name, cause in self.seen.stuck.items():
            yield f"{name} is stuck", f"{cause.text}\n{cause.hint}"
            for line in self.seen.netboot.boots[name].last:
                yield "", f"  {line}"
        for mac in self.seen.netboot.unknown:
            yield "unknown machine", f"add it to compute_nodes:\n{self.seen.lines[mac]}"
        for refusal in self.seen.netboot.refused:
            when = datetime.fromtimestamp(refusal.time).astimezone()
            times = f"{refusal.count} times, last" if refusal.count > 1 else "at"
            who = f"{refusal.address} claiming to be {refusal.mac}"
            yield "refused", f"{who}: {refusal.text} ({times} {when:%F %T})"


def told(boot: BootTimeline) -> str:
    """A boot in a few words: ``layer:base 12 s``, ``identity failed``, ``ready, 48 s``."""
    at = boot.current
    if at is None:
        return UNKNOWN
    if at.status == FAILED:
        return f"{at.step} failed"
    if at.status != DONE:
        return f"{at.step} {at.seconds:.0f} s"
    return f"{at.step}, {boot.seconds:.0f} s"


def status(cluster: Cluster) -> Status:
    """Ask everything that runs; what does not answer is shown as such."""
    profile = cluster.profile
    states = power_states(cluster.driver, profile.nodes)
    powered = [node for node in profile.nodes if states[node.name] == PowerState.ON]
    models: list[str] = []
    note, alive = "the control node is off", dict[str, str]()
    logs = None
    seen: dict[str, NodeStatus] = {}
    if profile.control in powered:
        context = verify_context(cluster, ())
        with cluster.driver.network(), ThreadPoolExecutor(len(profile.nodes)) as pool:
            asked = pool.map(lambda node: node_status(context, profile, node), powered)
            seen = {node.name: node for node in asked}
            alive = ray_nodes(context, profile)
            models, note = served(cluster)
            with suppress(UserError):
                logs = look.fetch(cluster.remote(profile.control))
    netbooted = {
        node.name
        for node in profile.nodes
        if states[node.name] in (PowerState.ON, PowerState.WAKING) and cluster.driver.netboots(node)
    }
    answering = {name for name in netbooted & seen.keys() if seen[name].system != UNKNOWN}
    nodes = []
    for node in profile.nodes:
        address = profile.ray_address(node)
        off = NodeStatus(node.name, address, states[node.name], UNKNOWN, UNKNOWN, {}, UNKNOWN)
        found = seen.get(node.name, off)
        nodes.append(NodeStatus(**{**asdict(found), "ray": alive.get(address, UNKNOWN)}))
    return Status(
        profile=profile.name,
        image=profile.image,
        image_id=cluster.image_id,
        layout=asdict(cluster.layout),
        endpoint=cluster.endpoint,
        model=profile.serving.model,
        models=models,
        note=note,
        nodes=nodes,
        choice=cluster.choice,
        seen=look.seen(profile, cluster.diary, logs, netbooted - answering, answering),
    )


def node_status(context: VerifyContext, profile: Profile, node: Node) -> NodeStatus:
    """One node's own words, without Ray."""
    address = profile.ray_address(node)
    try:
        facts, _ = gather.node(context, profile, node)
    except UserError as error:
        note = error.message.splitlines()[0]
        return NodeStatus(node.name, address, "on", UNKNOWN, UNKNOWN, {}, UNKNOWN, note)
    return NodeStatus(node.name, address, "on", facts.system, facts.image, facts.units, UNKNOWN)


def ray_nodes(context: VerifyContext, profile: Profile) -> dict[str, str]:
    """By address: "head", or the accelerators that a worker brings."""
    try:
        facts = gather.ray(context, profile)
    except UserError:
        return {}
    return {
        node.address: "head" if node.head else f"{node.accelerators:g} accelerators"
        for node in facts.nodes
    }


def served(cluster: Cluster) -> tuple[list[str], str]:
    """The models at the endpoint, or why there are none."""
    with cluster.client() as client:
        try:
            return gather.models(client), ""
        except (httpx.HTTPError, UserError) as error:
            return [], f"no answer: {str(error).splitlines()[0]}"
