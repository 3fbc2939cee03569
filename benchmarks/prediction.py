"""Prediction against measurement, and causes against bottlenecks that were built.

python benchmarks/prediction.py [--model NAME] [--only layouts|bottlenecks|sampling] [--json FILE]

On the simulated cluster: one node, tensor and pipeline parallel over two, each with the cables
throttled to several rates; a single stream, and several requests at once. The engine's constants
are fitted to one node alone, so nothing of two nodes is. Then a cable, a node, the batch, the
prompts and the processors are made the bottleneck, one at a time, and the cause that is named is
looked at. Last, what sampling costs. All on one machine, whose processors the nodes share.
Needs root and the image; takes about 40 minutes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import measure
import yaml
from measure import Goal, Report

from orchestrator import paths
from orchestrator.bench.against import fitted, served_as
from orchestrator.bench.attribute import story
from orchestrator.bench.results import Asked, Run, Scenario
from orchestrator.bench.run import bench, loaded
from orchestrator.bench.sample import sampling
from orchestrator.bring_up import up
from orchestrator.cluster import Cluster, open_cluster
from orchestrator.console import err
from orchestrator.errors import UserError
from orchestrator.machines import cgroup
from orchestrator.machines.switch import Switch
from orchestrator.predict.engine import Engine
from orchestrator.predict.layout import Layout
from orchestrator.predict.load import Load, limits, predict
from orchestrator.predict.phase import Cause
from orchestrator.predict.rates import rates, what_if
from orchestrator.predict.shape import read
from orchestrator.probe.results import Probes
from orchestrator.probe.run import Kind, probe
from orchestrator.profile import Profile, load
from orchestrator.progress import Board
from orchestrator.serving import Layout as Served
from orchestrator.take_down import down

BASE = "sim"
#: Of the cables, bits a second; None: as fast as they can.
RATES = (None, 10**9, 200 * 10**6, 50 * 10**6)
LAYOUTS = {
    "one node": Layout(1, 1), "tensor 2": Layout(2, 1), "pipeline 2": Layout(1, 2)
}  # fmt: skip
SINGLE = Scenario("single stream", 64, 16, 2, 1)
LOADED = Scenario("4 at once", 64, 16, 4, 4)
#: More, on one node, to tell the engine's costs apart.
FITTING = (
    SINGLE,
    LOADED,
    Scenario("long prompt", 192, 16, 2, 1),
    Scenario("2 at once", 16, 32, 4, 2),
)
#: Of what was measured, the share that a prediction may be off: by how many requests at once.
GOALS = {SINGLE.name: 0.15, LOADED.name: 0.25}
#: Of the bytes on a cable, what TCP's and Ethernet's heads leave.
PAYLOAD = 0.96
PARTS = ("layouts", "bottlenecks", "sampling")


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


@dataclass(frozen=True)
class Named:
    """A bottleneck that was built, and the cause that was named of a phase."""

    built: str
    phase: str
    wanted: tuple[str, ...]
    named: str
    why: str

    @property
    def right(self) -> bool:
        return self.named in self.wanted


@click.command(help=__doc__)
@click.option("--model", default="random-300m", show_default=True)
@click.option("--only", type=click.Choice(PARTS), multiple=True)
@measure.json_option
def prediction(model: str, only: tuple[str, ...], json_file: Path | None) -> None:
    measure.require_root("nodes are containers")
    chosen = only or PARTS
    report = Report("prediction", measure.versions({}))
    with (
        tempfile.TemporaryDirectory(prefix="prediction-") as scratch,
        served(profile_of(model, Path(scratch))) as cluster,
    ):
        lab = Lab(cluster)
        tables = []
        if "layouts" in chosen:
            found = list(lab.layouts())
            report.figures["phases"] = [asdict(each) | {"off": each.off} for each in found]
            report.goals += [goal(found, name, most) for name, most in GOALS.items()]
            tables.append(measure.table("seconds of a phase", PHASES, map(row, found)))
        if "bottlenecks" in chosen:
            built = list(lab.bottlenecks())
            report.figures["bottlenecks"] = [asdict(each) for each in built]
            wrong = sum(not each.right for each in built)
            report.goals.append(Goal(f"causes named wrongly of {len(built)}", wrong, 0))
            tables.append(measure.table("built bottlenecks", CAUSES, map(told, built)))
        if "sampling" in chosen:
            cost = lab.sampling()
            report.figures["sampling"] = cost
            report.goals.append(Goal("share of throughput that sampling costs", cost["lost"], 0.01))
    report.finish(tables, json_file)


PHASES = ("layout, cable, load, phase", "measured", "predicted", "off", "foreseen", "off")
CAUSES = ("built", "phase", "named", "right", "why")


def row(each: Compared) -> tuple[str, ...]:
    name = f"{each.layout}, {cable(each.bits_per_s)}, {each.load}, {each.phase}"
    values = (each.measured, each.predicted, each.off, each.foreseen, each.foreseen_off)
    texts = (
        f"{value:+.0%}" if number in (2, 4) else f"{value:.3f}"
        for number, value in enumerate(values)
    )
    return (name, *texts)


def told(each: Named) -> tuple[str, ...]:
    return (each.built, each.phase, each.named, "yes" if each.right else "NO", each.why)


def cable(bits_per_s: int | None) -> str:
    return f"{bits_per_s / 1e6:g} Mb/s" if bits_per_s else "unthrottled"


def goal(found: Sequence[Compared], name: str, most: float) -> Goal:
    """The median error of a load's phases; the table has each of them."""
    errors = [abs(each.off) for each in found if each.load == name]
    within = sum(error <= most for error in errors)
    return Goal(
        f"{name}: median error of a phase ({within} of {len(errors)} within {most:.0%})",
        statistics.median(errors),
        most,
    )


def profile_of(model: str, home: Path, **args: Any) -> Path:
    """The simulated cluster with another name and model, and further flags."""
    document = yaml.safe_load((paths.checkout() / f"profiles/{BASE}.yml").read_text())
    document["name"] = "prediction"
    document["serving"]["model"] = model
    document["serving"]["args"] |= args
    if not (paths.checkout() / "models" / model / "answers.json").is_file():
        # Each run begins with a verification; what it says is nonsense after a few words, too.
        document["verification"] |= {"repeats": 2, "max_tokens": 4}
    path = home / "prediction.yml"
    path.write_text(yaml.safe_dump(document))
    return path


@contextmanager
def served(profile: Path) -> Iterator[Cluster]:
    """The cluster serves for the body, and is down after it."""
    cluster = open_cluster(load(profile))
    try:
        with Board() as board:
            must(up(cluster, board))
        yield cluster
    finally:
        with Board(quiet=True) as board:
            down(cluster, board)


def must(done: Any) -> None:
    if done.failures:
        raise UserError("\n".join(map(str, done.failures.values())))


class Lab:
    """The cluster, and what is known of it so far."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.engine: Engine | None = None
        self.probes: Probes | None = None
        shape, unread = read(cluster.model.config, str(self.profile.serving.args["dtype"]))
        if shape is None:
            raise UserError("; ".join(unread))
        self.shape = shape

    @property
    def profile(self) -> Profile:
        return self.cluster.profile

    def layouts(self) -> Iterator[Compared]:
        """Each layout at each rate, in order: one node first, since the engine is fitted to it."""
        probes = {rate: self.probed(rate) for rate in RATES}
        for name, layout in LAYOUTS.items():
            with self.laid(layout) as cluster:
                if self.engine is None:
                    self.fit(cluster, probes[None])
                for rate in RATES:
                    with self.throttled(rate):
                        run = self.run(cluster, SINGLE, LOADED)
                    for found in self.compare(name, layout, rate, run, probes):
                        err.print("  " + ", ".join(row(found)))
                        yield found

    def compare(
        self, name: str, layout: Layout, rate: int | None, run: Run,
        probes: dict[int | None, Probes],
    ) -> Iterator[Compared]:  # fmt: skip
        known = rates(probes[rate], self.profile, layout, self.engine)
        plain = rates(probes[None], self.profile, layout, self.engine)
        foreseen = what_if(plain, link_bytes_per_s=rate / 8 * PAYLOAD) if rate else plain
        allowed = limits(self.profile, known.synchronous)
        for each in run.measured:
            asked = Load(
                each.scenario.prompt_tokens, each.scenario.output_tokens,
                each.scenario.concurrency or 1,
            )  # fmt: skip
            by_probe = predict(self.shape, layout, known, asked, allowed)
            by_rate = predict(self.shape, layout, foreseen, asked, allowed)
            for phase, figure in (("prefill", each.ttft_s), ("decode", each.tpot_s)):
                parts = by_probe[phase].parts.shares()
                yield Compared(
                    name, rate, each.scenario.name, phase, figure.median,
                    by_probe[phase].seconds, by_rate[phase].seconds,
                    {str(cause): value for cause, value in parts.items() if value},
                )  # fmt: skip

    def fit(self, cluster: Cluster, probes: Probes) -> None:
        alone = self.run(cluster, *FITTING)
        self.engine = fitted(alone, self.cluster.model.config, probes, self.cluster)
        err.print(f"  fitted: {self.engine}", markup=False)

    def bottlenecks(self) -> Iterator[Named]:
        """One at a time, on two nodes, tensor parallel."""
        if self.probes is None:
            self.probes = self.probed(None)
        if self.engine is None:
            with self.laid(LAYOUTS["one node"]) as cluster:
                self.fit(cluster, self.probes)
        plain = Scenario("plain", 64, 16, 4, 1)
        # Judged by probes of before: what is wrong has come since.
        with self.throttled(10 * 10**6):
            yield from self.named("cable of 10 Mb/s", plain, prefill=(Cause.LINK_BANDWIDTH,))
        with self.quota("compute1", 0.25):
            yield from self.named(
                "a quarter of a processor for compute1", plain,
                prefill=(Cause.SLOW_NODE,), decode=(Cause.SLOW_NODE,),
            )  # fmt: skip
        with busy(6):
            yield from self.named(
                "6 other programs want processors", plain,
                prefill=(Cause.HOST,), decode=(Cause.HOST,),
            )  # fmt: skip
        prompts = Scenario("prompts", 240, 8, 4, 4)
        yield from self.named("long prompts, short answers", prompts, decode=(Cause.LONG_PREFILL,))
        with self.flags(**{"max-num-seqs": 1}) as cluster:
            many = Scenario("many", 32, 16, 8, 8)
            yield from self.named(
                "one request at once of 8", many, prefill=(Cause.BATCH_LIMIT,), cluster=cluster
            )

    def named(
        self, built: str, scenario: Scenario, cluster: Cluster | None = None,
        **wanted: tuple[Cause, ...],
    ) -> Iterator[Named]:  # fmt: skip
        cluster = cluster or self.cluster
        run = self.run(cluster, scenario)
        layout = Layout(cluster.layout.tensor, cluster.layout.pipeline)
        found = story(
            run, cluster.profile, cluster.model.config, layout, self.probes, self.engine, None
        )
        for phase in found.phases:
            if phase.name in wanted:
                causes = tuple(map(str, wanted[phase.name]))
                each = Named(built, phase.name, causes, phase.cause, phase.why)
                err.print("  " + ", ".join(told(each)), markup=False)
                yield each

    def sampling(self) -> dict[str, float]:
        """Tokens a second with and without samplers, in turns; and the processor time they take."""
        scenario = replace(LOADED, requests=8)
        nodes = self.profile.nodes
        speeds: dict[bool, list[float]] = {True: [], False: []}
        for number in range(6):
            sampled = number % 2 == 0
            speeds[sampled].append(self.speed(scenario, sampled))
            err.print(f"  {'with' if sampled else 'without'} samplers: {speeds[sampled][-1]:.2f}")
        with self.cluster.driver.network(), sampling(self.cluster, nodes) as heard:
            begun, before = time.monotonic(), samplers_cpu()
            time.sleep(30)
            cpu = (samplers_cpu() - before) / (time.monotonic() - begun)
        middle = {key: statistics.median(values) for key, values in speeds.items()}
        return {
            "with": middle[True],
            "without": middle[False],
            "lost": 1 - middle[True] / middle[False],
            "spread": max(speeds[False]) / min(speeds[False]) - 1,
            "processors": cpu,
            "lines": float(sum(map(len, heard.lines.values()))),
        }

    def speed(self, scenario: Scenario, sampled: bool) -> float:
        """Tokens a second, by the client alone."""
        with self.cluster.driver.network():
            watching = sampling(self.cluster, self.profile.nodes) if sampled else nullcontext()
            with watching:
                found = loaded(self.cluster, Asked((scenario,), repeats=1), scenario, 1)
        return found.output_tokens_per_s.median

    def run(self, cluster: Cluster, *scenarios: Scenario) -> Run:
        with Board(quiet=True) as board:
            found = bench(cluster, board, Asked(scenarios, repeats=3, rates=False))
        if found.note:
            raise UserError(f"the run is {found.state}: {found.note}")
        return found

    def probed(self, rate: int | None) -> Probes:
        with self.throttled(rate), Board(quiet=True) as board:
            kinds = [Kind.DEVICE, Kind.LINK, Kind.COLLECTIVE]
            found = probe(self.cluster, board, kinds, self.profile.nodes, None)
        if found.failed:
            raise UserError("; ".join(f"{each.where}: {each.reason}" for each in found.failed))
        err.print(f"  probed: {cable(rate)}")
        if rate is None:
            self.probes = found
        return found

    @contextmanager
    def laid(self, layout: Layout) -> Iterator[Cluster]:
        """The model lies so for the body; not moved where it does already."""
        now = self.cluster.layout
        wanted = Served(layout.tensor, layout.pipeline, False, now.accelerators)
        if wanted == now:
            yield self.cluster
            return
        with Board(quiet=True) as board, served_as(self.cluster, board, wanted) as other:
            yield other

    @contextmanager
    def flags(self, **args: Any) -> Iterator[Cluster]:
        """The model is served with further flags for the body."""
        with tempfile.TemporaryDirectory(prefix="prediction-") as scratch:
            path = profile_of(self.profile.serving.model, Path(scratch), **args)
            other = open_cluster(load(path))
            try:
                with Board(quiet=True) as board:
                    must(up(other, board))
                yield other
            finally:
                with Board(quiet=True) as board:
                    must(up(self.cluster, board))

    @contextmanager
    def throttled(self, bits_per_s: int | None) -> Iterator[None]:
        switch = Switch(self.profile, f"{paths.APP}-{self.profile.name}")
        network = self.profile.ray.network
        try:
            for node in self.profile.compute_nodes:
                switch.throttle(node, network, bits_per_s)
            yield
        finally:
            for node in self.profile.compute_nodes:
                switch.throttle(node, network, None)

    @contextmanager
    def quota(self, node: str, processors: float) -> Iterator[None]:
        """A node has so much of a processor for the body."""
        name = f"{paths.APP}-{self.profile.name}-{node}"
        machine = paths.cluster(self.profile.name) / "machines" / node / "process.json"
        leader = int(json.loads(machine.read_text())["pid"])
        with limited(name, measure.descendants(leader, measure.parents()), processors):
            yield


@contextmanager
def limited(name: str, processes: set[int], processors: float) -> Iterator[None]:
    """The processes share so much of a processor for the body."""
    period = 100_000
    limit = int(processors * period)
    if found := sorted(cgroup.MOUNT.glob(f"**/*{name}*/cpu.max")):
        found[0].write_text(f"{limit} {period}")
        try:
            yield
        finally:
            found[0].write_text(f"max {period}")
        return
    group = cgroup.MOUNT / "cpu" / name  # the old kind, where containers have none of their own
    group.mkdir(exist_ok=True)
    try:
        (group / "cpu.cfs_quota_us").write_text(str(limit))
        move(processes, group)
        yield
    finally:
        (group / "cpu.cfs_quota_us").write_text("-1")
        while left := (group / "cgroup.procs").read_text().split():
            move(set(map(int, left)), group.parent)
        group.rmdir()


def move(processes: set[int], group: Path) -> None:
    """Into a control group; those that have ended are none."""
    for each in processes:
        with suppress(ProcessLookupError):
            (group / "cgroup.procs").write_text(str(each))


@contextmanager
def busy(programs: int) -> Iterator[None]:
    """So many programs compute for the body."""
    running = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(programs)
    ]
    try:
        yield
    finally:
        for each in running:
            each.kill()
            each.wait()


def samplers_cpu() -> float:
    """Seconds of processor time that all samplers have used so far."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            command = stat.with_name("cmdline").read_bytes()
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if b"GAUGES_OF" in command and b"-S" in command.split(b"\0"):
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    measure.start(prediction)
