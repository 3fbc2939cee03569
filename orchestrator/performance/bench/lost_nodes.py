"""Detect nodes that are lost while a workload runs: a lost node can hang a request for ever."""

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

#: Seconds between two checks, and seconds without a sample after which a node is asked.
LOOK, SILENT = 2.0, 8.0


@contextmanager
def watched(
    cluster: Cluster, nodes: tuple[Node, ...], heard: Heard, on_lost: Callable[[], None]
) -> Iterator[dict[str, float]]:
    """The nodes that were lost during the body: name -> time of the last sample (Unix time, by
    this machine's clock).

    ``on_lost`` is called once, for the first lost node, in another thread inside the cluster's
    network. It has to end whatever waits for that node.
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
    """The nodes that are off or do not answer: name -> time of the last sample."""

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
