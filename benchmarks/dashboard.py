"""What an open dashboard costs the load that the simulated cluster serves.

python benchmarks/dashboard.py [--json FILE]

The same load runs without and with a dashboard that somebody looks at, in turns: requests per
second, and the part of all processor time that the dashboard and its samplers take. Nodes share the
processors with the operator's machine. Two copies of the model are served.

The cluster has a name of its own, and is down after it. Needs root, and the built image.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click
import measure
from copies import CLIENTS, LAYOUTS, NAME, opened, unanswered, verb
from measure import ORCHESTRATE, Goal, Report, refuse_running

from orchestrator.cluster.cluster import Cluster
from orchestrator.dashboard.minute import NAMES, PERIOD
from orchestrator.performance.bench.ratio import ratio
from orchestrator.performance.bench.sample import sampler
from orchestrator.performance.results.probe import spread

#: How often a dashboard is opened, rounds of load before and while it is open, and requests of a
#: round; seconds until its first looks are over.
DASHBOARDS, ROUNDS, IN_A_ROUND, SETTLE = 2, 3, 384, 15.0
TICKS = os.sysconf("SC_CLK_TCK")
#: What the command line of a sampler has, and no other.
SAMPLING = sampler(PERIOD, NAMES).encode()


@click.command(help=__doc__)
@measure.json_option
def dashboard(json_file: Path | None) -> None:
    measure.require_root("machines and networks of its own")
    # A shell starts background jobs with SIGINT ignored, and dashboards would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    report = Report("dashboard", measure.versions({}))
    with tempfile.TemporaryDirectory(prefix="dashboard-") as scratch:
        path = Path(scratch, f"{NAME}.yml")
        refuse_running(opened(path, {}))
        try:
            looked = measured(path)
        finally:
            verb(path, "down")
    report.figures = {"clients": CLIENTS, "dashboard": looked}
    without, having = (spread(looked[name]) for name in ("without", "with"))
    told = ratio(without, having)
    share, on_nodes = (spread(looked[name]).median for name in ("share", "on_nodes"))
    shown = measure.table(
        f"a dashboard that is open, under a load of {CLIENTS} clients",
        (
            "requests/s without",
            "with",
            "with one it is",
            "of processor time",
            "on nodes",
            "opening",
        ),
        [
            (
                f"{without.median:.2f}",
                f"{having.median:.2f}",
                told.words("more", "less") if told else "",
                f"{share:.2%}",
                f"{on_nodes:.2%}",
                f"{looked['opening_s']:.1f} s",
            )
        ],
    )
    report.goals.append(Goal("a dashboard's part of all processor time, percent", share * 100, 1.0))
    report.finish([shown], json_file)


def measured(path: Path) -> dict[str, Any]:
    """Requests per second of the same load, without and with a dashboard that is open for a while
    already; the processor seconds of its opening, and later its share of all that was computed."""
    cluster = opened(path, LAYOUTS["2 copies, Ray"])
    verb(path, "up")
    unanswered(cluster, IN_A_ROUND)
    without: list[float] = []
    having: list[float] = []
    shares: list[float] = []
    on_nodes: list[float] = []
    opening = 0.0
    for _ in range(DASHBOARDS):
        without += [rate(cluster) for _ in range(ROUNDS)]
        before = busy()
        time.sleep(SETTLE)
        idle, begun = busy() - before, busy()
        with looked_at(path) as pid:
            time.sleep(SETTLE)
            opening = max(opening, busy() - begun - idle)
            for _ in range(ROUNDS):
                begun, used = busy(), of_looking(pid)
                having.append(rate(cluster))
                here, there = (now - then for now, then in zip(of_looking(pid), used, strict=True))
                worked = busy() - begun
                shares.append((here + there) / worked)
                on_nodes.append(there / worked)
    found = {"without": without, "with": having, "share": shares, "on_nodes": on_nodes}
    return {**found, "opening_s": opening}


def rate(cluster: Cluster) -> float:
    begun = time.perf_counter()
    unanswered(cluster, IN_A_ROUND)
    return IN_A_ROUND / (time.perf_counter() - begun)


def busy() -> float:
    """Processor seconds of all that this machine has run, nodes included."""
    user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
    return (user + nice + system) / TICKS


def of_looking(top: int) -> tuple[float, float]:
    """Processor seconds so far of a dashboard with all that it started, and of its samplers on
    nodes."""
    mine = {top} | measure.descendants(top, measure.parents())
    here = there = 0.0
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):  # it has ended since
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                used = sum(map(int, fields[11:15])) / TICKS
                if int(entry.name) in mine:
                    here += used
                elif SAMPLING in (entry / "cmdline").read_bytes():
                    there += used
    return here, there


@contextmanager
def looked_at(path: Path) -> Iterator[int]:
    """A dashboard that has told all that it tells; its process id."""
    argv = [str(ORCHESTRATE), "dashboard", "--json", "--follow", "--profile", str(path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True) as shown:
        assert shown.stdout is not None
        reads = threading.Thread(target=shown.stdout.read)
        for line in shown.stdout:
            if (json.loads(line).get("checks") or {}).get("ok"):
                break
        reads.start()
        try:
            yield shown.pid
        finally:
            os.killpg(shown.pid, signal.SIGINT)
            reads.join()


if __name__ == "__main__":
    measure.start(dashboard)
