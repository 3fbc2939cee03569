"""Compare one node with the cluster: the same workloads on one accelerator and on all.

The run on one accelerator also shows what the engine costs beside the device's work. Later
predictions use that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from pydantic import TypeAdapter

from orchestrator.cluster.cluster import Cluster
from orchestrator.cluster.readiness import wait_for_model
from orchestrator.cluster.up import up
from orchestrator.core import paths
from orchestrator.core.errors import UserError
from orchestrator.core.files import write_json
from orchestrator.core.progress import Board
from orchestrator.models.flags import number_formats
from orchestrator.models.serving import Layout
from orchestrator.node.resources import Step
from orchestrator.node.selection import Selection
from orchestrator.performance.bench.load import offered
from orchestrator.performance.bench.run import bench
from orchestrator.performance.predict import inputs
from orchestrator.performance.predict.calibration import calibrate, sample
from orchestrator.performance.predict.engine import Engine
from orchestrator.performance.predict.layout import Parallelism as Spread
from orchestrator.performance.predict.load import limits
from orchestrator.performance.predict.rates import rates
from orchestrator.performance.predict.shape import read
from orchestrator.performance.results.bench import Asked, Run
from orchestrator.performance.results.probe import Probes
from orchestrator.profile import Profile


@dataclass(frozen=True)
class Against:
    """Both runs. ``engine``: fitted to the run on one node; None without probes."""

    alone: Run
    together: Run
    engine: Engine | None


def against_one_node(cluster: Cluster, board: Board, asked: Asked) -> Against:
    """Measure on one node, then on the profile's layout, which is restored in any case."""
    other = replace(cluster, layout=one(cluster.layout))
    with served_as(cluster, board, other) as single:
        alone = bench(single, board, asked)
    engine = fit(cluster, alone)
    return Against(alone, bench(cluster, board, asked), engine)


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


def fit(cluster: Cluster, alone: Run) -> Engine | None:
    """Fit the engine's constants to a run on one node; save them for predictions."""
    profile = cluster.profile
    try:
        probes = inputs.probes(profile.name)
        engine = fitted(alone, cluster.model.config, probes, profile)
    except UserError:
        return None
    if engine:
        path = paths.measured(profile.name) / inputs.ENGINE
        write_json(path, TypeAdapter(Engine).dump_python(engine, mode="json"))
    return engine


def fitted(
    alone: Run, config: dict[str, object], probes: Probes, profile: Profile
) -> Engine | None:
    """The engine's constants that fit the workloads with a fixed concurrency; None if the model's
    shape is unknown."""
    shape, _ = read(config, *number_formats(profile.serving.args))
    if shape is None:
        return None
    known = rates(probes, profile, Spread())
    allowed = limits(profile, known.synchronous)
    return calibrate(
        [
            sample(
                shape,
                known,
                offered(each.workload),
                (each.ttft_s.median, each.tpot_s.median),
                allowed,
            )
            for each in alone.measured
            if each.workload.concurrency
        ]
    )


def layout_of(run: Run) -> Spread:
    """A run's layout, parsed from its provenance."""
    sizes = [int(number) for number in re.findall(r"\d+", run.provenance.layout)]
    return Spread(*sizes)
