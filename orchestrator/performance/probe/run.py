"""`orchestrate probe`: run all probes, each with a timeout. A failed probe is reported, and the
others go on."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from orchestrator.cluster.cluster import Cluster
from orchestrator.cluster.vllm import model_directory
from orchestrator.core import paths
from orchestrator.core.errors import UserError
from orchestrator.core.files import write_json
from orchestrator.core.progress import CLUSTER, Board
from orchestrator.core.slots import JOBS
from orchestrator.performance import metrics
from orchestrator.performance.predict.inputs import PROBES
from orchestrator.performance.probe import nodes as on_nodes
from orchestrator.performance.probe.judge import used
from orchestrator.performance.probe.plan import Pair, between, left_out, sizes, turns
from orchestrator.performance.results.probe import (
    Before,
    CollectiveRates,
    DeviceRates,
    FailedProbe,
    LinkRates,
    Probes,
    StorageRates,
    by_size,
    spread,
)
from orchestrator.profile import Node

#: Seconds for one figure of a device, and to measure the processors' load before.
FIGURE_S, WATCH_S = 1.0, 0.5
#: Seconds for a whole probe of a device, a link, a collective, a model's file.
DEVICE_TIMEOUT, LINK_TIMEOUT, COLLECTIVE_TIMEOUT, STORAGE_TIMEOUT = 180.0, 60.0, 180.0, 120.0
#: Ports that probes listen on: below Linux's range for outgoing connections.
PORTS = range(20000, 30000)
#: vLLM's gauges of running and of waiting requests.
IN_WORK = ("num_requests_running", "num_requests_waiting")
#: The directory, below PROBES, for rounds of only some kinds or nodes.
PARTS = "parts"

T = TypeVar("T")


class Kind(StrEnum):
    """The kinds of probes."""

    DEVICE = "device"
    LINK = "link"
    COLLECTIVE = "collective"
    STORAGE = "storage"


#: The name of the first step, which reads every node's state.
LOOK = "look"


def probe(
    cluster: Cluster,
    board: Board,
    kinds: Collection[Kind],
    nodes: Sequence[Node],
    requests: float | None,
) -> Probes:
    """Probe these nodes; saves nothing.

    One kind after the other, since each needs the machines for itself. Devices and files: all nodes
    at once; links: in turns. A node whose state cannot be read is left out. ``requests``: the
    result of `requests_in_work`, before probing.
    """
    round_ = Round(cluster, board)
    states = round_.each(LOOK, {node.name: partial(_look, cluster, node) for node in nodes})
    here = [node for node in nodes if node.name in states]
    compute = [node for node in here if not cluster.profile.is_control(node)]
    devices: dict[str, DeviceRates] = {}
    links: list[LinkRates] = []
    groups: list[CollectiveRates] = []
    storage: dict[str, StorageRates] = {}
    if Kind.DEVICE in kinds:
        devices = round_.each(
            Kind.DEVICE,
            {node.name: partial(_device, cluster, node, states[node.name][1]) for node in compute},
        )
    if Kind.LINK in kinds:
        for turn in turns(cluster.profile, here):
            asked = {pair.where: partial(_link, cluster, pair) for pair in turn}
            links += round_.each(Kind.LINK, asked).values()
    if Kind.COLLECTIVE in kinds and len(compute) > 1:
        with round_.kept(CLUSTER, Kind.COLLECTIVE), cluster.driver.network():
            groups.append(_collective(cluster, compute))
    if Kind.STORAGE in kinds:
        storage = round_.each(
            Kind.STORAGE, {node.name: partial(_storage, cluster, node) for node in compute}
        )
    versions = [state["versions"] for state, _ in states.values()]
    return Probes(
        profile=cluster.profile.name,
        profile_sha256=cluster.profile.sha256,
        image_id=cluster.image_id,
        versions=versions[-1] if versions else {},
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        devices=tuple(devices.values()),
        links=tuple(links),
        collectives=tuple(groups),
        storage=tuple(storage.values()),
        failed=tuple(round_.failed),
        before=Before({name: state["busy"] for name, (state, _) in states.items()}, requests),
        pairs_left_out=left_out(cluster.profile, here) if Kind.LINK in kinds else 0,
    )


def store(probes: Probes, *, whole: bool) -> Path:
    """Save a round of probes. Predictions use the newest ``whole`` round; others go to PARTS."""
    home = paths.measured(probes.profile) / PROBES / ("" if whole else PARTS)
    home.mkdir(parents=True, exist_ok=True)
    path = home / f"{probes.time.replace(':', '')}.json"
    write_json(path, TypeAdapter(Probes).dump_python(probes, mode="json"))
    return path


def requests_in_work(cluster: Cluster) -> float | None:
    """The number of requests that the model is working on; None if it does not serve."""
    with cluster.driver.network():
        try:
            found = metrics.values(metrics.page(cluster))
            return sum(found[name] for name in IN_WORK)
        except (UserError, KeyError):
            return None


@dataclass
class Round:
    """Run probes in parallel. Failures are collected, and the others go on."""

    cluster: Cluster
    board: Board
    failed: list[FailedProbe] = field(default_factory=list)

    def each(self, step: str, actions: Mapping[str, Callable[[], T | None]]) -> dict[str, T]:
        """Run the actions in parallel, by node or pair; return the results that are not None."""

        def one(where: str) -> T | None:
            with self.kept(where, step), self.cluster.driver.network():
                return actions[where]()
            return None

        with ThreadPoolExecutor(JOBS) as pool:
            found = zip(actions, pool.map(one, actions), strict=True)
        return {where: value for where, value in found if value is not None}

    @contextmanager
    def kept(self, where: str, step: str) -> Iterator[None]:
        """Collect a failure of the body instead of raising it."""
        try:
            with self.board.step(where, step):
                yield
        except UserError as error:
            self.failed.append(FailedProbe(step, where, error.message))


def _look(cluster: Cluster, node: Node) -> tuple[Any, float]:
    """A node's state, and its clock minus this machine's, by the middle of the call."""
    begun = time.time()
    state = on_nodes.state(cluster, node, str(WATCH_S))
    first, last = state["time"]
    return state, ((first - begun) + (last - time.time())) / 2


def _device(cluster: Cluster, node: Node, skew: float) -> DeviceRates:
    asked = {"seconds": FIGURE_S}
    found = on_nodes.with_torch(cluster, node, "node_device", asked, DEVICE_TIMEOUT)
    return device_rates(node.name, found, skew)


def device_rates(node: str, found: Mapping[str, Any], skew: float) -> DeviceRates:
    """Convert node_device's output. ``skew``: the node's clock minus this machine's, in seconds."""
    return DeviceRates(
        node=node,
        device=found["device"],
        name=found["name"],
        threads=found["threads"],
        memory_bytes_per_s=spread(found["memory_bytes_per_s"]),
        matrix_flops_per_s={k: spread(v) for k, v in found["matrix_flops_per_s"].items()},
        operation_s=spread(found["operation_s"]),
        clock_skew_s=skew,
        memory_total_bytes=found["memory_total_bytes"],
        product_bytes_per_s=by_size(found["product_bytes_per_s"]),
    )


def _storage(cluster: Cluster, node: Node) -> StorageRates | None:
    """The rates of a node's model; None if it has no model yet."""
    asked = {"path": model_directory(cluster.profile)}
    found = on_nodes.with_torch(cluster, node, "node_storage", asked, STORAGE_TIMEOUT)
    if not found:
        return None
    return StorageRates(
        node=node.name,
        path=found["path"],
        read_bytes_per_s=spread(found["read_bytes_per_s"]),
        load_bytes_per_s=spread(found["load_bytes_per_s"]),
        bytes=found["bytes"],
        file_system=found["file_system"],
        uncached=found["uncached"],
    )


def _link(cluster: Cluster, pair: Pair) -> LinkRates:
    here, there = (str(node.links[pair.network].address) for node in (pair.a, pair.b))
    port = str(random.choice(PORTS))
    words = ",".join(map(str, sizes(cluster.model.config)))
    ask, serve = ["ask", there, port, here, words], ["serve", there, port]
    end = partial(on_nodes.plain, cluster, program="node_link", timeout=LINK_TIMEOUT)
    with _cards(cluster, (pair.a, pair.b)) as seen:
        found, _ = together(
            cluster, [partial(end, pair.a, words=ask), partial(end, pair.b, words=serve)]
        )
    a, b = seen
    return LinkRates(
        a=pair.a.name,
        b=pair.b.name,
        network=pair.network,
        interfaces=(a.interface, b.interface),
        negotiated_bits_per_s=(a.negotiated, b.negotiated),
        latency_s=spread(found["latency_s"]),
        bytes_per_s=spread(found["bytes_per_s"]),
        by_size_s=by_size(found["by_size_s"]),
    )


def _collective(cluster: Cluster, nodes: Sequence[Node]) -> CollectiveRates:
    common = {
        "world": len(nodes),
        "address": cluster.profile.ray_address(nodes[0]),
        "port": random.choice(PORTS),
        "sizes": sizes(cluster.model.config),
        "between": between(cluster.model.config, len(nodes)),
        "timeout_s": COLLECTIVE_TIMEOUT / 4,
    }

    ranks = [
        partial(
            on_nodes.with_torch, cluster, node, "node_collective", common | {"rank": number},
            COLLECTIVE_TIMEOUT,
        )
        for number, node in enumerate(nodes)
    ]  # fmt: skip
    with _cards(cluster, nodes) as seen:
        found = together(cluster, ranks)[0]
    return CollectiveRates(
        nodes=tuple(node.name for node in nodes),
        backend=found["backend"],
        interfaces=tuple(each.interface for each in seen),
        all_reduce_s=by_size(found["all_reduce_s"]),
        send_s=by_size(found["send_s"]),
        launch_s=by_size(found["launch_s"]),
    )


@dataclass(frozen=True)
class Card:
    """The interface that the bytes used, and its negotiated rate in bits per second."""

    interface: str
    negotiated: int | None


@contextmanager
def _cards(cluster: Cluster, nodes: Sequence[Node]) -> Iterator[list[Card]]:
    """After the body, the list has each node's card with the most bytes moved during it."""

    def counted() -> list[Any]:
        states = together(cluster, [partial(on_nodes.state, cluster, node) for node in nodes])
        return [each["cards"] for each in states]

    found: list[Card] = []
    before = counted()
    yield found
    for first, last in zip(before, counted(), strict=True):
        name = used(first, last)
        found.append(Card(name, last[name]["negotiated"] if name else None))


def together(cluster: Cluster, actions: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run all actions in parallel; return their results. Raises UserError with all failures."""

    def one(action: Callable[[], Any]) -> Any:
        with cluster.driver.network():
            return action()

    with ThreadPoolExecutor(len(actions)) as pool:
        jobs: list[Future[Any]] = [pool.submit(one, action) for action in actions]
    errors = [error for job in jobs if (error := job.exception())]
    said = [error.message for error in errors if isinstance(error, UserError)]
    if len(said) < len(errors):
        raise next(error for error in errors if not isinstance(error, UserError))
    if said:
        raise UserError("; ".join(dict.fromkeys(said)))
    return [job.result() for job in jobs]
