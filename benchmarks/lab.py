"""The simulated cluster as a laboratory: cables, quotas and neighbours are set at will."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import measure
import yaml

from orchestrator.cluster.cluster import Cluster, open_cluster
from orchestrator.cluster.down import down
from orchestrator.cluster.up import up
from orchestrator.core import paths
from orchestrator.core.console import err
from orchestrator.core.errors import UserError
from orchestrator.core.progress import Board
from orchestrator.models.flags import number_formats
from orchestrator.models.profiles import load
from orchestrator.performance.bench.run import bench
from orchestrator.performance.bench.served import live
from orchestrator.performance.predict.shape import read
from orchestrator.performance.probe.run import Kind, probe, store
from orchestrator.performance.results.bench import Asked, Run, Workload
from orchestrator.performance.results.engine import EngineRates
from orchestrator.performance.results.probe import Probes
from orchestrator.profile import Node, Profile
from orchestrator.provision.machines import cgroup
from orchestrator.provision.machines.network import Cables

BASE = "sim"
#: One that computes for so long that messages and scheduling are not all there is.
MODEL = "random-300m"
SINGLE = Workload("single stream", 32, 16, 6, 1)
#: Several rounds: in the first one the engine begins with one prompt alone.
LOADED = Workload("4 at once", 32, 16, 16, 4)


def cable(bits_per_s: int | None) -> str:
    return f"{bits_per_s / 1e6:g} Mb/s" if bits_per_s else "unthrottled"


@contextmanager
def opened(model: str, **args: Any) -> Iterator[Cluster]:
    """The simulated cluster with another name and model, and further flags of `vllm serve`."""
    document = yaml.safe_load((paths.checkout() / f"profiles/{BASE}.yml").read_text())
    document["name"] = "lab"
    document["serving"]["model"] = model
    document["serving"]["args"] |= args
    if not (paths.checkout() / "models" / model / "answers.json").is_file():
        # Each run begins with a verification; what it says is nonsense after a few words, too.
        document["verification"] |= {"repeats": 2, "max_tokens": 4}
    with tempfile.TemporaryDirectory(prefix="lab-") as scratch:
        path = Path(scratch, "lab.yml")
        path.write_text(yaml.safe_dump(document))
        yield open_cluster(load(path))


@contextmanager
def served(model: str) -> Iterator[Cluster]:
    """It serves for the body, and is down after it."""
    with opened(model) as cluster:
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
        shape, unread = read(cluster.model.config, *number_formats(self.profile.serving.args))
        if shape is None:
            raise UserError("; ".join(unread))
        self.shape = shape

    @property
    def profile(self) -> Profile:
        return self.cluster.profile

    @property
    def cables(self) -> Cables:
        return self.cluster.driver.cables

    def run(self, cluster: Cluster, *workloads: Workload) -> Run:
        with Board(quiet=True) as board:
            found = bench(cluster, board, Asked(workloads, repeats=2, rates=False))
        if found.note:
            raise UserError(f"the run is {found.state}: {found.note}")
        return found

    def engine(self) -> EngineRates:
        """The engine that serves, under small loads: what the cluster is, before it is changed."""
        store(self.probed(None), whole=True)
        with Board(quiet=True) as board:
            found, _ = live(self.cluster, board, 300, again=True)
        return found

    def probed(self, rate: int | None) -> Probes:
        """Devices, all at once, links and the collective, at a cable's rate."""
        kinds = [Kind.DEVICE, Kind.LINK, Kind.COLLECTIVE]
        with self.throttled(rate), Board(quiet=True) as board:
            found = probe(self.cluster, board, kinds, self.profile.nodes, None)
        if found.failed:
            raise UserError("; ".join(f"{each.where}: {each.reason}" for each in found.failed))
        err.print(f"  probed: {cable(rate)}")
        return found

    @contextmanager
    def flags(self, **args: Any) -> Iterator[Cluster]:
        """The model is served with further flags for the body."""
        with opened(self.profile.serving.model, **args) as other:
            try:
                with Board(quiet=True) as board:
                    must(up(other, board))
                yield other
            finally:
                with Board(quiet=True) as board:
                    must(up(self.cluster, board))

    @contextmanager
    def throttled(self, bits_per_s: int | None) -> Iterator[None]:
        nodes, network = self.profile.compute_nodes, self.profile.ray.network
        try:
            for node in nodes:
                self.cables.throttle(node, network, bits_per_s)
            yield
        finally:
            for node in nodes:
                self.cables.throttle(node, network, None)

    @contextmanager
    def quota(self, node: Node, processors: float) -> Iterator[None]:
        """A node has so much of a processor for the body."""
        first = self.cluster.driver.leader(node)
        inside = {first, *measure.descendants(first, measure.parents())}
        with limited(self.cables.named(node.name), inside, processors):
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
        # Each a session of its own: the kernel shares processors between sessions first.
        subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
        for _ in range(programs)
    ]
    try:
        yield
    finally:
        for each in running:
            each.kill()
            each.wait()
