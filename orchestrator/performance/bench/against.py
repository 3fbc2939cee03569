"""Compare one node with the cluster: the same workloads on one accelerator and on all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from orchestrator.cluster.cluster import Cluster
from orchestrator.cluster.readiness import wait_for_model
from orchestrator.cluster.up import up
from orchestrator.core.errors import UserError
from orchestrator.core.progress import Board
from orchestrator.models.serving import Layout
from orchestrator.node.resources import Step
from orchestrator.node.selection import Selection
from orchestrator.performance.bench.run import bench
from orchestrator.performance.predict.layout import Parallelism as Spread
from orchestrator.performance.results.bench import Asked, Run


def against_one_node(cluster: Cluster, board: Board, asked: Asked) -> Run:
    """Measure on one node, then on the profile's layout, which is restored in any case."""
    other = replace(cluster, layout=one(cluster.layout))
    with served_as(cluster, board, other) as single:
        bench(single, board, asked)
    return bench(cluster, board, asked)


def one(layout: Layout) -> Layout:
    """The layout with the whole model on one accelerator."""
    return Layout(tensor=1, pipeline=1, expert=False, accelerators=layout.accelerators)


@contextmanager
def served_as(cluster: Cluster, board: Board, other: Cluster) -> Iterator[Cluster]:
    """Serve as `other` says for the body, then as the profile says again, whatever happens."""
    try:
        _serve(other, board)
        yield other
    finally:
        _serve(cluster, board)


def _serve(cluster: Cluster, board: Board) -> None:
    profile = cluster.profile
    chosen = Selection((profile.server,), (Step.SERVING,), whole=False)
    if profile.serving.data_parallel != 1 or not profile.serving.by_ray:
        # Other nodes' vLLM starts or ends too, and the endpoint leads elsewhere.
        chosen = Selection(profile.nodes, (Step.BASE, Step.SERVING), whole=False)
    done = up(cluster, board, Step.SERVING, chosen)
    if done.failures:
        raise UserError("\n".join(str(error) for error in done.failures.values()))
    with cluster.driver.network():
        wait_for_model(cluster, board)


def layout_of(run: Run) -> Spread:
    """A run's layout, parsed from its provenance."""
    sizes = [int(number) for number in re.findall(r"\d+", run.provenance.layout)]
    return Spread(*sizes)
