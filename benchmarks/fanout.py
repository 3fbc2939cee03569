"""The same state on 2, 16 and 64 SSH hosts: orchestrate's fan-out, ansible-core, pyinfra, in turn.

python benchmarks/fanout.py [--hosts N]... [--repeats N] [--json FILE]

Hosts are containers of the simulator, with systemd and sshd, on this machine: its processors do the
hosts' work too. Each tool brings the state about on hosts without it (cold), again (unchanged), and
with one changed template. What is then on the hosts has to be the same. Needs root and the image.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import fanout_state as state
import measure
import yaml
from fanout_state import Host
from measure import Goal, Report, Stage

from orchestrator.cluster.cluster import Cluster, open_cluster
from orchestrator.cluster.down import down
from orchestrator.cluster.up import SSH, up
from orchestrator.core import paths
from orchestrator.core.console import err
from orchestrator.core.errors import UserError
from orchestrator.core.progress import Board
from orchestrator.core.run import run
from orchestrator.models.profiles import load
from orchestrator.node import configure
from orchestrator.node.configure import Target
from orchestrator.node.resources import Step
from orchestrator.provision.identity import HOST_KEY

BASE = "sim"
HERE = Path(__file__).resolve()
REQUIREMENTS = HERE.with_name("fanout_requirements.txt")
CASES = ("cold", "unchanged", "one change")
#: How many times faster than each peer at the most hosts, by case.
GOALS = {
    ("ansible", "unchanged"): 20, ("pyinfra", "unchanged"): 5,
    ("ansible", "cold"): 10, ("pyinfra", "cold"): 3,
}  # fmt: skip
#: Instances of inotify that a container takes, with some to spare.
INOTIFY_OF_SYSTEMD = 32
#: sshd's log counts what is asked of it.
VERBOSE = (
    "echo LogLevel VERBOSE >/etc/ssh/sshd_config.d/60-bench.conf; systemctl reload ssh.service"
)
SESSIONS = "journalctl -u ssh.service -o cat | grep -c 'Starting session' || true"


@dataclass(frozen=True)
class Run:
    """One tool on so many hosts. ``cpu``: its processes' own seconds of processor time;
    ``sessions``: what was started over SSH on a host."""

    tool: str
    hosts: int
    case: str
    seconds: float
    cpu: float
    peak: int
    sessions: float


@click.command(help=__doc__)
@click.option("--hosts", "sizes", type=click.IntRange(1, 200), multiple=True, default=(2, 16, 64))
@click.option("--repeats", type=click.IntRange(1), default=1, show_default=True, help="Of each.")
@click.option("--only", type=click.Choice(["orchestrate", "ansible", "pyinfra"]), multiple=True)
@measure.json_option
def fanout(
    sizes: tuple[int, ...], repeats: int, only: tuple[str, ...], json_file: Path | None
) -> None:
    measure.require_root("hosts are containers")
    with tempfile.TemporaryDirectory(prefix="fanout-") as scratch, watches(max(sizes)):
        home = Path(scratch)
        peers = environment(home) if set(only) != {"orchestrate"} else home
        commands = {
            "ansible-core": [str(peers / "bin/ansible"), "--version"],
            "pyinfra": [str(peers / "bin/pyinfra"), "--version"],
        }
        report = Report("fanout", measure.versions(commands if peers != home else {}))
        runs = [
            each
            for size in sizes
            for each in on_hosts(size, repeats, home, peers, only)
        ]  # fmt: skip
    report.figures = {"runs": [asdict(each) for each in runs]}
    most = max(sizes)
    for (peer, case), goal in GOALS.items():
        if ratio := times_faster(runs, peer, case, most):
            what = f"seconds over {peer}'s, {case}, {most} hosts"
            report.goals.append(Goal(what, 1 / ratio, 1 / goal))
    report.finish([measure.table("fan-out", COLUMNS, map(row, medians(runs)))], json_file)


@contextmanager
def watches(containers: int) -> Iterator[None]:
    """Room for so many systemds: each watches files, and Linux counts them for all of root's."""
    limit = Path("/proc/sys/fs/inotify/max_user_instances")
    before = limit.read_text()
    limit.write_text(str(max(int(before), 128 + INOTIFY_OF_SYSTEMD * containers)))
    try:
        yield
    finally:
        limit.write_text(before)


COLUMNS = ("hosts, case, tool", "seconds", "its processor s", "memory MB", "sessions a host")


def row(each: Run) -> tuple[str, ...]:
    name = f"{each.hosts} {each.case}: {each.tool}"
    figures = (f"{each.seconds:.2f}", f"{each.cpu:.2f}", f"{each.peak / 1e6:.0f}")
    return (name, *figures, f"{each.sessions:.0f}")


def medians(runs: Sequence[Run]) -> list[Run]:
    """One run for each tool, number of hosts and case."""
    found: dict[tuple[int, str, str], list[Run]] = {}
    for each in runs:
        found.setdefault((each.hosts, each.case, each.tool), []).append(each)
    return [sorted(same, key=lambda each: each.seconds)[len(same) // 2] for same in found.values()]


def times_faster(runs: Sequence[Run], peer: str, case: str, hosts: int) -> float | None:
    """The peer's seconds over ours; None where one of the two did not run."""
    seconds = {
        each.tool: each.seconds
        for each in medians(runs)
        if (each.hosts, each.case) == (hosts, case)
    }
    if peer not in seconds or "orchestrate" not in seconds:
        return None
    return seconds[peer] / seconds["orchestrate"]


def environment(home: Path) -> Path:
    """The peers, in an environment of their own."""
    err.print("installing ansible-core and pyinfra")
    run([sys.executable, "-m", "venv", home / "peers"], what="making an environment")
    pip = [str(home / "peers/bin/python"), "-m", "pip", "install", "-q", "--require-hashes"]
    run([*pip, "-r", str(REQUIREMENTS)], what="installing the peers (for Python 3.11, x86_64)")
    return home / "peers"


def on_hosts(size: int, repeats: int, home: Path, peers: Path, only: Sequence[str]) -> list[Run]:
    """All tools on so many hosts, one after the other, ``repeats`` times."""
    cluster = open_cluster(load(profile_of(size, home)))
    err.print(f"{size} hosts: booting")
    try:
        with Board(quiet=True) as board:
            booted = up(cluster, board, SSH)
        if booted.failures:
            raise UserError("\n".join(map(str, booted.failures.values())))
        with cluster.driver.network():
            bench = Bench(cluster, home / str(size), peers)
            return [
                each
                for _ in range(repeats)
                for tool, command in bench.tools().items()
                if not only or tool in only
                for each in bench.cases(tool, command)
            ]
    finally:
        with Board(quiet=True) as board:
            down(cluster, board)


def profile_of(size: int, home: Path) -> Path:
    """The simulated cluster with so many compute nodes."""
    document = yaml.safe_load((paths.checkout() / f"profiles/{BASE}.yml").read_text())
    document |= {"name": f"fanout-{size}"}
    node = document["compute_nodes"][0]
    link = node["links"]["cluster"]
    document["compute_nodes"] = [
        node | {
            "name": f"host{number}",
            "links": {"cluster": link | {"mac": f"02:00:0a:4d:01:{number:02x}",
                                         "address": f"10.77.0.{number + 2}"}},
        }
        for number in range(size)
    ]  # fmt: skip
    document["serving"] |= {"tensor_parallel": 1}
    path = home / f"fanout-{size}.yml"
    path.write_text(yaml.safe_dump(document))
    return path


class Bench:
    """The hosts of one size, ready, and what each tool needs to know of them."""

    def __init__(self, cluster: Cluster, home: Path, peers: Path) -> None:
        self.cluster, self.home, self.peers = cluster, home, peers
        self.nodes = cluster.profile.compute_nodes
        self.hosts = [Host(node.name, str(node.links["cluster"].address)) for node in self.nodes]
        home.mkdir()
        self.everywhere(VERBOSE)
        keys = self.everywhere(f"cat {HOST_KEY}.pub")
        known = "".join(
            f"{host.address} {' '.join(key.split()[:2])}\n"
            for host, key in zip(self.hosts, keys, strict=True)
        )
        (home / "known_hosts").write_text(known)
        ssh = {
            node.name: " ".join(
                f"'{word}'" for word in cluster.trust.ssh_options(node.name)
            )
            for node in self.nodes
        }  # fmt: skip
        state.write_templates(home, self.hosts)
        state.write_ansible(home, self.hosts, ssh)
        operator = cluster.trust.directory / "operator"
        state.write_pyinfra(home, self.hosts, operator, home / "known_hosts")

    def tools(self) -> dict[str, Callable[[int], list[str]]]:
        """The command line of each, for a change."""
        jobs = str(len(self.hosts))
        return {
            "orchestrate": lambda change: [
                sys.executable, str(HERE), "apply", str(self.cluster.profile.path), str(change)
            ],
            "pyinfra": lambda change: [
                *(str(self.peers / "bin/pyinfra"), "-y", "--parallel", jobs),
                *("inventory.py", "deploy.py"),
            ],
            "ansible": lambda change: [
                str(self.peers / "bin/ansible-playbook"), "playbook.json", "-e", f"change={change}"
            ],
        }  # fmt: skip

    def cases(self, tool: str, command: Callable[[int], list[str]]) -> list[Run]:
        """Cold, unchanged, one change. Raises UserError where the hosts are not as they should."""
        self.everywhere(state.RESET)
        runs = []
        for case, change in zip(CASES, (0, 0, 1), strict=True):
            if case == "cold":
                self.close()
            before = self.sessions()
            stage, cpu = self.measured(command(change), change)
            # One look at the counter is a session too.
            sessions = self.sessions() - before - 1
            runs.append(Run(tool, len(self.hosts), case, stage.seconds, cpu, stage.peak, sessions))
            err.print("  " + ", ".join(row(runs[-1])))
            self.must_be(change, tool)
        return runs

    def measured(self, argv: Sequence[str], change: int) -> tuple[Stage, float]:
        env = {"CHANGE": str(change), "ANSIBLE_CONFIG": str(self.home / "ansible.cfg"),
               "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(paths.checkout())}  # fmt: skip
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        with measure.measured(argv[0]) as stage:
            run(argv, env=env | {"PATH": os.environ["PATH"]}, cwd=self.home, timeout=1800)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
        return stage, spent

    def must_be(self, change: int, tool: str) -> None:
        """Raises UserError where a host is not as the desired state of orchestrate says."""
        for host, seen in zip(self.hosts, self.everywhere(state.SEEN), strict=True):
            want = state.expected(host, self.hosts, change)
            if seen.split() != want.split():
                raise UserError(f"{host.name} after {tool}:\n{seen}\nnot:\n{want}")

    def sessions(self) -> float:
        counts = [int(text) for text in self.everywhere(SESSIONS)]
        return sum(counts) / len(counts)

    def everywhere(self, script: str) -> list[str]:
        with ThreadPoolExecutor(16) as pool:
            jobs = [
                pool.submit(self.cluster.remote(node).run, ["sh", "-c", script], timeout=120)
                for node in self.nodes
            ]
            return [job.result().out for job in jobs]

    def close(self) -> None:
        """No connection is left open from before."""
        for node in self.nodes:
            self.cluster.remote(node).close()


def apply(profile: Path, change: int) -> Mapping[str, Any]:
    """Ours: one process that does what `orchestrate up` does for one step."""
    cluster = open_cluster(load(profile))
    hosts = [
        Host(node.name, str(node.links["cluster"].address))
        for node in cluster.profile.compute_nodes
    ]
    nodes = {node.name: node for node in cluster.profile.compute_nodes}
    targets = [
        Target(cluster.remote(nodes[host.name]), state.ours(host, hosts, change)) for host in hosts
    ]
    with ThreadPoolExecutor(len(targets)) as pool:
        done = pool.map(lambda target: configure.apply(target, Step.BASE), targets)
        outcomes = dict(zip((target.name for target in targets), done, strict=True))
    if wrong := {name: each.summary for name, each in outcomes.items() if not each.ok}:
        raise UserError(json.dumps(wrong, indent=1))
    return {name: len(each.changed) for name, each in outcomes.items()}


if __name__ == "__main__":
    if sys.argv[1:2] == ["apply"]:
        print(json.dumps(apply(Path(sys.argv[2]), int(sys.argv[3]))))
    else:
        measure.start(fanout)
