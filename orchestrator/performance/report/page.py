"""Render a story as one HTML file that opens offline."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plotly.offline import get_plotlyjs

from orchestrator.core.templating import render
from orchestrator.performance.report import plots
from orchestrator.performance.report.plots import Cable, Lane, PlotCurve, Point, Roof, Span
from orchestrator.performance.report.score import score
from orchestrator.performance.report.story import Phase, Story
from orchestrator.performance.report.tables import phase_row, reasons
from orchestrator.performance.results.bench import Measured, Run, RunState, Series
from orchestrator.performance.results.probe import LinkRates, Probes, Spread

if TYPE_CHECKING:
    import plotly.graph_objects as go

TTFT, TPOT = "time to first token", "time per output token"


@dataclass(frozen=True)
class Drawn:
    """A plot on the page: its element's id, heading, and caption."""

    id: str
    title: str
    caption: str
    figure: go.Figure


def page(story: Story) -> str:
    """The HTML file's text."""
    drawn = list(_drawn(story))
    figures = {each.id: json.loads(each.figure.to_json()) for each in drawn}
    # Escape "</": it could end the <script> element.
    scores = score(story.run)
    embedded = json.dumps(figures, separators=(",", ":")).replace("</", "<\\/")
    return render(
        "report.html",
        run=story.run,
        complete=story.run.state is RunState.COMPLETE,
        verdict=story.verdict,
        compared=story.compared,
        phases=story.phases,
        drawn=drawn,
        forecasts=[phase_row(each) for each in scores.scored],
        not_scored=reasons(scores.unscored) if story.run.forecasts else [],
        rows=[_row(each) for each in story.run.measured],
        links=[_link(each) for each in story.probes.links] if story.probes else [],
        failed=story.probes.failed if story.probes else (),
        facts=_facts(story),
        figures=embedded,
        script=get_plotlyjs(),
    )


def milliseconds(spread: Spread | None) -> str:
    """A time as text, such as ``12.3 ms (11.9 to 13.0)``; empty for None."""
    if spread is None:
        return ""
    values = (f"{value * 1e3:.3g}" for value in (spread.median, spread.low, spread.high))
    return "{} ms ({} to {})".format(*values)


def bits(bytes_per_s: float) -> str:
    """A rate in bits per second as text, such as ``0.94 Gb/s``."""
    amount = bytes_per_s * 8
    for unit, name in ((1e9, "Gb/s"), (1e6, "Mb/s"), (1e3, "kb/s")):
        if amount >= unit:
            return f"{amount / unit:.3g} {name}"
    return f"{amount:.3g} b/s"


def _drawn(story: Story) -> Iterator[Drawn]:
    for number, phase in enumerate(story.phases):
        yield Drawn(
            f"phase-{number}",
            f"{phase.name} of {phase.workload}: {phase.cause}",
            "From the predicted parts to the measured time. Grey: unexplained.",
            plots.waterfall(phase.parts, phase.measured_s),
        )
    if story.probes and story.probes.devices:
        yield Drawn(
            "roofline",
            "Roofline",
            "Lines: limits of each node's device, from its probes. Points: the phases.",
            plots.roofline(list(_roofs(story.probes)), list(_points(story.phases))),
        )
    yield from _load_plots(story)
    if story.run.series:
        yield Drawn(
            "timeline",
            "All nodes over time",
            "Bars on top: when each workload ran, on the control node's clock.",
            _timeline(story.run),
        )
    if story.probes and story.probes.links:
        yield Drawn(
            "links",
            "Cables",
            "TCP throughput and one-way latency. Wider lines are faster.",
            _cables(story.probes),
        )


def _roofs(probes: Probes) -> Iterator[Roof]:
    for device in probes.devices:
        memory = device.memory_bytes_per_s.median
        for dtype, rate in device.matrix_flops_per_s.items():
            yield Roof(f"{device.node} {dtype}", memory, rate.median)


def _points(phases: Sequence[Phase]) -> Iterator[Point]:
    return (phase.point for phase in phases if phase.point)


def _load_plots(story: Story) -> Iterator[Drawn]:
    """A plot for the sweep over concurrency and one for the sweep over rates, each only if it has
    at least two points."""
    sweeps = {
        "concurrency": [each for each in story.run.measured if each.workload.rate is None],
        "rate": [each for each in story.run.measured if each.workload.rate is not None],
    }
    titles = {"concurrency": "requests at once", "rate": "requests a second"}
    for key, every in sweeps.items():
        found = _one_size(every, key)
        if len(found) < 2:
            continue
        x = [float(getattr(each.workload, key) or 0) for each in found]
        curves = [
            PlotCurve(TTFT, x, [_figure(each.ttft_s) for each in found]),
            PlotCurve(TPOT, x, [_figure(each.tpot_s) for each in found]),
        ]
        yield Drawn(
            f"load-{key}",
            f"Latency over {titles[key]}",
            "Medians over requests. Bars: lowest and highest repeat.",
            plots.latency_over_load(titles[key], curves, story.targets_s),
        )


def _one_size(measured: Sequence[Measured], key: str) -> list[Measured]:
    """The workloads with the most common prompt and output sizes, sorted by load."""
    sizes = [(each.workload.prompt_tokens, each.workload.output_tokens) for each in measured]
    common = max(sizes, key=sizes.count, default=None)
    chosen = [each for each, size in zip(measured, sizes, strict=True) if size == common]
    return sorted(chosen, key=lambda each: float(getattr(each.workload, key) or 0))


def _figure(spread: Spread) -> plots.Bar:
    return plots.Bar(spread.median, spread.low, spread.high)


def _timeline(run: Run) -> go.Figure:
    start = min((series.times[0] for series in run.series if series.times), default=0.0)
    lanes = [
        Lane(
            f"{series.node} {series.name}",
            series.unit,
            [time - start for time in series.times],
            series.values,
        )
        for series in _shown(run.series)
    ]
    spans = [
        Span(each.workload.name, window.start - start, window.end - start)
        for each in run.measured
        for window in each.windows
    ]
    return plots.timeline(lanes, spans)


def _shown(series: Sequence[Series]) -> list[Series]:
    """The series that are not always zero."""
    return [each for each in series if any(each.values)]


def _cables(probes: Probes) -> go.Figure:
    nodes = list(dict.fromkeys(name for link in probes.links for name in (link.a, link.b)))
    cables = [
        Cable(
            link.a,
            link.b,
            f"{link.network}<br>{bits(link.bytes_per_s.median)}, "
            f"{link.latency_s.median * 1e6:.0f} µs",
            link.bytes_per_s.median,
        )
        for link in probes.links
    ]
    return plots.cables(nodes, cables)


def _row(measured: Measured) -> dict[str, str]:
    workload = measured.workload
    goodput = measured.goodput_per_s
    return {
        "workload": workload.name,
        "load": workload.load,
        "tokens": f"{workload.prompt_tokens} in, {workload.output_tokens} out",
        TTFT: milliseconds(measured.ttft_s),
        TPOT: milliseconds(measured.tpot_s),
        "tokens a second": f"{measured.output_tokens_per_s.median:.4g}",
        "requests a second": f"{measured.requests_per_s.median:.3g}",
        "within the target": f"{goodput.median:.3g}/s" if goodput else "",
        "failed": str(measured.failed or ""),
    }


def _link(link: LinkRates) -> dict[str, str]:
    negotiated = ["?" if each is None else bits(each / 8) for each in link.negotiated_bits_per_s]
    return {
        "nodes": f"{link.a}, {link.b}",
        "network": link.network,
        "interfaces": ", ".join(link.interfaces),
        "negotiated": ", ".join(negotiated),
        "TCP": bits(link.bytes_per_s.median),
        "one way": f"{link.latency_s.median * 1e6:.1f} µs",
    }


def _facts(story: Story) -> Mapping[str, Any]:
    """The run's provenance, as rows of a table."""
    found = story.run.provenance
    return {
        "run": story.run.id,
        "profile": f"{found.profile} (sha256 {found.profile_sha256[:12]})",
        "image": found.image_id,
        "model": f"{found.model} {found.model_revision}".strip(),
        "layout": found.layout,
        "machine": found.machine,
        "probes": found.probes or "none",
        **found.versions,
        **{
            f"clock of {node}": f"{skew * 1e3:+.1f} ms" for node, skew in story.run.clocks_s.items()
        },
    }
