"""The waits of `up`: for layers, for nodes to join Ray, for the endpoint to serve the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from orchestrator.cluster.cluster import Cluster
from orchestrator.cluster.desired import HEAD_UNIT
from orchestrator.cluster.front import FRONT_UNIT
from orchestrator.cluster.targets import verify_context
from orchestrator.cluster.vllm import SERVER_UNIT, WORKER_UNIT
from orchestrator.core.errors import UserError
from orchestrator.core.progress import CLUSTER, Board
from orchestrator.core.waiting import as_long_as
from orchestrator.models.serving import copy_of, ways
from orchestrator.node.selection import Selection
from orchestrator.profile import Node, Profile
from orchestrator.provision.machines import PowerState
from orchestrator.provision.netboot.state import LAYER_UNITS
from orchestrator.verify import gather
from orchestrator.verify.gather import VerifyContext

#: Seconds for the model from start to first answer.
SERVE_TIMEOUT = 1200.0
#: Seconds between two polls while the model loads.
POLL = 1.0
#: Timeout in seconds for the endpoint's health check.
HEALTH_TIMEOUT = 10.0
#: A unit that ends so often during the wait is considered failed.
ENDS = 3


def wait_for_layers(
    cluster: Cluster, node: Node, board: Board, waiting: Callable[[str], None]
) -> None:
    """Wait until a node has all layers of its image.

    ``waiting`` is called with the unit that is waited for; if it raises, the wait ends. Raises
    UserError with the missing layer and the end of its unit's log.
    """
    limit = cluster.driver.boot_timeout
    if not missing_layer(cluster, node):
        return

    def look() -> str:
        if unit := missing_layer(cluster, node):
            waiting(unit)
        return unit

    with board.step(node.name, "layers"):
        if unit := as_long_as(look, limit, POLL):
            said = last_lines(cluster, node, unit, 1)
            raise UserError(
                f"{node.name} does not have all layers of its image after {limit:g} s:"
                f" {unit}: {said}",
                f"orchestrate node ssh {node.name} -- journalctl -u {unit}",
            )


def missing_layer(cluster: Cluster, node: Node) -> str:
    """The unit of a layer that a node is still fetching; empty if it has all layers."""
    argv = ["systemctl", "show", LAYER_UNITS, "--property=Id,ActiveState"]
    said = cluster.remote(node).run(argv, what="looking for its layers").out
    units = [dict(line.split("=", 1) for line in unit.split()) for unit in said.split("\n\n")]
    return next((unit["Id"] for unit in units if unit and unit["ActiveState"] != "active"), "")


def wait_for_ray(cluster: Cluster, board: Board, chosen: Selection) -> None:
    """Wait until every chosen node has joined Ray: that can be later than its unit's start.

    (An answer of the model proves it for workers only, since the head may have restarted.) Raises
    UserError with the nodes that are missing or have no power.
    """
    profile, limit = cluster.profile, cluster.driver.boot_timeout
    context = verify_context(cluster, {})

    def look() -> str:
        if reason := not_joined(context, profile, chosen):
            board.note(CLUSTER, reason.splitlines()[0])
            for node in chosen.nodes:
                must_have_power(cluster, node)
        return reason

    with board.step(CLUSTER, "ray"):
        if reason := as_long_as(look, limit, POLL):
            raise UserError(
                f"after {limit:g} s: {reason}",
                f"orchestrate node ssh NODE -- journalctl -u {HEAD_UNIT} -u {WORKER_UNIT}",
            )


def not_joined(context: VerifyContext, profile: Profile, chosen: Selection) -> str:
    """The chosen nodes that Ray lacks or has twice, or why Ray does not answer; empty if all is
    well. (A restarted head with its old tables lists itself twice for a while.)"""
    try:
        there = Counter(node.address for node in gather.ray(context, profile).nodes)
    except UserError as error:
        return f"Ray does not answer: {error.message}"
    counts = {node.name: there[profile.ray_address(node)] for node in chosen.nodes}
    if missing := [name for name, count in counts.items() if not count]:
        return f"not joined to Ray: {', '.join(missing)}"
    twice = [name for name, count in counts.items() if count > 1]
    return f"Ray still lists {', '.join(twice)} from before a restart" if twice else ""


def wait_for_model(cluster: Cluster, board: Board) -> None:
    """Wait until every copy of every model answers at the endpoint; fail early if one of the
    services behind it ended."""
    profile = cluster.profile
    serving = [
        node
        for each in cluster.services
        for node in each.profile.compute_nodes
        if copy_of(each.profile, each.layout, node)
    ]
    behind = [
        *(AwaitedService(cluster, node, SERVER_UNIT) for node in serving),
        AwaitedService(cluster, profile.control, FRONT_UNIT),
    ]

    def last_line(name: str) -> str:
        node = next(node for node in serving if node.name == name)
        return last_lines(cluster, node, SERVER_UNIT, 1)

    with board.step(CLUSTER, "serving"), cluster.client() as client:

        def look() -> dict[str, str]:
            if missing := not_serving(cluster, client):
                for node in profile.nodes:
                    must_have_power(cluster, node)
                for service in behind:
                    service.must_come_up()
                name, reason = next(iter(missing.items()))
                board.note(CLUSTER, f"{reason}; vLLM: {last_line(name)[-90:]}")
            return missing

        if missing := as_long_as(look, SERVE_TIMEOUT, POLL):
            name, reason = next(iter(missing.items()))
            raise UserError(
                f"no answer at {cluster.endpoint} after {SERVE_TIMEOUT:g} s: {reason}",
                f"vLLM's last line on {name}: {last_line(name)}",
            )


def not_serving(cluster: Cluster, client: httpx.Client) -> dict[str, str]:
    """Why copies of the models do not answer, by their servers' nodes; empty when all do."""
    places = [ways(each.profile, each.layout) for each in cluster.services]
    found = {name: why_not(client, place) for way in places for name, place in way.items()}
    return {name: reason for name, reason in found.items() if reason}


def why_not(client: httpx.Client, place: str = "") -> str:
    """Why the endpoint, or a copy behind it, does not serve yet; empty when it does."""
    try:
        response = client.get(f"{place}/health", timeout=HEALTH_TIMEOUT)
    except httpx.TransportError as error:
        return f"endpoint: {error}"
    return "" if response.status_code == httpx.codes.OK else f"HTTP {response.status_code}"


class NodeLost(UserError):
    """A node's own failure, found while something of the whole cluster was waited for."""

    def __init__(self, node: str, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.node = node


def must_have_power(cluster: Cluster, node: Node) -> None:
    """Raises NodeLost if a node lost its power, or its machine cannot recover."""
    if trouble := cluster.driver.trouble(node):
        raise NodeLost(node.name, trouble.message, trouble.hint)
    if cluster.driver.state(node) == PowerState.OFF:
        console = cluster.driver.console(node)
        raise NodeLost(node.name, f"{node.name} has lost power", f"Its console: {console}")


@dataclass
class AwaitedService:
    """A unit that is waited for. systemd restarts it for ever."""

    cluster: Cluster
    node: Node
    unit: str
    restarts: int | None = None

    def must_come_up(self) -> None:
        """Raises UserError with the end of its log if it failed, or was restarted ENDS times."""
        asked = [f"--property={name}" for name in ("ActiveState", "NRestarts")]
        argv = ["systemctl", "show", self.unit, *asked]
        said = self.cluster.remote(self.node).run(argv, ok=None).out.splitlines()
        found = dict(line.split("=", 1) for line in said if "=" in line)
        now = int(found.get("NRestarts", 0))
        # systemd's count is reset when `up` itself starts the unit.
        self.restarts = now if self.restarts is None else min(self.restarts, now)
        if found.get("ActiveState") in ("failed", "inactive") or now - self.restarts >= ENDS:
            lines = last_lines(self.cluster, self.node, self.unit, 20)
            hint = f"orchestrate node ssh {self.node.name} -- journalctl -u {self.unit}"
            raise UserError(
                f"{self.unit} ended on {self.node.name}:\n{lines}", f"Its whole log: {hint}"
            )


def last_lines(cluster: Cluster, node: Node, unit: str, count: int) -> str:
    """The end of a unit's log."""
    argv = ["journalctl", f"--unit={unit}", "--output=cat", "--no-pager", f"--lines={count}"]
    return cluster.remote(node).run(argv, ok=None).out.strip()
