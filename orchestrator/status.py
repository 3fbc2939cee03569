"""`orchestrate status`: what is there now, with no judgement (that is `verify`)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import httpx
from rich.table import Table
from rich.text import Text

from orchestrator.cluster import Cluster
from orchestrator.errors import UserError
from orchestrator.profile import Node
from orchestrator.verify import gather

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

    def document(self) -> dict[str, Any]:
        return asdict(self)

    def tables(self) -> list[Table]:
        """The nodes, then the cluster, for a terminal."""
        nodes = Table(
            "node", "address", "power", "system", "image", "ray", "units", box=None, pad_edge=False
        )
        for node in self.nodes:
            units = ", ".join(f"{name} {state}" for name, state in node.units.items())
            told = node.note or units
            cells = [
                node.name,
                node.address,
                node.power,
                node.system,
                node.image[:12],
                node.ray,
                told,
            ]
            nodes.add_row(*(Text(cell) for cell in cells))
        cluster = Table.grid(padding=(0, 2))
        cluster.add_row("image", f"{self.image} {self.image_id[:12]}")
        cluster.add_row("model", f"{self.model}, {self.layout}")
        served = f"serves {', '.join(self.models)}" if self.models else self.note
        cluster.add_row("endpoint", Text(f"{self.endpoint}/v1  {served}"))
        return [nodes, cluster]


def status(cluster: Cluster) -> Status:
    """Ask everything that runs; what does not answer is shown as such."""
    profile = cluster.profile
    powered = [node for node in profile.nodes if cluster.driver.running(node)]
    models: list[str] = []
    note, alive = "the control node has no power", dict[str, str]()
    seen: dict[str, NodeStatus] = {}
    if profile.control in powered:
        with cluster.driver.network(), ThreadPoolExecutor(len(profile.nodes)) as pool:
            asked = pool.map(lambda node: node_status(cluster, node), powered)
            seen = {node.name: node for node in asked}
            alive = ray_nodes(cluster)
            models, note = served(cluster)
    nodes = []
    for node in profile.nodes:
        address = profile.ray_address(node)
        off = NodeStatus(node.name, address, "off", UNKNOWN, UNKNOWN, {}, UNKNOWN)
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
    )


def node_status(cluster: Cluster, node: Node) -> NodeStatus:
    """One node's own words, without Ray."""
    address = cluster.profile.ray_address(node)
    try:
        facts, _ = gather.node(cluster.verify_context(()), cluster.profile, node)
    except UserError as error:
        note = error.message.splitlines()[0]
        return NodeStatus(node.name, address, "on", UNKNOWN, UNKNOWN, {}, UNKNOWN, note)
    return NodeStatus(node.name, address, "on", facts.system, facts.image, facts.units, UNKNOWN)


def ray_nodes(cluster: Cluster) -> dict[str, str]:
    """By address: "head", or the accelerators that a worker brings."""
    try:
        facts = gather.ray(cluster.verify_context(()), cluster.profile)
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
