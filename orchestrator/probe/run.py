"""`orchestrate probe`: each probe by itself, each with a limit. What gives nothing is said, and
holds no other back."""

from __future__ import annotations

import json
import random
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from orchestrator import paths
from orchestrator.cluster import Cluster
from orchestrator.errors import UserError
from orchestrator.hub import write_json
from orchestrator.node_paths import VENV, WITH_ENVIRONMENT
from orchestrator.predict.inputs import PROBES
from orchestrator.probe.plan import Pair, pairs, sizes
from orchestrator.probe.results import (
    CollectiveRates,
    DeviceRates,
    Failed,
    LinkRates,
    Probes,
    Spread,
    StorageRates,
    spread,
)
from orchestrator.profile import Node
from orchestrator.progress import CLUSTER, Board
from orchestrator.state import model_directory

#: Seconds for one figure of a device; for a whole probe of a device, a link, a collective.
FIGURE_S = 1.0
DEVICE_TIMEOUT, LINK_TIMEOUT, COLLECTIVE_TIMEOUT = 180.0, 60.0, 120.0
#: Seconds after which a node's own `timeout` ends what hangs, before ours does.
GRACE = 10.0
#: Where probes listen: below what Linux gives to outgoing connections.
PORTS = range(20000, 30000)
#: Prints how many requests vLLM is working on; its own node may ask.
BUSY = (
    "import re, sys, urllib.request as u; t = u.build_opener(u.ProxyHandler({})).open(sys.argv[1],"
    " timeout=5).read().decode(); print(sum(float(x) for x in re.findall("
    "r'^vllm:num_requests_(?:running|waiting)\\{[^}]*\\} (\\S+)', t, re.M)))"
)


class Kind(StrEnum):
    """What can be probed."""

    DEVICE = "device"
    LINK = "link"
    COLLECTIVE = "collective"


def probe(cluster: Cluster, board: Board, kinds: Collection[Kind], nodes: Sequence[Node]) -> Probes:
    """Probe these nodes; stores nothing. One kind after the other, since each needs the machines
    for itself: devices all at once, links pair by pair."""
    compute = [node for node in nodes if not cluster.profile.is_control(node)]
    failed: list[Failed] = []
    devices: list[DeviceRates] = []
    storage: list[StorageRates] = []
    links: list[LinkRates] = []
    collectives: list[CollectiveRates] = []
    with cluster.driver.network():
        if Kind.DEVICE in kinds:
            for device, disk in _each(
                cluster, board, Kind.DEVICE, compute, lambda node: _device(cluster, node), failed
            ):
                devices.append(device)
                storage += [disk] if disk else []
        if Kind.LINK in kinds:
            for pair in pairs(cluster.profile, nodes):
                with _kept(board, pair.where, Kind.LINK, failed):
                    links.append(_link(cluster, pair))
        if Kind.COLLECTIVE in kinds and len(compute) > 1:
            with _kept(board, CLUSTER, Kind.COLLECTIVE, failed):
                collectives.append(_collective(cluster, compute))
    return Probes(
        profile=cluster.profile.name,
        profile_sha256=cluster.profile.sha256,
        image_id=cluster.image_id,
        versions={},
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        devices=tuple(devices),
        links=tuple(links),
        collectives=tuple(collectives),
        storage=tuple(storage),
        failed=tuple(failed),
    )


def store(probes: Probes) -> Path:
    """Keep them; predictions take the newest."""
    home = paths.measured(probes.profile) / PROBES
    home.mkdir(parents=True, exist_ok=True)
    path = home / f"{probes.time.replace(':', '')}.json"
    write_json(path, TypeAdapter(Probes).dump_python(probes, mode="json"))
    return path


def requests_in_work(cluster: Cluster) -> float:
    """How many requests the served model is working on; none where it does not serve."""
    server = cluster.profile.server
    url = f"http://{cluster.profile.ray_address(server)}:{cluster.profile.serving.port}/metrics"
    argv = [f"{VENV}/bin/python", "-c", BUSY, url]
    with cluster.driver.network():
        try:
            return float(cluster.remote(server).run(argv, timeout=30).out or 0)
        except (UserError, ValueError):
            return 0.0


def odd(cluster: Cluster, probes: Probes) -> Iterator[str]:
    """What is not as the profile says, or should not be believed too much."""
    nodes = {node.name: node for node in cluster.profile.nodes}
    for link in probes.links:
        for name, seen in zip((link.a, link.b), link.interfaces, strict=True):
            expected = nodes[name].links[link.network].interface
            if seen and seen != expected:
                carried = [
                    other
                    for other, each in nodes[name].links.items()
                    if each.interface == seen
                    and cluster.profile.networks[other].carries == link.network
                ]
                by = f", as {carried[0]} carries it" if carried else ": not as the profile says"
                yield f"{link.a} to {link.b} on {link.network} goes by {seen} of {name}{by}"
        if link.bytes_per_s.relative > 0.3:
            yield (
                f"{link.a} to {link.b} on {link.network}: the rate varies by "
                f"{link.bytes_per_s.relative:.0%}"
            )
    for device in probes.devices:
        if device.memory_bytes_per_s.relative > 0.3:
            yield (
                f"{device.node}: its memory rate varies by "
                f"{device.memory_bytes_per_s.relative:.0%}: something else uses it"
            )


def _device(cluster: Cluster, node: Node) -> tuple[DeviceRates, StorageRates | None]:
    path = model_directory(cluster.profile)
    asked = {"seconds": FIGURE_S, "path": path}
    found = _run(cluster, node, "node_device", [json.dumps(asked)], DEVICE_TIMEOUT)
    rates, disk = found["rates"], found["storage"]
    return (
        DeviceRates(
            node=node.name,
            device=rates["device"],
            name=rates["name"],
            threads=rates["threads"],
            memory_bytes_per_s=spread(rates["memory_bytes_per_s"]),
            matrix_flops_per_s={k: spread(v) for k, v in rates["matrix_flops_per_s"].items()},
            operation_s=spread(rates["operation_s"]),
            clock_skew_s=0.0,
            memory_total_bytes=rates["memory_total_bytes"],
        ),
        StorageRates(
            node.name, path, spread(disk["read_bytes_per_s"]), spread(disk["load_bytes_per_s"])
        )
        if disk
        else None,
    )


def _link(cluster: Cluster, pair: Pair) -> LinkRates:
    here, there = (str(node.links[pair.network].address) for node in (pair.a, pair.b))
    port = str(random.choice(PORTS))
    asked = ",".join(map(str, sizes(cluster.model.config)))
    with ThreadPoolExecutor(2) as pool:
        server = pool.submit(
            _run, cluster, pair.b, "node_link", ["serve", there, port], LINK_TIMEOUT, plain=True
        )
        client = pool.submit(
            _run, cluster, pair.a, "node_link", ["ask", there, port, here, asked], LINK_TIMEOUT,
            plain=True,
        )  # fmt: skip
        seen, other = client.result(), server.result()
    return LinkRates(
        a=pair.a.name,
        b=pair.b.name,
        network=pair.network,
        interfaces=(seen["interface"], other["interface"]),
        negotiated_bits_per_s=(seen["speed"], other["speed"]),
        latency_s=spread(seen["latency_s"]),
        bytes_per_s=spread(seen["bytes_per_s"]),
        by_size_s=_by_size(seen["by_size_s"]),
    )


def _collective(cluster: Cluster, nodes: Sequence[Node]) -> CollectiveRates:
    profile = cluster.profile
    common = {
        "world": len(nodes),
        "address": profile.ray_address(nodes[0]),
        "port": random.choice(PORTS),
        "sizes": sizes(cluster.model.config),
        "timeout_s": COLLECTIVE_TIMEOUT / 4,
    }
    with ThreadPoolExecutor(len(nodes)) as pool:
        jobs = [
            pool.submit(
                _run, cluster, node, "node_collective", [json.dumps(common | {"rank": rank})],
                COLLECTIVE_TIMEOUT,
            )
            for rank, node in enumerate(nodes)
        ]  # fmt: skip
        every = [job.result() for job in jobs]
    found = every[0]
    return CollectiveRates(
        nodes=tuple(node.name for node in nodes),
        backend=found["backend"],
        interfaces=tuple(each["interface"] for each in every),
        all_reduce_s=_by_size(found["all_reduce_s"]),
        send_s=_by_size(found["send_s"]),
    )


def _by_size(found: Mapping[str, list[float]]) -> dict[int, Spread]:
    return {int(size): spread(values) for size, values in found.items()}


def _run(
    cluster: Cluster,
    node: Node,
    program: str,
    words: Sequence[str],
    timeout: float,
    *,
    plain: bool = False,
) -> Any:
    """Run a program of this directory on a node, in the environment that vLLM has there; the JSON
    that it prints. Raises UserError where it fails, or is not done in time: it is ended then."""
    profile = cluster.profile
    variables = profile.ray_env(node) | profile.serving_env()
    link = node.links[profile.ray.network].interface
    env = {"GLOO_SOCKET_IFNAME": link, **variables}
    limit = ["timeout", f"--kill-after={GRACE:g}", f"{timeout - GRACE:g}"]
    python = [f"{VENV}/bin/python", "-", *words]
    around = [] if plain else ["env", *(f"{k}={v}" for k, v in env.items()), WITH_ENVIRONMENT]
    argv = [*limit, *around, *python]
    source = Path(__file__).with_name(f"{program}.py").read_text(encoding="utf-8")
    result = cluster.remote(node).run(
        argv, what=f"the probe {program}", stdin=source, timeout=timeout + GRACE, ok=None
    )
    if result.code in (124, 137):  # timeout's own, and what it killed
        raise UserError(
            f"{node.name}: {program}: no end after {timeout - GRACE:g} s",
            "Over a wrong interface collectives wait for ever. By hand: "
            f"{shlex.join([*python[:1], program + '.py', *words])}",
        )
    if result.code != 0:
        last = (result.err.strip() or "no output").splitlines()[-1]
        raise UserError(f"{node.name}: {program}: exit code {result.code}: {last}")
    # What a library says on stdout comes before.
    return json.loads(result.out.strip().splitlines()[-1])


def _each(
    cluster: Cluster,
    board: Board,
    kind: Kind,
    nodes: Sequence[Node],
    action: Callable[[Node], Any],
    failed: list[Failed],
) -> list[Any]:
    """The action on all nodes at once; those that fail are noted."""

    def one(node: Node) -> Any:
        with cluster.driver.network(), _kept(board, node.name, kind, failed):
            return action(node)
        return None

    with ThreadPoolExecutor(max(1, len(nodes))) as pool:
        return [found for found in pool.map(one, nodes) if found is not None]


@contextmanager
def _kept(board: Board, where: str, kind: Kind, failed: list[Failed]) -> Iterator[None]:
    """A failure of the body is noted, and others go on."""
    try:
        with board.step(where, kind):
            yield
    except UserError as error:
        failed.append(Failed(kind, where, error.message))
