"""Copies against tensor parallel, and vLLM's own executor against Ray, on the simulated cluster.

python benchmarks/copies.py [--repeats N] [--json FILE]

Each layout is served in turn and measured at 1, 8 and 32 requests at once: forecast (probes at the
start, and of the engine as it serves), tokens per second, latency, and the memory of all processes
of the nodes. Then a copy is killed under a load of 500 requests.

The cluster has a name of its own, and is down after it. Needs root, and the built image.
"""

from __future__ import annotations

import json
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import httpx
import measure
import yaml
from measure import ORCHESTRATE, Report, refuse_running

from orchestrator.cluster.cluster import Cluster, open_cluster
from orchestrator.core import paths
from orchestrator.core.console import err
from orchestrator.core.run import run
from orchestrator.models.profiles import load

BASE, NAME = "sim", "copies"
LAYOUTS: dict[str, dict[str, Any]] = {
    "tensor 2, Ray": {"tensor_parallel": 2},
    "tensor 2, mp": {"tensor_parallel": 2, "executor": "mp"},
    "2 copies, mp": {"tensor_parallel": 1, "data_parallel": 2, "executor": "mp"},
    "2 copies, Ray": {"tensor_parallel": 1, "data_parallel": 2},
}
PROMPT, OUTPUT = 32, 32
AT_ONCE = (1, 8, 32)
REQUESTS, CLIENTS = 500, 16


@click.command(help=__doc__)
@click.option("--repeats", type=click.IntRange(2), default=2, show_default=True, help="Of each.")
@measure.json_option
def copies(repeats: int, json_file: Path | None) -> None:
    measure.require_root("machines and networks of its own")
    report = Report("copies", measure.versions({}))
    with tempfile.TemporaryDirectory(prefix="copies-") as scratch:
        path = Path(scratch, f"{NAME}.yml")
        refuse_running(opened(path, {}))
        try:
            found = {name: measured(path, name, repeats) for name in LAYOUTS}
            lost = lost_of(path)
        finally:
            verb(path, "down")
    report.figures = {
        "layouts": found,
        "requests": REQUESTS,
        "clients": CLIENTS,
        **lost,
    }
    head = ("layout", "at once", "tokens/s", "forecast", "TTFT ms", "TPOT ms", "memory MiB")
    title = f"{PROMPT} tokens of prompt, {OUTPUT} of answer, medians of {repeats} repeats"
    died = measure.table(
        "a copy is killed under load", ("requests", "lost"), [(str(REQUESTS), str(lost["lost"]))]
    )
    report.finish([measure.table(title, head, rows(found)), died], json_file)


def opened(path: Path, serving: dict[str, Any]) -> Cluster:
    """The simulated cluster with another name, and such a layout."""
    document = yaml.safe_load((paths.checkout() / f"profiles/{BASE}.yml").read_text())
    document["name"] = NAME
    document["serving"] |= serving
    document["serving"]["args"] |= {"max-num-seqs": max(AT_ONCE)}
    document["bench"] = {
        "workloads": {
            f"w{count}": {
                "prompt_tokens": PROMPT,
                "output_tokens": OUTPUT,
                "requests": max(4, 2 * count),
                "concurrency": count,
            }
            for count in AT_ONCE
        }
    }
    path.write_text(yaml.safe_dump(document))
    return open_cluster(load(path))


def verb(path: Path, *words: str) -> str:
    return run([ORCHESTRATE, *words, "--profile", path], what=f"orchestrate {words[0]}").out


def measured(path: Path, name: str, repeats: int) -> dict[str, Any]:
    """One layout's figures, by requests at once, and the memory that it takes."""
    err.print(f"{name}: starting")
    cluster = opened(path, LAYOUTS[name])
    verb(path, "up")
    if name == next(iter(LAYOUTS)):
        verb(path, "probe")
    verb(path, "probe", "--only", "engine", "--seconds", "100")
    chosen = [word for count in AT_ONCE for word in ("--workload", f"w{count}")]
    with memory(cluster) as most:
        verb(path, "bench", "run", "--repeats", str(repeats), *chosen)
    found = json.loads(verb(path, "bench", "show", "--json"))["run"]
    forecasts = {each["workload"]["name"]: each for each in found["forecasts"]}
    loads = {
        str(each["workload"]["concurrency"]): {
            "tokens_per_s": each["output_tokens_per_s"],
            "ttft_s": each["ttft_s"],
            "tpot_s": each["tpot_s"],
            "failed": each["failed"],
            "forecast": forecasts[each["workload"]["name"]]["output_tokens_per_s"],
        }
        for each in found["measured"]
    }
    err.print(f"{name}: measured")
    return {"layout": found["provenance"]["layout"], "loads": loads, "memory": most[0]}


@contextmanager
def memory(cluster: Cluster) -> Iterator[list[int]]:
    """The most memory that all processes of the nodes had at once during the body, in bytes."""
    most, ended = [0], threading.Event()
    tops = [cluster.driver.leader(node) for node in cluster.profile.nodes]

    def look() -> None:
        while not ended.wait(1.0):
            parent = measure.parents()
            inside = set().union(*(measure.descendants(top, parent) for top in tops))
            most[0] = max(most[0], sum(map(measure.pss, inside)))

    sampler = threading.Thread(target=look)
    sampler.start()
    try:
        yield most
    finally:
        ended.set()
        sampler.join()


def lost_of(path: Path) -> dict[str, int]:
    """Of REQUESTS, how many got no whole answer because a copy was killed after a quarter."""
    cluster = opened(path, LAYOUTS["2 copies, Ray"])
    victim = cluster.remote(cluster.profile.compute_nodes[1])

    def before(number: int) -> None:
        if number == REQUESTS // 4:
            kill = f"--signal={signal.SIGKILL.name}"
            victim.run(["systemctl", "kill", kill, "vllm.service"])

    return {"lost": unanswered(cluster, REQUESTS, before)}


def unanswered(
    cluster: Cluster, requests: int, before: Callable[[int], None] = lambda number: None
) -> int:
    """Send requests, CLIENTS at once; how many got no whole answer. ``before``: is called with the
    number of each."""
    left, lost, lock = iter(range(requests)), [0], threading.Lock()
    body = {
        "model": cluster.profile.serving.model,
        "prompt": "a",
        "max_tokens": OUTPUT,
        "ignore_eos": True,
    }

    def client() -> None:
        with cluster.driver.network(), cluster.client() as http:
            while True:
                with lock:
                    number = next(left, None)
                if number is None:
                    return
                before(number)
                try:
                    ok = http.post("/v1/completions", json=body).status_code == httpx.codes.OK
                except httpx.HTTPError:
                    ok = False
                with lock:
                    lost[0] += not ok

    clients = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    return lost[0]


def rows(found: dict[str, dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    for name, one in found.items():
        for count, cell in sorted(one["loads"].items(), key=lambda each: int(each[0])):
            forecast = cell["forecast"]
            yield (
                name,
                count,
                f"{cell['tokens_per_s']['median']:.0f}",
                f"{forecast['value']:.0f}" if forecast else "-",
                f"{cell['ttft_s']['median'] * 1e3:.0f}",
                f"{cell['tpot_s']['median'] * 1e3:.1f}",
                f"{one['memory'] / (1 << 20):.0f}",
            )


if __name__ == "__main__":
    measure.start(copies)
