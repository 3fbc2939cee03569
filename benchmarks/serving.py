"""Many nodes fetch all layers at once: the control node's nginx, beside nginx set up by hand.

python benchmarks/serving.py [--profile NAME] [--clients 1,4,16,64] [--repeats N] [--json FILE]

Each client is curl in a network namespace of its own, on the switch of the simulated cluster. Both
servers run in the control container, from the same files. The image has to be built, the cluster
down, and it is down again after it. Needs root.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

import click
import measure
from measure import ORCHESTRATE, Goal, Report, refuse_running

from orchestrator.cli.where import profile_name_option
from orchestrator.cluster.cluster import Cluster, open_cluster
from orchestrator.core import paths
from orchestrator.core.console import err
from orchestrator.core.errors import UserError
from orchestrator.core.run import run
from orchestrator.image import ident
from orchestrator.image.layers import layers_of
from orchestrator.models.profiles import active
from orchestrator.node.paths import FILES_ROOT
from orchestrator.provision.machines import netns
from orchestrator.provision.machines.switch import Switch

#: Of by hand, in bytes per second; a goal is the most of a value, so it is turned over.
RATE_GOAL = 0.95
#: Where nginx by hand listens, and what it is told: what its manual says for large files.
HAND_PORT = 8099
HAND_CONFIG = """\
worker_processes auto;
pid /run/by-hand.pid;
error_log /dev/null;
events {{ }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  server {{ listen {address}:{port}; root {root}; }}
}}
"""
HAND_FILE = "/run/by-hand.conf"
OURS, BY_HAND = "orchestrate", "by hand"

#: For the calculated table: a full frame's TCP payload, of what it takes on the wire.
PAYLOAD = 1448 / 1538
LINKS = (1.0, 2.5, 10.0)
NODES = (1, 2, 4, 8, 16, 64)
MB = 1e6


@dataclass(frozen=True)
class Rush:
    """All clients at once, from the first request to the last byte. `cpu`: nginx's seconds."""

    seconds: float
    received: int
    cpu: float

    @property
    def rate(self) -> float:
        return self.received / self.seconds


def counts(context: click.Context, option: click.Parameter, text: str) -> tuple[int, ...]:
    """Numbers with commas between them."""
    try:
        found = tuple(int(word) for word in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not like 1,4,16") from None
    if not all(1 <= number <= 200 for number in found):
        raise click.BadParameter("each from 1 to 200")
    return found


@click.command(help=__doc__)
@profile_name_option
@click.option("--clients", callback=counts, default="1,4,16,64", show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=1, show_default=True, help="Of each.")
@measure.json_option
def serving(
    profile: str | None, clients: tuple[int, ...], repeats: int, json_file: Path | None
) -> None:
    measure.require_root("machines and networks of its own")
    measure.require_tools("curl", "nsenter")
    loaded = active(profile)
    cluster = open_cluster(loaded, "qemu")
    refuse_running(cluster)
    layers = [cluster.image / str(layer["file"]) for layer in layers_of(cluster.image)]
    measure.read_once(layers)
    report = Report("serving", measure.versions({"curl": ["curl", "--version"]}))
    words = ["up", "--machines", "qemu", "--until", "control", "--profile", str(loaded.path)]
    try:
        run([ORCHESTRATE, *words], what="orchestrate up")
        found = rushes(cluster, [layer.name for layer in layers], clients, repeats)
    finally:
        run([ORCHESTRATE, "down", "--profile", loaded.path], what="orchestrate down")
    size = sum(layer.stat().st_size for layer in layers)
    report.figures = {
        "profile": loaded.name,
        "repeats": repeats,
        "bytes": size,
        "rushes": {str(count): ways for count, ways in found.items()},
        "calculated": [
            {"nodes": n, "gbit": g, "alone": alone(n, size, g), "peers": peers(n, size, g)}
            for n in NODES
            for g in LINKS
        ],
    }
    report.goals = [
        Goal(
            f"bytes per second by hand over ours, {count} clients",
            rate(ways[BY_HAND]) / rate(ways[OURS]),
            1 / RATE_GOAL,
        )
        for count, ways in found.items()
    ]
    title = f"all layers ({size / MB:.0f} MB) to each client at once"
    head = ("clients", "MB/s", "by hand", "CPU s", "by hand")
    later = "seconds until N nodes have the layers, calculated"
    columns = [f"{gbit:g} GbE{which}" for gbit in LINKS for which in ("", ", peers")]
    report.finish(
        [
            measure.table(title, head, rush_rows(found)),
            measure.table(later, ("nodes", *columns), calculated_rows(size)),
        ],
        json_file,
    )


def rushes(
    cluster: Cluster, files: Sequence[str], clients: Sequence[int], repeats: int
) -> dict[int, dict[str, list[Rush]]]:
    """By number of clients, then by way. The two ways take turns."""
    driver = cluster.driver
    assert isinstance(driver.cables, Switch)
    address = str(cluster.profile.boot_link(cluster.profile.control).address)
    served = paths.served(cluster.profile.name)
    ours = str(json.loads((served / "netboot/boot.json").read_text())["server"])
    servers = {OURS: ours, BY_HAND: f"http://{address}:{HAND_PORT}"}
    leader = driver.leader(cluster.profile.control)
    tails = [f"images/{ident(cluster.image)}/{file}" for file in files]
    found: dict[int, dict[str, list[Rush]]] = {}
    with by_hand(leader, address), spaces(driver.cables, cluster, max(clients)) as names:
        for server in servers.values():  # once without a clock: files that nobody has read yet
            rush(names[:1], [f"{server}/{tail}" for tail in tails], leader)
        for count in clients:
            ways = found.setdefault(count, {name: [] for name in servers})
            for number in range(1, repeats + 1):
                for name, server in servers.items():
                    err.print(f"{count} clients, run {number} of {repeats}: {name}")
                    urls = [f"{server}/{tail}" for tail in tails]
                    ways[name].append(rush(names[:count], urls, leader))
    return found


@contextmanager
def by_hand(leader: int, address: str) -> Iterator[None]:
    """nginx with a minimal configuration, in the control container beside ours."""
    inside = ["nsenter", "--target", str(leader), "--all", "--"]
    text = HAND_CONFIG.format(address=address, port=HAND_PORT, root=FILES_ROOT)
    run([*inside, "tee", HAND_FILE], stdin=text, what="write nginx's configuration")
    run([*inside, "nginx", "-c", HAND_FILE], what="start nginx by hand")
    try:
        yield
    finally:
        run([*inside, "nginx", "-c", HAND_FILE, "-s", "quit"], what="stop nginx")


@contextmanager
def spaces(switch: Switch, cluster: Cluster, count: int) -> Iterator[list[str]]:
    """Namespaces with a cable to the boot network and addresses that no node has; their names."""
    profile = cluster.profile
    network = profile.boot.network
    taken = {str(node.links[network].address) for node in profile.nodes if network in node.links}
    subnet = IPv4Network(str(profile.networks[network].subnet))
    free = [str(host) for host in subnet.hosts() if str(host) not in taken][::-1]
    if len(free) < count:
        raise UserError(f"{subnet} has room for {len(free)} clients", "Name fewer: --clients")
    names = [switch.named(f"client{number}") for number in range(count)]
    try:
        for number, (name, address) in enumerate(zip(names, free, strict=False)):
            port = f"client{number}"
            netns.create(name)
            peer = ["peer", "name", port, "netns", switch.space]
            netns.ip(name, "link", "add", "eth0", "type", "veth", *peer)
            netns.ip(switch.space, "link", "set", port, "master", switch.bridge(network), "up")
            netns.ip(name, "addr", "add", f"{address}/{subnet.prefixlen}", "dev", "eth0")
            netns.ip(name, "link", "set", "eth0", "up")
        yield names
    finally:
        for name in names:
            netns.delete(name)


def rush(names: Sequence[str], urls: Sequence[str], leader: int) -> Rush:
    """Let all clients fetch all of ``urls``, one after the other. Raises UserError if one fails."""
    argv = ["curl", "--silent", "--show-error", "--fail", "--noproxy", "*"]
    argv += ["--write-out", "%{size_download}\n"]
    for url in urls:
        argv += ["--output", os.devnull, url]
    before = cpu_of_nginx(leader)
    begun = time.monotonic()
    started = []
    for name in names:
        with netns.entered(name):
            pipe = subprocess.PIPE
            started.append(subprocess.Popen(argv, text=True, stdout=pipe, stderr=pipe))
    received = 0
    problems = []
    for process in started:
        out, said = process.communicate()
        received += sum(int(line) for line in out.split())
        problems += [said] if process.returncode else []
    seconds = time.monotonic() - begun
    if problems:
        raise UserError(f"a client failed: {problems[0]}")
    return Rush(seconds, received, cpu_of_nginx(leader) - before)


def cpu_of_nginx(leader: int) -> float:
    """Processor seconds of all nginx processes below a container's PID 1."""
    below = measure.descendants(leader, measure.parents())
    return sum(measure.cpu(pid) for pid in below if measure.name_of(pid) == "nginx")


def alone(nodes: int, size: int, gbit: float) -> float:
    """Seconds until all have the layers, from the control node's one link."""
    return nodes * size * 8 / (gbit * 1e9 * PAYLOAD)


def peers(nodes: int, size: int, gbit: float) -> float:
    """The same where nodes are booted in groups, each as large as the number of those that serve.

    The control node is the first to serve, so it takes log2(nodes + 1) rounds. (Booted all at
    once, no node is up to serve: then peers change nothing.)
    """
    return math.ceil(math.log2(nodes + 1)) * alone(1, size, gbit)


def rate(runs: Sequence[Rush]) -> float:
    return statistics.median(run.rate for run in runs)


def rush_rows(found: dict[int, dict[str, list[Rush]]]) -> Iterator[tuple[str, ...]]:
    for count, ways in found.items():
        rates = [f"{rate(ways[name]) / MB:.0f}" for name in (OURS, BY_HAND)]
        cpu = [statistics.median(run.cpu for run in ways[name]) for name in (OURS, BY_HAND)]
        yield str(count), *rates, *(f"{seconds:.2f}" for seconds in cpu)


def calculated_rows(size: int) -> Iterator[tuple[str, ...]]:
    for nodes in NODES:
        cells = [f"{way(nodes, size, gbit):.0f}" for gbit in LINKS for way in (alone, peers)]
        yield str(nodes), *cells


if __name__ == "__main__":
    measure.start(serving)
