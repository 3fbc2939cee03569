"""`orchestrate bench run`: verify the cluster, start samplers, run one workload after the other."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

from orchestrator.cluster.cluster import Cluster
from orchestrator.cluster.targets import published_models, verify_context
from orchestrator.core.errors import UserError
from orchestrator.core.progress import CLUSTER, Board
from orchestrator.node.paths import VENV
from orchestrator.performance import metrics
from orchestrator.performance.bench import history
from orchestrator.performance.bench.basis import basis
from orchestrator.performance.bench.load import (
    END,
    RESULT,
    check,
    command,
    counters,
    differences,
    measured,
)
from orchestrator.performance.bench.loads import loads
from orchestrator.performance.bench.lost_nodes import gone, told, watched
from orchestrator.performance.bench.sample import clocks, sampling, series
from orchestrator.performance.bench.seal import Basis
from orchestrator.performance.predict import inputs
from orchestrator.performance.predict.layout import Parallelism
from orchestrator.performance.results.bench import (
    Asked,
    Measured,
    Provenance,
    Run,
    RunState,
    Workload,
    layout_text,
)
from orchestrator.verify.everything import verify

#: Seconds for one workload: a cluster that does not answer would block it for ever.
LOAD_TIMEOUT = 3600.0
#: A warning is due if a clock moves by more than so many seconds: about a sample's interval.
CLOCK_MOVED = 0.5
MONOTONIC = "import time; print(time.time() - time.perf_counter())"
VERSIONS = (
    "import importlib.metadata as m, json, platform;"
    " print(json.dumps({n: m.version(n) for n in ('vllm', 'ray', 'torch')} |"
    " {'python': platform.python_version(), 'kernel': platform.release()}))"
)


def bench(cluster: Cluster, board: Board, asked: Asked, resumed: Run | None = None) -> Run:
    """Measure the requested workloads; with `resumed`, only those that it lacks.

    The run is saved before each workload, with its forecast, and after it. A lost node marks the
    run. Raises BadInput for an invalid workload, and UserError if the cluster fails its checks:
    figures of a cluster that may give wrong answers are worthless.
    """
    for workload in asked.workloads:
        check(workload, cluster.profile)
    _must_be_right(cluster, board)
    with cluster.driver.network():
        run = _begun(cluster, asked)
        return _sampled(cluster, board, history.goes_on(resumed, run) if resumed else run)


def _sampled(cluster: Cluster, board: Board, begun: Run) -> Run:
    """Run the workloads, with samplers on every node."""
    nodes = cluster.profile.nodes
    skews = clocks(cluster, nodes)
    run = replace(begun, clocks_s=skews)
    history.store(run)
    state, note = run.state, run.note
    with (
        sampling(cluster, nodes) as heard,
        watched(cluster, nodes, heard, lambda: _end_client(cluster)) as lost,
    ):
        try:
            for more in _loads(cluster, board, run):
                run = more
                history.store(run)
                if lost:
                    break
            else:
                warnings = (*run.warnings, *moved(skews, clocks(cluster, nodes)))
                run = replace(run, warnings=warnings)
                state, note = RunState.COMPLETE, ""
        except UserError as error:
            note = error.message.splitlines()[0]
            lost.update(gone(cluster, nodes, heard))
            if not lost:
                raise
        finally:
            if lost:
                state, note = RunState.MARKED, f"{told(lost)}; {note}"
            found = (*run.series, *series(heard.lines, skews))
            run = replace(run, state=state, note=note, series=found)
            history.store(run)
    return run


def moved(before: Mapping[str, float], after: Mapping[str, float]) -> tuple[str, ...]:
    """A warning for each node whose clock moved during the run."""
    changes = {name: after[name] - before[name] for name in before}
    return tuple(
        f"the clock of {name} moved by {change:+.2f} s: its series may be off by that"
        for name, change in changes.items()
        if abs(change) > CLOCK_MOVED
    )


def _loads(cluster: Cluster, board: Board, run: Run) -> Iterator[Run]:
    """Forecast and run one workload after the other; yield the run so far after each step."""
    asked = run.asked or Asked(())
    layout = Parallelism.of(cluster.layout)

    def now() -> Basis:
        return basis(cluster.profile, run.provenance, layout, cluster.model.config)

    def measure(workload: Workload) -> tuple[Measured, tuple[str, ...]]:
        with board.step(CLUSTER, workload.name) as step:
            found = loaded(cluster, asked, workload, int(time.time()))
            step.detail = f"{found.output_tokens_per_s.median:.4g} tokens/s"
            if found.failed:
                step.detail += f", {found.failed} requests failed"
        return found, ()

    return loads(run, now, measure)


def loaded(cluster: Cluster, asked: Asked, workload: Workload, seed: int) -> Measured:
    """Run one workload; call it in the cluster's network. Raises UserError without a result."""
    control = cluster.remote(cluster.profile.control)
    argv = command(
        cluster.profile, workload, cluster.endpoint,
        repeats=asked.repeats, seed=seed, targets_ms=asked.targets_ms,
    )  # fmt: skip
    before = counters(metrics.page(cluster))
    try:
        control.run(
            argv,
            what=f"the workload {workload.name!r}",
            stdin=cluster.trust.api_key.reveal() + "\n",
            timeout=LOAD_TIMEOUT,
        )
    except BaseException:
        _end_client(cluster)
        raise
    after = counters(metrics.page(cluster))
    clock = float(control.run([f"{VENV}/bin/python", "-c", MONOTONIC]).out)
    text = control.run(["cat", RESULT], what="the client's result").out
    try:
        found = differences(before, after)
        return measured(text, workload, asked.repeats, clock, found, asked.targets_ms)
    except (ValueError, KeyError) as error:
        raise UserError(
            f"the workload {workload.name!r} gave no figures: {error}",
            "The endpoint refused or aborted them. Run: orchestrate verify; orchestrate status",
        ) from None


def _end_client(cluster: Cluster) -> None:
    with suppress(UserError):
        cluster.remote(cluster.profile.control).run(["sh", "-c", END], ok=None)


def _must_be_right(cluster: Cluster, board: Board) -> None:
    with board.step(CLUSTER, "verify"):
        whole = cluster.whole
        report = verify(whole.profile, verify_context(whole, published_models(whole)))
        if not report.ok:
            first = report.failed[0]
            raise UserError(
                f"the cluster does not pass its checks: {first.name} of {first.node}: {first.seen}",
                "Nothing was measured. See all of them: orchestrate verify",
            )


def _begun(cluster: Cluster, asked: Asked) -> Run:
    profile = cluster.profile
    try:
        probed = inputs.probes(profile.name).time
    except UserError:
        probed = ""
    versions = json.loads(
        cluster.remote(profile.server).run([f"{VENV}/bin/python", "-c", VERSIONS]).out
    )
    return Run(
        id=datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ"),
        provenance=Provenance(
            profile=profile.name,
            profile_sha256=profile.sha256,
            profile_text=profile.path.read_text(encoding="utf-8"),
            image_id=cluster.image_id,
            versions=versions,
            model=profile.serving.model,
            model_revision=cluster.model.revision,
            layout=layout_text(*cluster.layout.sizes),
            probes=probed,
            machine=profile.machines,
        ),
        state=RunState.INTERRUPTED,
        note="it was interrupted",
        asked=asked,
    )
