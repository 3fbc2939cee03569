"""`orchestrate bench run`: a verified cluster, samplers on every node, one load after the other."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from orchestrator.bench import history
from orchestrator.bench.load import (
    END,
    RESULT,
    check,
    command,
    counters,
    differences,
    measured,
    rate_scenarios,
)
from orchestrator.bench.results import Measured, Provenance, Run, Scenario, Series, State
from orchestrator.bench.sample import Lines, clocks, sampling, series
from orchestrator.cluster import Cluster
from orchestrator.errors import UserError
from orchestrator.machines import PowerState, power_states
from orchestrator.node_paths import VENV
from orchestrator.predict import inputs
from orchestrator.progress import CLUSTER, Board
from orchestrator.served_model import published
from orchestrator.verify.everything import verify

#: Seconds for one load; a cluster that answers nothing would hold it up for ever.
LOAD_TIMEOUT = 3600.0
#: Prints a page of vLLM's metrics; its own node may ask.
FETCH = (
    "import sys, urllib.request as u;"
    " print(u.build_opener(u.ProxyHandler({})).open(sys.argv[1], timeout=10).read().decode())"
)
MONOTONIC = "import time; print(time.time() - time.perf_counter())"
VERSIONS = (
    "import importlib.metadata as m, json, platform;"
    " print(json.dumps({n: m.version(n) for n in ('vllm', 'ray', 'torch')} |"
    " {'python': platform.python_version(), 'kernel': platform.release()}))"
)


@dataclass(frozen=True)
class Asked:
    """What the user wants measured. ``targets_ms``: by ttft, tpot, e2el, for goodput."""

    scenarios: Sequence[Scenario]
    repeats: int = 3
    rates: bool = True
    targets_ms: Mapping[str, float] | None = None


def bench(cluster: Cluster, board: Board, asked: Asked, resumed: Run | None = None) -> Run:
    """Measure; what is finished is stored after each load.

    Raises UserError where the cluster does not pass its checks: no figures from a stack that may
    give wrong answers. A lost node marks the run. Interrupted, what was finished is kept.
    """
    for scenario in asked.scenarios:
        check(scenario, cluster.profile)
    _must_be_right(cluster, board)
    with cluster.driver.network():
        run = resumed or _begun(cluster)
        done = {each.scenario.name for each in run.measured}
        left = [each for each in asked.scenarios if each.name not in done]
        nodes = cluster.profile.nodes
        skews = clocks(cluster, nodes)
        run = replace(run, clocks_s=skews, state=State.INTERRUPTED, note="it was interrupted")
        history.store(run)
        with sampling(cluster, nodes) as lines:
            try:
                run = _loads(cluster, board, asked, run, left)
                if asked.rates and run.state is not State.MARKED:
                    more = [each for each in rate_scenarios(run.measured) if each.name not in done]
                    run = _loads(cluster, board, asked, run, more)
                if run.state is not State.MARKED:
                    run = replace(run, state=State.COMPLETE, note="")
            finally:
                if run.state is State.INTERRUPTED:  # what was stored after the last load
                    run = history.load(cluster.profile.name, run.id)
                run = replace(run, series=(*run.series, *_seen(lines, skews)))
                history.store(run)
    return run


def _seen(lines: Lines, skews: Mapping[str, float]) -> tuple[Series, ...]:
    return series({node: list(each) for node, each in lines.items()}, skews)


def _loads(
    cluster: Cluster, board: Board, asked: Asked, run: Run, scenarios: Sequence[Scenario]
) -> Run:
    """One load after the other; stored after each."""
    for number, scenario in enumerate(scenarios):
        try:
            with board.step(CLUSTER, scenario.name) as step:
                found = _one(cluster, asked, scenario, int(time.time()) + number)
                step.detail = f"{found.output_tokens_per_s.median:.4g} tokens/s"
        except UserError as error:
            lost = _lost(cluster)
            if not lost:
                raise
            note = f"{', '.join(lost)} was lost in {scenario.name!r}: {error.message}"
            return replace(run, state=State.MARKED, note=note.splitlines()[0])
        run = replace(run, measured=(*run.measured, found))
        if lost := _lost(cluster):
            return replace(run, state=State.MARKED, note=f"{', '.join(lost)} was lost")
        history.store(run)
    return run


def _one(cluster: Cluster, asked: Asked, scenario: Scenario, seed: int) -> Measured:
    control = cluster.remote(cluster.profile.control)
    targets = asked.targets_ms or {}
    argv = command(
        cluster.profile, scenario, cluster.endpoint,
        repeats=asked.repeats, seed=seed, targets_ms=targets,
    )  # fmt: skip
    before = counters(_metrics(cluster))
    try:
        control.run(
            argv,
            what=f"the load {scenario.name!r}",
            stdin=cluster.trust.api_key.reveal() + "\n",
            timeout=LOAD_TIMEOUT,
        )
    except BaseException:
        with suppress(UserError):
            control.run(["sh", "-c", END], ok=None)
        raise
    after = counters(_metrics(cluster))
    clock = float(control.run([f"{VENV}/bin/python", "-c", MONOTONIC]).out)
    text = control.run(["cat", RESULT], what="the client's result").out
    try:
        found = differences(before, after)
        return measured(text, scenario, asked.repeats, clock, found, targets)
    except (ValueError, KeyError) as error:
        raise UserError(
            f"the load {scenario.name!r} gave no figures: {error}",
            "The endpoint refused it, or broke off: orchestrate verify; orchestrate status",
        ) from None


def _metrics(cluster: Cluster) -> str:
    profile = cluster.profile
    url = f"http://{profile.ray_address(profile.server)}:{profile.serving.port}/metrics"
    argv = [f"{VENV}/bin/python", "-c", FETCH, url]
    return cluster.remote(profile.server).run(argv, what="vLLM's metrics").out


def _lost(cluster: Cluster) -> list[str]:
    states = power_states(cluster.driver, cluster.profile.nodes)
    return [name for name, state in states.items() if state is PowerState.OFF]


def _must_be_right(cluster: Cluster, board: Board) -> None:
    with board.step(CLUSTER, "verify"):
        files = published(cluster.profile.name, cluster.profile.serving.model)
        report = verify(cluster.profile, cluster.verify_context(files))
        if not report.ok:
            first = report.failed[0]
            raise UserError(
                f"the cluster does not pass its checks: {first.name} of {first.node}: {first.seen}",
                "Nothing was measured. See all of them: orchestrate verify",
            )


def _begun(cluster: Cluster) -> Run:
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
            layout=f"tensor {cluster.layout.tensor}, pipeline {cluster.layout.pipeline}",
            probes=probed,
            machine=profile.machines,
        ),
        state=State.INTERRUPTED,
        note="it was interrupted",
    )
