"""`bench run` on a cluster that others run: verify it, watch it, load it, keep the run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.attach import endpoint as endpoints
from orchestrator.attach.facts import MachineFacts
from orchestrator.attach.samples import watching
from orchestrator.attach.verify import Looked, checks, look
from orchestrator.core import paths
from orchestrator.core.errors import UserError
from orchestrator.core.files import write_json
from orchestrator.core.progress import CLUSTER, Board
from orchestrator.performance.bench import client as clients
from orchestrator.performance.bench import history
from orchestrator.performance.bench.basis import basis
from orchestrator.performance.bench.load import (
    check,
)
from orchestrator.performance.bench.loads import loads
from orchestrator.performance.bench.seal import Basis
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
from orchestrator.profile.existing import Attached
from orchestrator.verify.report import Report

#: The gauge by which a restarted server shows; not one of vLLM's own.
STARTED = "process_start_time_seconds"
#: Versions that are kept with a run.
KEPT = ("vllm", "torch", "ray", "transformers")
#: The file with the speeds of links, which the cards say.
SPEEDS = "link-speeds.json"
#: How far a prompt's tokens may be off what was asked for, as a share.
LENGTH_OFF = 0.05


def bench(
    profile: Attached,
    board: Board,
    asked: Asked,
    resumed: Run | None = None,
    seen: Looked | None = None,
) -> Run:
    """Measure the workloads; with `resumed`, only those that it lacks. Each is kept when
    it ends, and its forecast before it starts.

    ``seen``: the cluster, if it was looked at already, and is measured even if a check failed.

    Raises BadInput for an invalid workload, UserError if the cluster fails its checks or gives no
    figures. A server that restarted marks the run.
    """
    for workload in asked.workloads:
        check(workload, profile)
    seen = seen or must_be_right(profile, board)
    begun = _begun(profile, asked, seen)
    run = history.goes_on(resumed, begun) if resumed else begun
    skews = {each.node.name: each.clock.offset for each in seen.nodes if each.clock}
    run = replace(run, clocks_s=skews)
    store(run, speeds(seen))
    answering = [each.node for each in seen.nodes if each.facts]
    with endpoints.client_of(profile) as client, watching(profile, answering) as watched:
        known = clients.vocabulary(client, profile.serving.model)
        before = started(endpoints.metrics_page(client))
        try:
            for more in _loads(profile, board, run, known):
                run = more
                store(run)
            run = replace(run, state=RunState.COMPLETE, note="")
        except UserError as error:
            run = replace(run, note=error.message.splitlines()[0])
            if started(endpoints.metrics_page(client)) == before:
                raise
        finally:
            if before and started(endpoints.metrics_page(client)) != before:
                run = replace(run, state=RunState.MARKED, note=f"vLLM restarted; {run.note}")
            if not known:
                text = "the endpoint takes no tokens as prompts: they are words of unknown length"
                run = replace(run, warnings=(*run.warnings, text))
            run = replace(run, series=(*run.series, *watched.series(skews)))
            store(run)
    return run


def speeds(seen: Looked) -> dict[str, float]:
    """Bytes per second of the nodes' links, by "NODE CARD", where the cards say so."""
    return {
        f"{each.node.name} {link.interface}": link.speed * 1e6 / 8
        for each in seen.nodes
        if each.facts
        for link in each.facts.addresses
        if link.speed
    }


def kept_speeds(cluster: str) -> dict[str, float]:
    """The speeds of the newest run's links; none where there was none."""
    try:
        found = json.loads((paths.measured(cluster) / SPEEDS).read_text())
        return {str(name): float(speed) for name, speed in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def must_be_right(profile: Attached, board: Board) -> Looked:
    """What was seen of a cluster that passes its checks. Raises UserError for another one."""
    with board.step(CLUSTER, "verify"):
        seen = look(profile, profile.nodes)
        report = Report(tuple(checks(profile, seen, whole=True)))
        if not report.ok:
            first = report.failed[0]
            raise UserError(
                f"the cluster does not pass its checks: {first.name} of {first.node}: {first.seen}",
                "Nothing was measured. See all of them: orchestrate verify",
            )
    return seen


def own_home(cluster: str) -> Path:
    """The directory of what is kept of a cluster, for its owner only. Raises OSError."""
    home = paths.cluster(cluster)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    return home


def store(run: Run, links: dict[str, float] | None = None) -> None:
    """Keep a run, and the links' speeds. Raises UserError where that cannot be."""
    try:
        own_home(run.provenance.profile)
        history.store(run)
        if links is not None:
            write_json(paths.measured(run.provenance.profile) / SPEEDS, links)
    except OSError as error:
        raise UserError(
            f"the run cannot be kept: {error.filename or ''}: {error.strerror}",
            "Set ORCHESTRATE_STATE to a directory that you may write to.",
        ) from None


def started(page: str) -> str:
    """When the server was started, as its metrics say; empty where they do not."""
    lines = [line for line in page.splitlines() if line.startswith(f"{STARTED} ")]
    return lines[0] if lines else ""


def _loads(profile: Attached, board: Board, run: Run, known: Sequence[int]) -> Iterator[Run]:
    """Forecast and run one workload after the other; yield the run so far after each step."""
    serving = profile.serving
    layout = Parallelism(serving.tensor_parallel, serving.pipeline_parallel, serving.data_parallel)

    def now() -> Basis:
        return basis(profile, run.provenance, layout)

    def measure(workload: Workload) -> tuple[Measured, tuple[str, ...]]:
        with board.step(CLUSTER, workload.name) as step:
            found, notes = loaded(profile, run.asked or Asked(()), workload, known)
            step.detail = f"{found.output_tokens_per_s.median:.4g} tokens/s"
            if found.failed:
                step.detail += f", {found.failed} requests failed"
        return found, tuple(notes)

    return loads(run, now, measure)


def loaded(
    profile: Attached, asked: Asked, workload: Workload, known: Sequence[int]
) -> tuple[Measured, list[str]]:
    """Run one workload; its figures, and warnings. Raises UserError without figures."""
    with endpoints.client_of(profile) as client:
        found, timed = clients.loaded(
            endpoints.for_load(profile),
            lambda: endpoints.metrics_page(client),
            profile.serving.model,
            workload,
            known,
            asked,
        )
    return found, list(_notes(workload, timed))


def _notes(workload: Workload, timed: clients.Timed) -> list[str]:
    counted = [each for each in timed.prompts if each]
    notes = []
    if counted:
        mean = sum(counted) / len(counted)
        if abs(mean - workload.prompt_tokens) > LENGTH_OFF * workload.prompt_tokens + 2:
            wanted = workload.prompt_tokens
            notes.append(f"{workload.name}: prompts had {mean:.0f} tokens, {wanted} were meant")
    return notes


def _begun(profile: Attached, asked: Asked, seen: Looked) -> Run:
    facts: list[MachineFacts] = [each.facts for each in seen.nodes if each.facts]
    versions = {name: v for each in facts for name, v in each.versions.items() if name in KEPT}
    said = seen.said
    if said and said.version:
        versions.setdefault("vllm", said.version)
    if facts:
        versions["kernel"] = facts[0].kernel
    serving = profile.serving
    layout = layout_text(serving.tensor_parallel, serving.pipeline_parallel, serving.data_parallel)
    return Run(
        id=datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ"),
        provenance=Provenance(
            profile=profile.name,
            profile_sha256=profile.sha256,
            profile_text=profile.path.read_text(encoding="utf-8"),
            image_id="",
            versions=versions,
            model=serving.model,
            model_revision=said.roots.get(serving.model, "") if said else "",
            layout=layout
            + (f", data {serving.data_parallel}" if serving.data_parallel > 1 else ""),
            probes="",
            machine=profile.machines,
        ),
        state=RunState.INTERRUPTED,
        note="it was interrupted",
        asked=asked,
    )
