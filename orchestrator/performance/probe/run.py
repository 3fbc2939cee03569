"""Probes of a cluster's nodes, ours or others': each has a timeout. A failed one is reported, and
the others go on."""

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
from typing import Any, Protocol, TypeVar

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
from orchestrator.performance.probe.judge import used
from orchestrator.performance.probe.nodes import OurNode
from orchestrator.performance.probe.plan import BETWEEN, between, left_out, sizes, turns
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
#: Seconds for a whole probe of a device, a link, a collective, a model's file; to read the state.
DEVICE_TIMEOUT, LINK_TIMEOUT, COLLECTIVE_TIMEOUT, STORAGE_TIMEOUT = 180.0, 60.0, 180.0, 120.0
STATE_TIMEOUT = 30.0
#: Ports that probes listen on: below Linux's range for outgoing connections.
PORTS = range(20000, 30000)
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


class ProbedNode(Protocol):
    """A node. Programs are those of this directory; both ways return the JSON that they print, and
    raise UserError where they do not within ``seconds``."""

    @property
    def name(self) -> str: ...

    def address(self, network: str) -> str:
        """Raises UserError where it is not known."""

    def plain(self, program: str, words: Sequence[str], seconds: float) -> Any:
        """Run one that needs the standard library only."""

    def with_torch(self, program: str, asked: Mapping[str, Any], seconds: float) -> Any:
        """Run one in vLLM's environment."""


@dataclass(frozen=True)
class ProbedCluster:
    """What is probed. ``skews_s``: of the nodes with ranks, their clocks minus this machine's;
    ``networks``: the nodes on each; ``ranks``: the network of the ranks; ``sizes``, ``between``: in
    bytes, as ``plan`` has them."""

    places: Mapping[str, ProbedNode]
    skews_s: Mapping[str, float]
    networks: Mapping[str, Sequence[str]]
    ranks: str
    sizes: Sequence[int]
    between: int = BETWEEN


@dataclass
class Round:
    """Run probes in parallel. Failures are collected, and the others go on."""

    board: Board
    failed: list[FailedProbe] = field(default_factory=list)

    def each(self, step: str, actions: Mapping[str, Callable[[], T | None]]) -> dict[str, T]:
        """Run the actions in parallel, by node or pair; return the results that are not None."""

        def one(where: str) -> T | None:
            try:
                with self.board.step(where, step):
                    try:
                        return actions[where]()
                    except (KeyError, TypeError, ValueError, AttributeError) as error:
                        text = f"{where}: the probe's figures are none: {error!r}"
                        raise UserError(text) from None
            except UserError as error:
                self.failed.append(FailedProbe(step, where, error.message))
                return None

        with ThreadPoolExecutor(JOBS) as pool:
            found = zip(actions, pool.map(one, actions), strict=True)
        return {where: value for where, value in found if value is not None}

    def rates(self, kinds: Collection[Kind], cluster: ProbedCluster) -> dict[str, Any]:
        """Devices all at once, then links in turns, then the collective, since each kind needs the
        machines for itself: the fields of `Probes`."""
        places = cluster.places
        links: list[LinkRates] = []
        devices: dict[str, DeviceRates] = {}
        groups: dict[str, CollectiveRates] = {}
        if Kind.DEVICE in kinds:
            acts = {
                name: partial(_device, places[name], skew) for name, skew in cluster.skews_s.items()
            }
            devices = self.each(Kind.DEVICE, acts)
        for turn in turns(cluster.networks) if Kind.LINK in kinds else ():
            pairs = {
                pair.where: partial(
                    link_rates, places[pair.a], places[pair.b], pair.network, cluster.sizes
                )
                for pair in turn
            }
            links += self.each(Kind.LINK, pairs).values()
        if Kind.COLLECTIVE in kinds and len(cluster.skews_s) > 1:
            groups = self.each(Kind.COLLECTIVE, {CLUSTER: partial(_collective, cluster)})
        return {
            "devices": tuple(devices.values()),
            "links": tuple(links),
            "collectives": tuple(groups.values()),
            "pairs_left_out": left_out(cluster.networks) if Kind.LINK in kinds else 0,
        }


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def probe(
    cluster: Cluster,
    board: Board,
    kinds: Collection[Kind],
    nodes: Sequence[Node],
    requests: float | None,
) -> Probes:
    """Probe these nodes of ours; saves nothing. A node whose state cannot be read is left out.

    ``requests``: the result of `requests_in_work`, before probing.
    """
    profile, config = cluster.profile, cluster.model.config
    round_ = Round(board)
    places = {node.name: OurNode(cluster, node) for node in nodes}
    states = round_.each(LOOK, {name: partial(_look, place) for name, place in places.items()})
    here = [node for node in nodes if node.name in states]
    skews_s = {node.name: states[node.name][1] for node in here if not profile.is_control(node)}
    networks = {
        name: [node.name for node in here if name in node.links] for name in profile.networks
    }
    probed = ProbedCluster(
        places, skews_s, networks, profile.ray.network, sizes(config), between(config, len(skews_s))
    )
    rates = round_.rates(kinds, probed)
    storage: dict[str, StorageRates] = {}
    if Kind.STORAGE in kinds:
        acts = {name: partial(_storage, places[name]) for name in skews_s}
        storage = round_.each(Kind.STORAGE, acts)
    versions = [state["versions"] for state, _ in states.values()]
    return Probes(
        profile=profile.name,
        profile_sha256=profile.sha256,
        image_id=cluster.image_id,
        versions=versions[-1] if versions else {},
        time=now(),
        storage=tuple(storage.values()),
        failed=tuple(round_.failed),
        before=Before({name: state["busy"] for name, (state, _) in states.items()}, requests),
        **rates,
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
            return metrics.in_work(metrics.page(cluster))
        except UserError:
            return None


def _look(place: OurNode) -> tuple[Any, float]:
    """A node's state, and its clock minus this machine's, by the middle of the call."""
    begun = time.time()
    state = place.plain("node_state", [str(WATCH_S)], STATE_TIMEOUT)
    first, last = state["time"]
    return state, ((first - begun) + (last - time.time())) / 2


def _device(place: ProbedNode, skew_s: float) -> DeviceRates:
    found = place.with_torch("node_device", {"seconds": FIGURE_S}, DEVICE_TIMEOUT)
    return DeviceRates(
        node=place.name,
        device=found["device"],
        name=found["name"],
        threads=found["threads"],
        memory_bytes_per_s=spread(found["memory_bytes_per_s"]),
        matrix_flops_per_s={k: spread(v) for k, v in found["matrix_flops_per_s"].items()},
        operation_s=spread(found["operation_s"]),
        clock_skew_s=skew_s,
        memory_total_bytes=found["memory_total_bytes"],
        product_bytes_per_s=by_size(found["product_bytes_per_s"]),
    )


def _storage(place: OurNode) -> StorageRates | None:
    """The rates of a node's model; None if it has no model yet."""
    asked = {"path": model_directory(place.cluster.profile)}
    found = place.with_torch("node_storage", asked, STORAGE_TIMEOUT)
    if not found:
        return None
    return StorageRates(
        node=place.name,
        path=found["path"],
        read_bytes_per_s=spread(found["read_bytes_per_s"]),
        load_bytes_per_s=spread(found["load_bytes_per_s"]),
        bytes=found["bytes"],
        file_system=found["file_system"],
        uncached=found["uncached"],
    )


def link_rates(a: ProbedNode, b: ProbedNode, network: str, sizes: Sequence[int]) -> LinkRates:
    """The link between two nodes. Raises UserError."""
    here, there = a.address(network), b.address(network)
    port = str(random.choice(PORTS))
    ask, serve = ["ask", there, port, here, ",".join(map(str, sizes))], ["serve", there, port]
    with _cards((a, b)) as seen:
        found, _ = together(
            [partial(end.plain, "node_link", words, LINK_TIMEOUT)
             for end, words in ((a, ask), (b, serve))]
        )  # fmt: skip
    one, other = seen
    return LinkRates(
        a=a.name,
        b=b.name,
        network=network,
        interfaces=(one.interface, other.interface),
        negotiated_bits_per_s=(one.negotiated, other.negotiated),
        latency_s=spread(found["latency_s"]),
        bytes_per_s=spread(found["bytes_per_s"]),
        by_size_s=by_size(found["by_size_s"]),
    )


def _collective(cluster: ProbedCluster) -> CollectiveRates:
    places = [cluster.places[name] for name in cluster.skews_s]
    addresses = [place.address(cluster.ranks) for place in places]
    common = {
        "world": len(places),
        "address": addresses[0],
        "port": random.choice(PORTS),
        "sizes": cluster.sizes,
        "between": cluster.between,
        "timeout_s": COLLECTIVE_TIMEOUT / 4,
    }
    ranks = [
        partial(place.with_torch, "node_collective", common | {"rank": rank}, COLLECTIVE_TIMEOUT)
        for rank, place in enumerate(places)
    ]
    with _cards(places) as seen:
        found = together(ranks)[0]
    return CollectiveRates(
        nodes=tuple(place.name for place in places),
        backend=str(found["backend"]),
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
def _cards(places: Sequence[ProbedNode]) -> Iterator[list[Card]]:
    """After the body, the list has each node's card with the most bytes moved during it."""

    def counted() -> list[Any]:
        states = together([partial(each.plain, "node_state", [], STATE_TIMEOUT) for each in places])
        return [each["cards"] for each in states]

    found: list[Card] = []
    before = counted()
    yield found
    for first, last in zip(before, counted(), strict=True):
        name = used(first, last)
        found.append(Card(name, last[name]["negotiated"] if name else None))


def together(actions: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run all actions in parallel; return their results. Raises UserError with all failures."""
    with ThreadPoolExecutor(len(actions)) as pool:
        jobs: list[Future[Any]] = [pool.submit(action) for action in actions]
    errors = [error for job in jobs if (error := job.exception())]
    said = [error.message for error in errors if isinstance(error, UserError)]
    if len(said) < len(errors):
        raise next(error for error in errors if not isinstance(error, UserError))
    if said:
        raise UserError("; ".join(dict.fromkeys(said)))
    return [job.result() for job in jobs]
