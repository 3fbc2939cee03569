"""Render a story as one HTML file without scripts, which opens offline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.core.templating import render
from orchestrator.performance.bench.load import engine_times
from orchestrator.performance.predict.phase import Cause
from orchestrator.performance.report import plots
from orchestrator.performance.report.answer import LATENCIES, head, times
from orchestrator.performance.report.plots import Bar, Span
from orchestrator.performance.report.score import FIRST, FURTHER, Scored, score
from orchestrator.performance.report.story import Phase, Story
from orchestrator.performance.report.tables import phase_row, reasons, seconds
from orchestrator.performance.results.bench import Measured, RunState, Series
from orchestrator.performance.results.probe import LinkRates, Spread

#: So many loads are shown at once; the others fold.
SHOWN = 20
#: Points of a series that are drawn; of more, the highest of each stretch.
POINTS = 150
#: By phase, what it is on the page.
TITLES = {"prefill": "Until the first token", "decode": "Each further token"}

#: A heading, if there is one, and a plot.
Titled = tuple[str, str]


@dataclass(frozen=True)
class Panels:
    """Plots side by side under one heading. ``source``: where their figures come from; ``rest``:
    more plots of the same kind, folded; ``parts``: that the legend names; ``notes``: numbered."""

    title: str
    source: str
    plots: Sequence[Titled]
    rest: Sequence[Titled] = ()
    parts: Sequence[str] = ()
    notes: Sequence[str] = ()


def page(story: Story) -> str:
    """The HTML file's text."""
    run, rows = story.run, story.answer.rows
    scores = score(run)
    widest = max((max(each.high, each.whole) for each in rows), default=1.0)
    first = [replace(each, value=times(each.whole, each.low, each.high)) for each in rows]
    return render(
        "report.html",
        run=run,
        complete=run.state is RunState.COMPLETE,
        answer=story.answer,
        picture=plots.bars("answer", first, widest) if first else "",
        parts=_named([each.parts for each in rows]),
        verdict=story.verdict,
        compared=story.compared,
        phases=story.phases,
        groups=[*_parts(story), *_loads(story), *_forecasts(scores.scored), *_links(story),
                *_request(story)],
        forecasts=[phase_row(each) for each in scores.scored],
        not_scored=reasons(scores.unscored) if run.forecasts else [],
        rows=[_row(each) for each in run.measured],
        lanes=list(_lanes(run.series)),
        failed=story.probes.failed if story.probes else (),
        facts=_facts(story),
        patterns=plots.patterns(),
        swatch=plots.swatch,
    )  # fmt: skip


def bits(bytes_per_s: float) -> str:
    """A rate in bits per second as text, such as ``0.94 Gb/s``."""
    amount = bytes_per_s * 8
    for unit, name in ((1e9, "Gb/s"), (1e6, "Mb/s"), (1e3, "kb/s")):
        if amount >= unit:
            return f"{amount / unit:.3g} {name}"
    return f"{amount:.3g} b/s"


def _three(spread: Spread) -> tuple[float, float, float]:
    return spread.median, spread.low, spread.high


def _named(parts: Sequence[Mapping[str, float]]) -> list[str]:
    """The parts that the legend names."""
    there = {name for each in parts for name in each} | ({"unexplained"} if any(parts) else set())
    return [name for name in plots.PARTS if name in there]


def _small(
    title: str, name: str, rows: Sequence[Any], draw: Callable[[str, Sequence[Any]], str]
) -> tuple[list[Titled], list[Titled]]:
    """A plot of the first rows, and folded ones of the others."""
    starts = range(0, len(rows), SHOWN)
    drawn = [(title, draw(f"{name}-{n}", rows[n : n + SHOWN])) for n in starts]
    return drawn[:1], drawn[1:]


def _parts(story: Story) -> Iterator[Panels]:
    """The loads' times as parts, one column for each phase."""
    known = {(each.workload, each.name): each for each in story.phases}
    shown: list[Titled] = []
    rest: list[Titled] = []
    for phase, (key, _) in LATENCIES.items():
        rows = []
        for found in story.run.measured:
            told = known.get((found.workload.name, phase))
            value, low, high = _three(getattr(found, key))
            text = f"{seconds(value)}: {told.cause}" if told else seconds(value)
            parts = told.parts if told else {}
            rows += [Bar(found.workload.name, parts, value, low, high, value=text)] if value else []
        first, others = _small(TITLES[phase], phase, rows, plots.bars)
        shown, rest = shown + first, rest + others
    source = "Mark: the measured time, under it its lowest and highest repeat; each bar has its own"
    source += " scale. Parts: the model's, from probes." if story.phases else " scale."
    if shown:
        named = _named([each.parts for each in story.phases])
        yield Panels("Where the time goes", source, shown, rest, named)


def _loads(story: Story) -> Iterator[Panels]:
    """Latency and throughput over concurrency, and over rates, where there are two points."""
    drawn: list[Titled] = []
    for key, x_title in (("concurrency", "requests at once"), ("rate", "requests a second")):
        found = _one_size(story.run.measured, key)
        for name, figure, unit in (
            ("time to first token", "ttft_s", 1e-3),
            ("time per output token", "tpot_s", 1e-3),
            ("all tokens a second", "output_tokens_per_s", 1.0),
        ):
            target = (story.targets_s or {}).get(name, 0.0)
            title = f"{name}, ms" if unit < 1 else name
            points = {load: getattr(each, figure) for load, each in found.items()}
            if len(points) > 1:
                plot = plots.curve(f"{key}-{figure}", title, x_title, points, unit, target)
                drawn.append(("", plot))
    if drawn:
        source = "Measured: medians over requests, with the lowest and highest repeat."
        yield Panels("Latency against load", source, drawn)


def _one_size(measured: Sequence[Measured], key: str) -> dict[float, Measured]:
    """By load, the workloads with the most common prompt and output sizes."""
    swept = [each for each in measured if (each.workload.rate is None) == (key != "rate")]
    sizes = [(each.workload.prompt_tokens, each.workload.output_tokens) for each in swept]
    common = max(sizes, key=sizes.count, default=None)
    of_size = [each for each, size in zip(swept, sizes, strict=True) if size == common]
    by_load = {float(getattr(each.workload, key) or 0): each for each in of_size}
    return dict(sorted(by_load.items()))


def _forecasts(scored: Sequence[Scored]) -> Iterator[Panels]:
    columns = {title: [each for each in scored if each.phase == phase]
               for phase, title in zip((FIRST, FURTHER), TITLES.values(), strict=True)}  # fmt: skip
    drawn = [_small(title, f"forecast-{n}", rows, plots.beside)
             for n, (title, rows) in enumerate(columns.items())]  # fmt: skip
    inside = [each.inside for each in scored if each.inside is not None]
    source = (
        "Forecasts were sealed before the load ran. Grey: the forecast's interval. Circle: measured"
        f" inside it ({sum(inside)} of {len(inside)}). Diamond: outside, or there is no interval."
    )
    if scored:
        shown, rest = ([plot for each in drawn for plot in each[n]] for n in (0, 1))
        yield Panels("Forecast against measured", source, shown, rest)


def _links(story: Story) -> Iterator[Panels]:
    if story.probes and story.probes.links:
        source = (
            f"Measured by the probes of {story.probes.time}. A wider line is faster; a dashed one "
            "is slower than half of the fastest."
        )
        notes = [_link(each) for each in story.probes.links]
        yield Panels(
            "Links", source, [("", plots.cables("links", story.probes.links))], notes=notes
        )


def _request(story: Story) -> Iterator[Panels]:
    """One request, and one step of each of its phases on the nodes that work for it."""
    top = head(story.run)
    if top is None:
        return
    workload, first = top.found.workload, top.found.ttft_s.median
    further = (workload.output_tokens - 1) * top.found.tpot_s.median
    queue = min(first, engine_times(top.found.engine).get("queue", 0.0))
    spans = [
        Span("waiting in the queue", "batch limit", 0.0, queue),
        Span("prompt, until the first token", plots.WHOLE, queue, first),
        Span(f"{workload.output_tokens - 1} further tokens", plots.WHOLE, first, first + further),
    ]
    spans = [each for each in spans if each.end - each.start > 0.005 * first]
    shown = [("The request", plots.lanes("request", spans, first + further))]
    for phase in story.phases if story.stages else ():
        if phase.workload == workload.name:
            steps = list(_step(phase, story.stages))
            end = max(each.end for each in steps)
            shown.append((TITLES[phase.name], plots.lanes(f"step-{phase.name}", steps, end)))
    source = f"{workload.name}: measured times"
    source += (
        "; parts from the model. Computing and sending take turns: each part is drawn as one block."
        if len(shown) > 1
        else ". They are not split over nodes, since no phase is explained."
    )
    yield Panels("A request across the nodes", source, shown)


def _step(phase: Phase, stages: Sequence[Sequence[str]]) -> Iterator[Span]:
    """A step's parts, each where it is spent: the engine on the first node, the device's work on
    all nodes of a stage together and stage by stage, messages between them."""
    parts, server, at = phase.parts, stages[0][0], 0.0
    for part in (Cause.BATCH_LIMIT, Cause.LONG_PREFILL, Cause.SCHEDULING, Cause.ENGINE):
        if value := parts.get(part):
            yield Span(server, part, at, at + value)
            at += value
    for part in (Cause.HOST, Cause.COMPUTE, Cause.MEMORY):
        for stage in stages if parts.get(part) else ():
            end = at + parts[part] / len(stages)
            yield from (Span(node, part, at, end) for node in dict.fromkeys(stage))
            at = end
    for part in (Cause.LINK_LATENCY, Cause.LINK_BANDWIDTH):
        if value := parts.get(part):
            yield Span("between the nodes", part, at, at + value)
            at += value
    if phase.measured_s > at:
        yield Span("not known where", "unexplained", at, phase.measured_s)


def _lanes(series: Sequence[Series]) -> Iterator[str]:
    """What each node did over time, without what was always zero."""
    every = [time for each in series for time in (*each.times[:1], *each.times[-1:])]
    for each in series:
        if any(each.values):
            unit = f", {each.unit}" if each.unit else ""
            step = -(-len(each.times) // POINTS)
            starts = range(0, len(each.times), step)
            points = [(each.times[n] - min(every), max(each.values[n : n + step])) for n in starts]
            yield plots.trace(f"{each.node} {each.name}{unit}", points, max(every) - min(every))


def _row(measured: Measured) -> dict[str, str]:
    workload = measured.workload
    goodput = measured.goodput_per_s
    return {
        "workload": workload.name,
        "load": workload.load,
        "tokens": f"{workload.prompt_tokens} in, {workload.output_tokens} out",
        "time to first token": times(*_three(measured.ttft_s)),
        "time per output token": times(*_three(measured.tpot_s)),
        "tokens a second": f"{measured.output_tokens_per_s.median:.4g}",
        "requests a second": f"{measured.requests_per_s.median:.3g}",
        "within the target": f"{goodput.median:.3g}/s" if goodput else "",
        "failed": str(measured.failed or ""),
    }


def _link(link: LinkRates) -> str:
    rate, low, high = (bits(each) for each in _three(link.bytes_per_s))
    negotiated = ["?" if each is None else bits(each / 8) for each in link.negotiated_bits_per_s]
    return (
        f"{link.a}, {link.b}: TCP {rate} ({low} to {high}), {link.latency_s.median * 1e6:.1f} µs "
        f"one way. {link.network}, {', '.join(link.interfaces)}, negotiated {', '.join(negotiated)}"
    )


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
