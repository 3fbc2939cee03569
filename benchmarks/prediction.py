"""Prediction against measurement, phase by phase.

python benchmarks/prediction.py [--model NAME] [--json FILE]

On the simulated cluster: one node, and tensor and pipeline parallel over two, these with the cables
throttled to several rates; a single stream, and several requests at once. The engine's constants
are fitted to one node alone, so nothing of two nodes is. All on one machine, whose processors the
nodes share. Needs root and the image; takes about half an hour.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import measure
from lab import LOADED, MODEL, ONE_NODE, PIPELINE, SINGLE, TENSOR, Lab, cable, served
from measure import Goal, Report

from orchestrator.core.console import err
from orchestrator.performance.predict.engine import Engine
from orchestrator.performance.predict.layout import Parallelism
from orchestrator.performance.predict.load import OfferedLoad, limits, predict
from orchestrator.performance.predict.rates import rates, what_if
from orchestrator.performance.results.bench import Run, Workload
from orchestrator.performance.results.probe import Probes

#: Of the cables, bits a second; None: as fast as they can.
RATES = (None, 10**9, 200 * 10**6, 50 * 10**6)
LAYOUTS = {"one node": ONE_NODE, "tensor 2": TENSOR, "pipeline 2": PIPELINE}
#: Of what was measured, the share that a prediction may be off: by the load.
GOALS = {SINGLE.name: 0.15, LOADED.name: 0.25}
#: Of the bytes on a cable, what TCP's and Ethernet's heads leave.
PAYLOAD = 0.96
COLUMNS = ("layout, cable, load, phase", "measured", "predicted", "off", "foreseen", "off")


@dataclass(frozen=True)
class Compared:
    """A phase, in seconds. ``foreseen``: predicted from the probes of unthrottled cables, with the
    cable's rate put in; ``parts``: of ``predicted``."""

    layout: str
    bits_per_s: int | None
    load: str
    phase: str
    measured: float
    predicted: float
    foreseen: float
    parts: dict[str, float]

    @property
    def off(self) -> float:
        return self.predicted / self.measured - 1

    @property
    def foreseen_off(self) -> float:
        return self.foreseen / self.measured - 1


@click.command(help=__doc__)
@click.option("--model", default=MODEL, show_default=True)
@measure.json_option
def prediction(model: str, json_file: Path | None) -> None:
    measure.require_root("nodes are containers")
    report = Report("prediction", measure.versions({}))
    with served(model) as cluster:
        found = list(layouts(Lab(cluster)))
    report.figures = {"phases": [asdict(each) | {"off": each.off} for each in found]}
    report.goals = [goal(found, name, most) for name, most in GOALS.items()]
    report.finish([measure.table("seconds of a phase", COLUMNS, map(row, found))], json_file)


def row(each: Compared) -> tuple[str, ...]:
    name = f"{each.layout}, {cable(each.bits_per_s)}, {each.load}, {each.phase}"
    values = (each.measured, each.predicted, each.off, each.foreseen, each.foreseen_off)
    texts = (
        f"{value:+.0%}" if number in (2, 4) else f"{value:.3f}"
        for number, value in enumerate(values)
    )
    return (name, *texts)


def goal(found: Sequence[Compared], name: str, most: float) -> Goal:
    """The median error of a load's phases; the table has each of them."""
    errors = [abs(each.off) for each in found if each.load == name]
    within = sum(error <= most for error in errors)
    return Goal(
        f"{name}: median error of a phase ({within} of {len(errors)} within {most:.0%})",
        statistics.median(errors),
        most,
    )


def layouts(lab: Lab) -> Iterator[Compared]:
    """Each layout at each rate. The engine is fitted to one node first."""
    probes = {rate: lab.probed(rate) for rate in RATES}
    alone = lab.alone(probes[None])
    err.print(f"  alone: {alone.devices[0]}", markup=False)
    engine = lab.fit(alone)
    for name, layout in LAYOUTS.items():
        with lab.laid(layout) as cluster:
            for rate in RATES if layout.ranks > 1 else RATES[:1]:
                with lab.throttled(rate):
                    run = lab.run(cluster, SINGLE, LOADED)
                known = Known(probes[rate], probes[None], alone)
                for found in compare(lab, (name, layout), rate, run, known, engine):
                    err.print("  " + ", ".join(row(found)))
                    yield found


@dataclass(frozen=True)
class Known:
    """Probes with the cable as it is, and as it was; ``alone``: of a device while others rest."""

    now: Probes
    before: Probes
    alone: Probes

    def of(self, layout: Parallelism, workload: Workload) -> tuple[Probes, Probes]:
        """Now and before, with devices as busy as the layout has them: a pipeline with one request
        has one at work, as one node has."""
        if layout.tensor > 1 or (layout.pipeline > 1 and workload.concurrency != 1):
            return self.now, self.before
        devices = self.alone.devices
        return replace(self.now, devices=devices), replace(self.before, devices=devices)


def compare(
    lab: Lab,
    laid: tuple[str, Parallelism],
    rate: int | None,
    run: Run,
    probes: Known,
    engine: Engine,
) -> Iterator[Compared]:
    name, layout = laid
    for each in run.measured:
        workload = each.workload
        now, before = probes.of(layout, workload)
        known = rates(now, lab.profile, layout, engine)
        plain = rates(before, lab.profile, layout, engine)
        foreseen = what_if(plain, link_bytes_per_s=rate / 8 * PAYLOAD) if rate else plain
        allowed = limits(lab.profile, known.synchronous)
        asked = OfferedLoad(
            workload.prompt_tokens, workload.output_tokens, workload.concurrency or 1
        )
        by_probe = predict(lab.shape, layout, known, asked, allowed)
        by_rate = predict(lab.shape, layout, foreseen, asked, allowed)
        for phase, figure in (("prefill", each.ttft_s), ("decode", each.tpot_s)):
            parts = by_probe[phase].parts.shares()
            yield Compared(
                layout=name,
                bits_per_s=rate,
                load=workload.name,
                phase=phase,
                measured=figure.median,
                predicted=by_probe[phase].seconds,
                foreseen=by_rate[phase].seconds,
                parts={str(cause): value for cause, value in parts.items() if value},
            )


if __name__ == "__main__":
    measure.start(prediction)
