"""Bottlenecks that were built, and the cause that is named of each; and what sampling costs.

python benchmarks/bottlenecks.py [--model NAME] [--json FILE]

On the simulated cluster, tensor parallel over two nodes: a cable, a node, the processors, the
prompts and the batch are made the bottleneck, one at a time. Then a load runs with samplers and
without, in turns. Needs root and the image; takes about a quarter of an hour.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import measure
from lab import LOADED, MODEL, Lab, busy, cable, served
from measure import Goal, Report

from orchestrator.cluster.cluster import Cluster
from orchestrator.core.console import err
from orchestrator.performance.bench.history import Earlier
from orchestrator.performance.bench.run import loaded
from orchestrator.performance.bench.sample import SAMPLER, sampling
from orchestrator.performance.predict.layout import Parallelism
from orchestrator.performance.predict.phase import Cause
from orchestrator.performance.report.attribute import story
from orchestrator.performance.results.bench import Asked, Workload
from orchestrator.performance.results.engine import EngineRates
from orchestrator.performance.results.probe import Probes

COLUMNS = ("built", "phase", "seconds", "predicted", "named", "right", "why")
PLAIN = Workload("plain", 64, 16, 2, 1)
#: One by one, so that each one's tokens wait for others' prompts: where all begin at once, none do.
PROMPTS = Workload("prompts", 128, 8, 16, rate=1.2)
MANY = Workload("many", 16, 8, 8, 8)
#: Turns with samplers, and as many without.
TURNS = 4
#: Of a processor, what is left for the slow node.
QUOTA = 0.4
#: Seconds in which the samplers' own processor time is counted.
COUNTED = 30.0


@dataclass(frozen=True)
class Named:
    """A bottleneck that was built, and the cause that was named of a phase."""

    built: str
    phase: str
    measured_s: float
    predicted_s: float
    wanted: str
    named: str
    why: str

    @property
    def right(self) -> bool:
        return self.named == self.wanted


@click.command(help=__doc__)
@click.option("--model", default=MODEL, show_default=True)
@measure.json_option
def bottlenecks(model: str, json_file: Path | None) -> None:
    measure.require_root("nodes are containers")
    report = Report("bottlenecks", measure.versions({}))
    with served(model) as cluster:
        lab = Lab(cluster)
        found = list(built(lab))
        cost = sampled(lab)
    wrong = sum(not each.right for each in found)
    report.figures = {"bottlenecks": [asdict(each) for each in found], "sampling": cost}
    report.goals = [
        Goal(f"causes named wrongly of {len(found)}", wrong, 0),
        Goal("share of the machine's processor time that sampling takes", cost["share"], 0.01),
    ]
    costs = measure.table("sampling", ("", "figure"), ((k, f"{v:.4g}") for k, v in cost.items()))
    tables = [measure.table("built bottlenecks", COLUMNS, map(row, found)), costs]
    report.finish(tables, json_file)


def row(each: Named) -> tuple[str, ...]:
    seconds = (f"{each.measured_s:.3f}", f"{each.predicted_s:.3f}")
    right = "yes" if each.right else "NO"
    return (each.built, each.phase, *seconds, each.named, right, each.why)


def built(lab: Lab) -> Iterator[Named]:
    """One at a time. What a cluster is, probes have seen; what comes with a load, they have not."""
    judge = Judge(lab, lab.probed(None), lab.engine())
    slow = 10 * 10**6
    there = replace(judge, probes=lab.probed(slow))
    with lab.throttled(slow):
        yield from there(f"cables of {cable(slow)}", PLAIN, prefill=Cause.LINK_BANDWIDTH)
    with lab.quota(lab.profile.compute_nodes[1], QUOTA):
        there = replace(judge, probes=lab.probed(None))
        node = Cause.SLOW_NODE
        name = f"{QUOTA:.0%} of a processor for compute1"
        yield from there(name, PLAIN, prefill=node, decode=node)
    with busy(6):
        yield from judge(
            "6 other programs want processors", PLAIN, prefill=Cause.HOST, decode=Cause.HOST
        )
    yield from judge("long prompts, short answers", PROMPTS, decode=Cause.LONG_PREFILL)
    with lab.flags(**{"max-num-seqs": 1}) as one:
        yield from judge("one request at once of 8", MANY, one, prefill=Cause.BATCH_LIMIT)


@dataclass(frozen=True)
class Judge:
    lab: Lab
    probes: Probes
    engine: EngineRates

    def __call__(
        self, name: str, workload: Workload, other: Cluster | None = None, **wanted: Cause
    ) -> Iterator[Named]:
        cluster = other or self.lab.cluster
        run = self.lab.run(cluster, workload)
        layout = Parallelism.of(cluster.layout)
        config, engines = cluster.model.config, (self.engine,)
        found = story(run, cluster.profile, config, layout, self.probes, engines, Earlier())
        for phase in found.phases:
            if phase.name in wanted:
                each = Named(
                    built=name,
                    phase=phase.name,
                    measured_s=phase.measured_s,
                    predicted_s=phase.measured_s - phase.unexplained_s,
                    wanted=str(wanted[phase.name]),
                    named=phase.cause,
                    why=phase.why,
                )
                err.print("  " + ", ".join(row(each)), markup=False)
                yield each


def sampled(lab: Lab) -> dict[str, float]:
    """Tokens a second with and without samplers, in turns; and the processor time they take."""
    workload = replace(LOADED, requests=8)
    speeds: dict[bool, list[float]] = {True: [], False: []}
    for number in range(2 * TURNS):
        samples = number % 2 == 0
        speeds[samples].append(speed(lab, workload, samples=samples))
        err.print(f"  {'with' if samples else 'without'} samplers: {speeds[samples][-1]:.2f}")
    with lab.cluster.driver.network(), sampling(lab.cluster, lab.profile.nodes):
        begun, before = time.monotonic(), samplers_cpu()
        time.sleep(COUNTED)
        used = (samplers_cpu() - before) / (time.monotonic() - begun)
    middle = {key: statistics.median(values) for key, values in speeds.items()}
    return {
        "tokens/s with": middle[True],
        "tokens/s without": middle[False],
        "lost": 1 - middle[True] / middle[False],
        "spread without": max(speeds[False]) / min(speeds[False]) - 1,
        "processors": used,
        "share": used / len(os.sched_getaffinity(0)),
    }


def speed(lab: Lab, workload: Workload, *, samples: bool) -> float:
    """Tokens a second."""
    watching = sampling(lab.cluster, lab.profile.nodes) if samples else nullcontext()
    with lab.cluster.driver.network(), watching:
        seed = int(time.time())  # no prompt is known from before
        found = loaded(lab.cluster, Asked((workload,), repeats=1), workload, seed)
    return found.output_tokens_per_s.median


def samplers_cpu() -> float:
    """Seconds of processor time that all samplers have used so far."""
    return sum(measure.cpu(pid) for pid in measure.parents() if is_sampler(pid))


def is_sampler(pid: int) -> bool:
    """Its program is one of its words; ssh has it too, as part of one."""
    with suppress(OSError):
        return SAMPLER.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return False


if __name__ == "__main__":
    measure.start(bottlenecks)
