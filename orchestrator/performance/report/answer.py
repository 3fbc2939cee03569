"""The first screen of a report: what limits, what to change, does clustering help. Pure.

Each sentence has figures with an interval, or says what is not known and how to find out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.performance.bench import history
from orchestrator.performance.predict.layout import Parallelism
from orchestrator.performance.predict.outlook import FORMULAS_HIGH, FORMULAS_LOW, Figure
from orchestrator.performance.predict.phase import Cause
from orchestrator.performance.predict.rank import SAME, Ranked, best
from orchestrator.performance.report.plots import Bar
from orchestrator.performance.report.story import FirstScreen, Phase, Sentence
from orchestrator.performance.results.bench import Measured, Run

LIMITS, CHANGE, HELPS = "What limits?", "What to change?", "Does clustering help?"
#: By phase: its latency, and what its time is.
LATENCIES = {
    "prefill": ("ttft_s", "until the first token"),
    "decode": ("tpot_s", "per output token"),
}
#: What halves each cause.
RELIEF = {
    Cause.COMPUTE: "Twice the arithmetic (a faster card, or a smaller number format)",
    Cause.MEMORY: "Twice the memory bandwidth (another card, or weights of half the size)",
    Cause.LINK_LATENCY: "Half the latency between the nodes",
    Cause.LINK_BANDWIDTH: "A link twice as fast between the nodes",
    Cause.SCHEDULING: "Scheduling in half the time (a faster core on the server)",
    Cause.HOST: "A host twice as fast (a faster core, or graphs instead of eager mode)",
    Cause.LONG_PREFILL: "Half of others' prompts in each step (a smaller max-num-batched-tokens)",
    Cause.BATCH_LIMIT: "Half the time in the queue (a higher max-num-seqs)",
}
MEASURED = "measured, with the lowest and highest repeat"
SCALED = "measured, by the ratio of both layouts' forecasts, with the forecast's interval"
#: A change, and its bar.
Option = tuple[Sentence, Bar]


@dataclass(frozen=True)
class Head:
    """What the answer is about: one load, and the phase in which most of a request's time goes."""

    found: Measured
    phase: str

    @property
    def what(self) -> str:
        return f"{LATENCIES[self.phase][1]}, {self.found.workload.name}"

    def of(self, found: Measured | Ranked) -> tuple[float, float, float]:
        """The phase's time with its interval, measured or forecast."""
        figure = getattr(found, LATENCIES[self.phase][0])
        value = figure.value if isinstance(figure, Figure) else figure.median
        return value, figure.low, figure.high

    @property
    def now(self) -> tuple[float, float, float]:
        return self.of(self.found)


def head(run: Run) -> Head | None:
    """One request alone where it was measured, else the first load."""
    alone = [each for each in run.measured if each.workload.concurrency == 1]
    for found in (*alone, *run.measured):
        further = (found.workload.output_tokens - 1) * found.tpot_s.median
        return Head(found, "decode" if further > found.ttft_s.median else "prefill")
    return None


def answer(
    run: Run,
    phases: Sequence[Phase],
    alone: Run | None,
    ranked: Sequence[Ranked],
    layout: Parallelism,
    lacks: str = "",
) -> FirstScreen:
    """The sentences and their picture. ``alone``: a run on one node; ``ranked``: forecasts of the
    head's load, by layout; ``lacks``: why no phase is explained."""
    top = head(run)
    if top is None:
        nothing = "Not known: nothing was measured."
        return FirstScreen(tuple(Sentence(each, nothing) for each in (LIMITS, CHANGE, HELPS)))
    mine = [each for each in phases if each.name == top.phase]
    phase = next((each for each in mine if each.workload == top.found.workload.name), None)
    now = Bar(f"now: {run.provenance.layout}", phase.parts if phase else {}, *top.now)
    helps, other = _helps(run, top, alone, ranked, layout)
    change, after = _change(run, top, phase, alone, ranked, layout)
    rows = [now, after, other if other != after else None]
    return FirstScreen(
        (_limits(top, phase, mine, lacks), change, helps), top.what, tuple(filter(None, rows))
    )


def times(value: float, low: float, high: float) -> str:
    """A time with its interval, in one unit: ``12.3 ms (11.9 to 13)``."""
    scale, unit = (1e3, "ms") if value < 1 else (1.0, "s")
    interval = f"{low * scale:.3g} to {high * scale:.3g}" if low < high else "no interval"
    return f"{value * scale:.3g} {unit} ({interval})"


def _limits(top: Head, phase: Phase | None, mine: Sequence[Phase], lacks: str) -> Sentence:
    whole = f"{times(*top.now)} {top.what}"
    if phase is None or phase.cause == Cause.UNEXPLAINED:
        why = phase.why if phase else lacks
        return Sentence(LIMITS, f"Not known. Measured: {whole}. {why}".strip(), MEASURED)
    text = f"{phase.cause[:1].upper()}{phase.cause[1:]}"
    if part := phase.parts.get(phase.cause):
        text += f": {part * 1e3:.3g} ms of {whole}"
    else:
        text += f", in {whole}"
    same = sum(each.cause == phase.cause for each in mine)
    text += f"; it limits {same} of {len(mine)} loads." if len(mine) > 1 else "."
    text += f" {phase.why}" if phase.counted else ""
    basis = "a counter names it" if phase.counted else "no counter shows it"
    rest = f"{phase.unexplained_s * 1e3:+.3g} ms unexplained"
    return Sentence(LIMITS, text, f"{MEASURED}; its part by the model ({rest}); {basis}")


def _change(
    run: Run,
    top: Head,
    phase: Phase | None,
    alone: Run | None,
    ranked: Sequence[Ranked],
    layout: Parallelism,
) -> tuple[Sentence, Bar | None]:
    """What was measured to be better comes first, then the larger forecast gain: another layout, or
    less of the cause."""
    for each in _rates(alone, run):
        if alone and each.workload == top.found.workload.name and each.significant and each.worse:
            other = next(x for x in alone.measured if x.workload == top.found.workload)
            now, then = (
                f"{x.median:.3g} tokens a second ({x.low:.3g} to {x.high:.3g})"
                for x in (top.found.output_tokens_per_s, other.output_tokens_per_s)
            )
            text = f"Serve on one node: {now} become {then}."
            return Sentence(CHANGE, text, f"measured: this run and {alone.id}"), None
    options = [each for each in (_relayout(top, ranked, layout), _relief(top, phase)) if each]
    if options:
        return min(options, key=lambda option: option[1].whole)
    text = "Not known: no remedy for a known cause, and no better layout is forecast."
    return Sentence(CHANGE, text), None


def _relief(top: Head, phase: Phase | None) -> Option | None:
    """The cause by half. In one of ten cases such a part is farther off than this interval."""
    if phase is None or phase.cause not in RELIEF or not phase.parts.get(phase.cause):
        return None
    now = top.now[0]
    part = min(phase.parts[phase.cause], now)
    saved, least = part / 2, part / 2 * FORMULAS_LOW
    most = min(part / 2 * FORMULAS_HIGH, now)
    after = (now - saved, now - most, now - least)
    text = (
        f"{RELIEF[Cause(phase.cause)]}: {now * 1e3:.3g} ms become {times(*after)}, "
        f"{saved / now:.0%} less ({least / now:.0%} to {most / now:.0%})."
    )
    row = Bar(
        f"with half of {phase.cause}",
        {**phase.parts, phase.cause: phase.parts[phase.cause] - saved},
        *after,
        told=True,
    )
    return Sentence(CHANGE, text, "forecast: that part of the model by half"), row


def _relayout(top: Head, ranked: Sequence[Ranked], layout: Parallelism) -> Option | None:
    """The layout with the shortest forecast."""
    other = best(ranked, lambda each: 1 / top.of(each)[0])
    found = _scaled(top, ranked, layout, other)
    if other is None or found is None or found.whole > top.now[0] * (1 - SAME):
        return None
    how = "on" if other.layout.one else "as"
    after = times(found.whole, found.low, found.high)
    text = f"Serve {how} {other.layout}: {top.now[0] * 1e3:.3g} ms become {after}."
    return Sentence(CHANGE, text, SCALED), found


def _scaled(
    top: Head, ranked: Sequence[Ranked], layout: Parallelism, other: Ranked | None
) -> Bar | None:
    """Another layout's time: what was measured of this one, by the ratio of both forecasts."""
    this = next((each for each in ranked if each.layout == layout), None)
    if this is None or other is None:
        return None
    scale = top.now[0] / top.of(this)[0]
    value, low, high = (each * scale for each in top.of(other))
    return Bar(str(other.layout), {}, value, low, high, told=True)


def _rates(alone: Run | None, run: Run) -> list[history.Change]:
    """By load, tokens a second on one node and on all."""
    changes = history.changes(alone, run) if alone else []
    return [each for each in changes if each.figure in history.RATES]


def _helps(
    run: Run, top: Head, alone: Run | None, ranked: Sequence[Ranked], layout: Parallelism
) -> tuple[Sentence, Bar | None]:
    """Measured, where the same load ran on one node; else forecast; else not known."""
    rates = _rates(alone, run)
    found = [each for each in rates if each.workload == top.found.workload.name] or rates
    if alone and found:
        ways = Counter(_way(each) for each in rates)
        told = ", ".join(f"{way} in {ways[way]}" for way in ("yes", "no", "not clear") if ways[way])
        text = (
            f"{_way(found[0]).capitalize()}: {found[0].after:.3g} tokens a second on all nodes, "
            f"{found[0].before:.3g} on one, {found[0].workload}. That is {found[0].size}."
        )
        text += f" Of {len(rates)} loads: {told}." if len(rates) > 1 else ""
        row = next((Bar("one node", {}, *top.of(each)) for each in alone.measured
                    if each.workload == top.found.workload), None)  # fmt: skip
        return Sentence(HELPS, text, f"measured: this run and {alone.id}"), row
    one = next((each for each in ranked if each.layout.one), None)
    several = [each for each in ranked if each.layout.data == 1 and not each.layout.one]
    other = best(several, lambda each: 1 / top.of(each)[0]) if layout.one else one
    bar = _scaled(top, ranked, layout, other)
    if bar is None or other is None:
        need = "Run: orchestrate bench run --against-one-node"
        return Sentence(HELPS, f"Not known: this load was not measured on one node. {need}"), None
    if not other.fit.runs:
        return Sentence(HELPS, f"Yes: on one device the model {other.fit}.", "sizes"), None
    now = top.now[0]
    alone_s, together_s = (now, bar.whole) if layout.one else (bar.whole, now)
    by = together_s / alone_s
    word = "No difference" if abs(by - 1) <= SAME else "Yes" if by < 1 else "No"
    text = f"{word}, by forecast: {now * 1e3:.3g} ms as it is, {other.layout} would take "
    text += f"{times(bar.whole, bar.low, bar.high)}. No run on one node was measured."
    return Sentence(HELPS, text, SCALED), bar


def _way(change: history.Change) -> str:
    if change.significant:
        return "no" if change.worse else "yes"
    return "not clear"
