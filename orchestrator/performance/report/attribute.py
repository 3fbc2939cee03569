"""Make a report's content: each measured phase with its prediction and the counters meanwhile."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orchestrator.core.errors import UserError
from orchestrator.models.flags import number_formats
from orchestrator.performance.bench.history import (
    Earlier,
    changes,
    clusters_help,
    differences,
    regressions,
)
from orchestrator.performance.bench.load import offered
from orchestrator.performance.predict.explain import Evidence, Explained, NodeEvidence, explain
from orchestrator.performance.predict.forecast import asked, known_of
from orchestrator.performance.predict.layout import Parallelism
from orchestrator.performance.predict.load import Limits
from orchestrator.performance.predict.outlook import Known, outlook
from orchestrator.performance.predict.shape import ModelShape, read
from orchestrator.performance.report.plots import Point
from orchestrator.performance.report.story import Phase, Story
from orchestrator.performance.results.bench import Measured, Run, Series
from orchestrator.performance.results.engine import EngineRates
from orchestrator.performance.results.probe import Probes

if TYPE_CHECKING:
    from orchestrator.profile import Profile

#: Parts that no counter shows.
MODELLED = ("compute", "memory")


def story(
    run: Run,
    profile: Profile,
    config: dict[str, Any],
    layout: Parallelism,
    probes: Probes | None,
    engines: Sequence[EngineRates],
    earlier: Earlier,
) -> Story:
    """The content of a run's report. Without probes, nothing is explained, and a line says so."""
    alone = earlier.on_one_node
    compared = against_earlier(earlier.good, run) if earlier.good else ()
    wanted = run.asked.targets_ms if run.asked else {}
    helps = [f"Does clustering help? {line}" for line in clusters_help(alone, run)] if alone else []
    first = (*helps, fastest(run))
    plain = Story(run, first, probes, (), _targets(wanted), compared)
    if probes is None:
        text = "Not explained: there are no probes. Run: orchestrate probe"
        return replace(plain, verdict=(*plain.verdict, text))
    shape, unread = read(config, *number_formats(profile.serving.args))
    if shape is None:
        return replace(plain, verdict=(*plain.verdict, *unread))
    try:
        question = asked(profile, config, layout, probes, engines)
        known = known_of(question, layout, shape)
    except UserError as error:
        return replace(plain, verdict=(*plain.verdict, f"Not explained: {error.message}"))
    phases = tuple(
        phase for each in run.measured for phase in _phases(each, run.series, shape, known, probes)
    )
    told = [*first, *_causes(phases)]
    told += [f"Not predicted: {', '.join(unread)}"] if unread else []
    return replace(plain, verdict=tuple(told), phases=phases)


def _targets(wanted_ms: Mapping[str, float]) -> dict[str, float]:
    """Latency targets in seconds, by the latency's name in the report."""
    names = {"ttft": "time to first token", "tpot": "time per output token"}
    return {name: wanted_ms[key] / 1e3 for key, name in names.items() if key in wanted_ms}


def against_earlier(before: Run, run: Run) -> tuple[str, ...]:
    """What changed since a run, in lines; what became worse alone, if anything did."""
    worse = regressions(before, run)
    notable = [each.line for each in changes(before, run) if each.significant]
    same = [f"no significant change since {before.id}"] if not notable else []
    return tuple(worse or [*notable, *same, *differences(before, run)])


def fastest(run: Run) -> str:
    """The two figures that people ask for first."""
    single = [each for each in run.measured if each.workload.concurrency == 1]
    most = max(run.measured, key=lambda each: each.output_tokens_per_s.median, default=None)
    parts = []
    if single:
        speed = 1 / single[0].tpot_s.median if single[0].tpot_s.median else 0.0
        parts.append(f"{speed:.3g} tokens a second for one request")
    if most:
        parts.append(f"{most.output_tokens_per_s.median:.3g} for all at {most.workload.load}")
    return ", ".join(parts) or "Nothing was measured."


def _causes(phases: Sequence[Phase]) -> Iterator[str]:
    """A line for each cause, with all phases that have it."""
    by_cause: dict[tuple[str, str], list[str]] = {}
    for phase in phases:
        by_cause.setdefault((phase.name, phase.cause), []).append(phase.workload)
    for (name, cause), workloads in by_cause.items():
        yield f"{name}: {cause} ({', '.join(workloads)})"


def _phases(
    found: Measured,
    series: Sequence[Series],
    shape: ModelShape,
    known: Known,
    probes: Probes,
) -> Iterator[Phase]:
    workload = found.workload
    expected = outlook(known, offered(workload))
    seen = evidence(found, series, known.limits, probes)
    for prediction, measured in (
        (expected.prefill, found.ttft_s),
        (expected.decode, found.tpot_s),
    ):
        name = prediction.phase
        told = explain(measured.median, prediction, seen)
        yield Phase(
            workload=workload.name,
            name=name,
            measured_s=measured.median,
            parts={str(cause): each for cause, each in told.parts.shares().items() if each},
            unexplained_s=told.unexplained_s,
            cause=str(told.cause),
            why=f"{told.why[:1].upper()}{told.why[1:]} ({told.basis}).",
            modelled=MODELLED,
            point=_point(told, shape, workload.prompt_tokens),
            counted=told.basis == "measured",
        )


def _point(told: Explained, shape: ModelShape, prompt: int) -> Point | None:
    """The phase's point in the roofline plot."""
    tokens = prompt if told.phase == "prefill" else 1
    flops, weights = shape.flops(tokens, prompt / 2, 1), shape.bytes_read(tokens)
    if not told.measured_s or not weights:
        return None
    return Point(told.phase, flops / weights, flops / told.measured_s)


def evidence(
    found: Measured, series: Sequence[Series], allowed: Limits, probes: Probes
) -> Evidence:
    """The counters during a workload. Pure."""
    spans = [(window.start, window.end) for window in found.windows]
    by_node: dict[str, dict[str, float]] = {}
    for each in series:
        values = [
            value
            for time, value in zip(each.times, each.values, strict=True)
            if any(start <= time <= end for start, end in spans)
        ]
        if values:
            by_node.setdefault(each.node, {})[each.name] = statistics.fmean(values)
    devices = {device.node: device for device in probes.devices}
    speeds = {
        name: min(each.memory_bytes_per_s.median, max(each.matrix_flops_per_s.values(),
                  key=lambda rate: rate.median).median)
        for name, each in devices.items() if each.matrix_flops_per_s
    }  # fmt: skip
    middle = statistics.median(speeds.values()) if speeds else 0.0
    nodes = tuple(
        NodeEvidence(
            node=name,
            busy=_share(counted, "processors"),
            throttled=_share(counted, "quota"),
            stalled=_share(counted, "waiting for a processor"),
            speed=speeds[name] / middle if middle else None,
        )
        for name, counted in by_node.items()
        if name in speeds
    )
    server = next((each for each in by_node.values() if "vLLM num_requests_running" in each), {})
    return Evidence(
        nodes=nodes,
        links=_links(by_node, probes) or None,
        running=server.get("vLLM num_requests_running"),
        waiting=server.get("vLLM num_requests_waiting"),
        max_running=allowed.sequences,
        prefill_share=_prefill_share(found.engine),
    )


def _share(counted: Mapping[str, float], name: str) -> float | None:
    value = counted.get(name)
    return None if value is None else value / 100


def _links(by_node: Mapping[str, Mapping[str, float]], probes: Probes) -> dict[str, float]:
    """The used share of each link's probed rate, in its busier direction, by "NODE INTERFACE"."""
    fastest: dict[str, float] = {}
    for link in probes.links:
        for node, card in zip((link.a, link.b), link.interfaces, strict=True):
            key = f"{node} {card}"
            fastest[key] = max(fastest.get(key, 0.0), link.bytes_per_s.median)
    return {
        key: max(counted.get(f"{card} {way}", 0.0) for way in ("sent", "received")) / rate
        for key, rate in fastest.items()
        for node, _, card in [key.partition(" ")]
        if rate and (counted := by_node.get(node))
    }


def _prefill_share(engine: Mapping[str, float]) -> float | None:
    """The share of prompts in the computing time of requests, by vLLM's histograms."""
    prompts = engine.get("request_prefill_time_seconds_sum")
    answers = engine.get("request_decode_time_seconds_sum")
    if prompts is None or answers is None or prompts + answers <= 0:
        return None
    return prompts / (prompts + answers)
