"""Whether every node is still there while a load runs: a lost one can hang a request for ever."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from threading import Event, Thread

from orchestrator.cluster.cluster import Cluster
from orchestrator.core.errors import UserError
from orchestrator.core.slots import JOBS
from orchestrator.node.remote import PROBE_TIMEOUT
from orchestrator.performance.bench.sample import Heard
from orchestrator.profile import Node
from orchestrator.provision.machines import PowerState

#: Seconds between two looks; without a sample of a node, after which it is asked.
LOOK, SILENT = 2.0, 8.0


@contextmanager
def watched(
    cluster: Cluster, nodes: tuple[Node, ...], heard: Heard, on_lost: Callable[[], None]
) -> Iterator[dict[str, float]]:
    """By name, the nodes that were lost during the body, and when their last sample came (seconds
    since 1970, here).

    ``on_lost`` is called at the first, in another thread, inside the cluster's network: what waits
    for that node has to end.
    """
    lost: dict[str, float] = {}
    over = Event()

    def look() -> None:
        with cluster.driver.network():
            while not over.wait(LOOK) and not lost:
                now = time.monotonic()
                quiet = [node for node in nodes if now - heard.last[node.name] > SILENT]
                if quiet:
                    lost.update(gone(cluster, quiet, heard))
            if not over.is_set():
                on_lost()

    thread = Thread(target=look, daemon=True)
    thread.start()
    try:
        yield lost
    finally:
        over.set()
        thread.join()


def gone(cluster: Cluster, nodes: Sequence[Node], heard: Heard) -> dict[str, float]:
    """Those of the nodes that are off or do not answer, and when they were last heard of."""

    def answers(node: Node) -> bool:
        if cluster.driver.state(node) is PowerState.OFF:
            return False
        try:
            with cluster.driver.network():
                cluster.remote(node).run(["true"], what="asking", timeout=PROBE_TIMEOUT)
        except UserError:
            return False
        return True

    with ThreadPoolExecutor(JOBS) as pool:
        found = list(zip(nodes, pool.map(answers, nodes), strict=True))
    return {
        node.name: time.time() - (time.monotonic() - heard.last[node.name])
        for node, answered in found
        if not answered
    }


def told(lost: dict[str, float]) -> str:
    """``compute1 was lost at 09:12:33 UTC``."""
    return ", ".join(
        f"{name} was lost at {datetime.fromtimestamp(when, UTC):%H:%M:%S} UTC"
        for name, when in lost.items()
    )
