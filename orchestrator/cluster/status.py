"""`orchestrate status`: the cluster's state, without judging it (`verify` does that)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any

import httpx
from rich.table import Table
from rich.text import Text

from orchestrator.cluster.cluster import Cluster
from orchestrator.cluster.readiness import why_not
from orchestrator.cluster.targets import verify_context
from orchestrator.core.errors import UserError
from orchestrator.core.nodeset import fold
from orchestrator.models.serving import Layout, apart, ways
from orchestrator.profile import Node, Profile
from orchestrator.provision.machines import PowerState, power_states
from orchestrator.provision.netboot import look
from orchestrator.provision.netboot.images import ImageChoice
from orchestrator.provision.netboot.look import Seen
from orchestrator.provision.netboot.sources import DONE, FAILED
from orchestrator.provision.netboot.timeline import BootTimeline, Refusal
from orchestrator.verify import gather
from orchestrator.verify.facts import NodeFacts
from orchestrator.verify.gather import VerifyContext
from orchestrator.verify.judge import runs

UNKNOWN = "-"
#: Unknown machines that are shown one by one.
UNKNOWN_SHOWN = 8


@dataclass(frozen=True)
class NodeStatus:
    """One node; "-" for what it could not be asked."""

    name: str
    address: str
    power: str
    system: str
    image: str
    units: dict[str, str]
    ray: str
    note: str = ""
    host_key: str = ""


@dataclass(frozen=True)
class ModelStatus:
    """A model, its nodes, and those of its servers; `layout` in words."""

    model: str
    nodes: list[str]
    servers: list[str]
    layout: str


@dataclass(frozen=True)
class Status:
    """The cluster. `models`: what the endpoint serves; `note`: why it does not answer."""

    profile: str
    image: str
    image_id: str
    layout: Layout
    endpoint: str
    model: str
    models: list[str]
    note: str
    nodes: list[NodeStatus]
    choice: ImageChoice
    seen: Seen
    #: Of several copies: why one does not answer, by its server's node; empty where it does.
    copies: dict[str, str] = field(default_factory=dict)
    #: Each model that the profile serves; `model` and `layout` are the first one's.
    services: list[ModelStatus] = field(default_factory=list)

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
            nodes.add_row(*map(Text, [node.name, *cells, "\n".join(self.told(node))]))
        cluster = Table.grid(padding=(0, 2))
        cluster.add_row("image", Text(f"{self.image} {self.image_id[:12]}{self.told_of_choice()}"))
        for each in self.services if len(self.services) > 1 else ():
            cluster.add_row("model", Text(f"{each.model}  on {fold(each.nodes)}: {each.layout}"))
        if len(self.services) <= 1:
            cluster.add_row("model", Text(self.model))
            cluster.add_row("layout", Text(layout_words(self.layout)))
        served = f"serves {', '.join(self.models)}" if self.models else self.note
        cluster.add_row("endpoint", Text(f"{self.endpoint}/v1  {served}"))
        for name, reason in self.copies.items():
            told = f"does not answer: {reason}" if reason else "answers"
            whose = [each.model for each in self.services if name in each.servers]
            model = f"  {whose[0]}" if whose and len(self.services) > 1 else ""
            cluster.add_row("copy", Text(f"{name}{model}  {told}"))
        for kind, text in self.warnings():
            cluster.add_row(Text(kind, "bold red"), Text(text))
        return [nodes, cluster]

    def told(self, node: NodeStatus) -> Iterator[str]:
        """The lines of a node's last column: problems, the number of active units, other units."""
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
        """A node's current boot step and its duration, or the last step and the boot's duration."""
        power = next(found.power for found in self.nodes if found.name == node)
        return UNKNOWN if power == PowerState.OFF else told(self.seen.netboot.boots[node])

    def told_of_choice(self) -> str:
        previous = self.choice.previous
        before = f", before: {previous.name} {previous.id[:12]}" if previous else ""
        return before + (", held (orchestrate image use releases it)" if self.choice.held else "")

    def warnings(self) -> Iterator[tuple[str, str]]:
        """Pairs (subject, text): stuck boots, refused requests, certificates that a node does not
        have, unknown machines."""
        for name, cause in self.seen.stuck.items():
            yield f"{name} is stuck", f"{cause.text}\n{cause.hint}"
            for line in self.seen.netboot.boots[name].last:
                yield "", f"  {line}"
        for refusal in self.seen.netboot.refused:
            who = f"{refusal.address} claiming to be {refusal.mac}"
            yield "refused", f"{who}: {refusal.text} ({times(refusal)})"
        for node in self.nodes:
            last = self.seen.certified.get(node.name)
            if last and node.host_key and last.key != node.host_key:
                when = datetime.fromtimestamp(last.time).astimezone()
                text = f"a machine that is not {node.name} now got it at {when:%F %T}. It can pass"
                text += f" for {node.name}, until: orchestrate trust rotate"
                yield f"{node.name}'s certificate", text
        # The last ones: a stranger can have any number of hardware addresses.
        unknown = list(self.seen.netboot.unknown)
        for mac in unknown[-UNKNOWN_SHOWN:]:
            yield "unknown machine", f"add it to compute_nodes:\n{self.seen.lines[mac]}"
        if len(unknown) > UNKNOWN_SHOWN:
            yield "unknown machines", f"{len(unknown) - UNKNOWN_SHOWN} more"


def times(refusal: Refusal) -> str:
    """When: ``at TIME``, or ``5 times since TIME, last TIME``."""
    first, last = (
        f"{datetime.fromtimestamp(at).astimezone():%F %T}" for at in (refusal.first, refusal.time)
    )
    return (
        f"{refusal.count} times since {first}, last {last}" if refusal.count > 1 else f"at {last}"
    )


def layout_words(layout: Layout) -> str:
    """A layout for people: ``tensor 2, pipeline 1, on 2 of 2 accelerators``."""
    words = [f"tensor {layout.tensor}", f"pipeline {layout.pipeline}"]
    words += ["expert parallel"] if layout.expert else []
    words += [f"{layout.data} copies"] if layout.data > 1 else []
    return ", ".join([*words, f"on {layout.used} of {layout.accelerators} accelerators"])


def told(boot: BootTimeline) -> str:
    """A boot in few words: ``layer:base 12 s``, ``identity failed``, ``ready, 48 s``."""
    at = boot.current
    if at is None:
        return UNKNOWN
    if at.status == FAILED:
        return f"{at.step} failed"
    if at.status != DONE:
        return f"{at.step} {at.seconds:.0f} s"
    return f"{at.step}, {boot.seconds:.0f} s"


def status(cluster: Cluster) -> Status:
    """Ask all nodes and services; what does not answer is shown as such."""
    profile = cluster.profile
    states = power_states(cluster.driver, profile.nodes)
    powered = [node for node in profile.nodes if states[node.name] == PowerState.ON]
    said, alive = AtEndpoint(note="the control node is off"), dict[str, str]()
    logs = None
    seen: dict[str, NodeStatus] = {}
    if profile.control in powered:
        context = verify_context(cluster, {})
        with cluster.driver.network(), ThreadPoolExecutor(len(profile.nodes)) as pool:
            asked = pool.map(lambda node: node_status(context, profile, node), powered)
            seen = {node.name: node for node in asked}
            alive = ray_nodes(context, profile) if profile.serving.by_ray else {}
            said = served(cluster)
            with suppress(UserError):
                logs = look.fetch(profile, cluster.remote(profile.control))
    return assembled(cluster, states, seen, alive, said, logs)


def assembled(
    cluster: Cluster,
    states: Mapping[str, PowerState],
    seen: Mapping[str, NodeStatus],
    alive: Mapping[str, str],
    said: AtEndpoint,
    logs: Mapping[str, Any] | None,
) -> Status:
    """The state from what nodes and services said. ``seen``: the nodes that were asked; ``alive``:
    Ray's nodes by address; ``logs``: of boots, None if they cannot be read."""
    profile = cluster.profile
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
        layout=cluster.layout,
        endpoint=cluster.endpoint,
        model=profile.serving.model,
        models=said.models,
        note=said.note,
        copies=said.copies,
        services=[
            ModelStatus(
                each.profile.serving.model,
                [node.name for node in each.profile.compute_nodes],
                list(ways(each.profile, each.layout)),
                layout_words(each.layout),
            )
            for each in cluster.services
        ],
        nodes=nodes,
        choice=cluster.choice,
        seen=look.seen(profile, cluster.diary, logs, netbooted - answering, answering),
    )


def node_status(context: VerifyContext, profile: Profile, node: Node) -> NodeStatus:
    """Ask one node, apart from Ray."""
    try:
        facts, _ = gather.node(context, profile, node)
    except UserError as error:
        return silent(profile, node, error.message.splitlines()[0])
    return answered(profile, node, facts)


def silent(profile: Profile, node: Node, note: str) -> NodeStatus:
    """A node that has power and does not answer."""
    address = profile.ray_address(node)
    return NodeStatus(node.name, address, "on", UNKNOWN, UNKNOWN, {}, UNKNOWN, note)


def answered(profile: Profile, node: Node, facts: NodeFacts) -> NodeStatus:
    """A node that said this of itself."""
    return NodeStatus(
        node.name,
        profile.ray_address(node),
        "on",
        facts.system,
        facts.image,
        facts.units,
        UNKNOWN,
        host_key=facts.host_key,
    )


def ray_nodes(context: VerifyContext, profile: Profile) -> dict[str, str]:
    """Ray's nodes by address: "head", or the number of a worker's accelerators."""
    try:
        facts = gather.ray(context, profile)
    except UserError:
        return {}
    return {
        node.address: "head" if node.head else f"{node.accelerators:g} accelerators"
        for node in facts.nodes
    }


@dataclass(frozen=True)
class AtEndpoint:
    """What the endpoint says. ``models``: that it serves; ``note``: why there are none;
    ``copies``: of several copies, why each does not serve, if so."""

    models: list[str] = field(default_factory=list)
    note: str = ""
    copies: dict[str, str] = field(default_factory=dict)


def served(cluster: Cluster) -> AtEndpoint:
    """Ask the endpoint, and each of several copies. Of several models, the endpoint's list names
    all; served are those that have a copy which answers."""
    places = {each.model.name: apart(each.profile, each.layout) for each in cluster.services}
    with cluster.client() as client:
        copies = {
            name: why_not(client, place) for way in places.values() for name, place in way.items()
        }
        if len(places) > 1:
            models = [name for name, way in places.items() if not all(map(copies.get, way))]
            return AtEndpoint(models, "" if models else "no model answers", copies)
        try:
            return AtEndpoint(gather.models(client), "", copies)
        except (httpx.HTTPError, UserError) as error:
            return AtEndpoint([], f"no answer: {str(error).splitlines()[0]}", copies)
