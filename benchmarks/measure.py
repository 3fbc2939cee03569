"""What all benchmarks share: seconds and memory of a stage, the machine, goals, tables, JSON."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from orchestrator.cluster.cluster import Cluster
from orchestrator.core import paths
from orchestrator.core.console import out
from orchestrator.core.errors import UserError
from orchestrator.core.run import PACKAGE_OF, run

#: Seconds between two looks at the memory of all processes.
SAMPLING = 0.2
PR_SET_CHILD_SUBREAPER = 36

#: Which Debian package brings a command that only benchmarks need.
PACKAGES = {
    **PACKAGE_OF,
    "chroot": "coreutils",
    "dpkg-deb": "dpkg",
    "mksquashfs": "squashfs-tools",
    "nsenter": "util-linux",
    "unshare": "util-linux",
}

#: The command as people call it.
ORCHESTRATE = Path(sys.executable).with_name("orchestrate")

json_option = click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write all figures to this file.",
)


@dataclass
class Stage:
    """One measured stretch: wall-clock seconds, and the most memory its processes had at once.

    Memory is the sum of the processes' proportional set sizes (PSS: shared pages count once), in
    bytes, without the benchmark itself and without the page cache; 0 where nobody looked.
    ``steps`` are seconds by name of what the stage itself reports.
    """

    name: str
    seconds: float = 0.0
    peak: int = 0
    steps: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Goal:
    """A figure and the most that it should be."""

    what: str
    value: float
    most: float

    @property
    def met(self) -> bool:
        return self.value <= self.most


@contextmanager
def timed(name: str) -> Iterator[Stage]:
    """The body is the stage; its seconds are there after it, and its memory is not looked at."""
    stage = Stage(name)
    begun = time.monotonic()
    try:
        yield stage
    finally:
        stage.seconds = time.monotonic() - begun


@contextmanager
def measured(name: str) -> Iterator[Stage]:
    """The body is the stage; its seconds and the memory of its processes are there after it."""
    adopt_orphans()
    ended = threading.Event()
    with timed(name) as stage:
        sampler = threading.Thread(target=sample, args=(stage, ended), daemon=True)
        sampler.start()
        try:
            yield stage
        finally:
            ended.set()
            sampler.join()


def sample(stage: Stage, ended: threading.Event) -> None:
    """Keep ``stage.peak`` up to date until the end."""
    while not ended.wait(SAMPLING):
        stage.peak = max(stage.peak, sum(map(pss, descendants(os.getpid(), parents()))))


def adopt_orphans() -> None:
    """Let processes whose parent ends become this process's children: they still count."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def parents() -> dict[int, int]:
    """Each process of this machine with its parent's id."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):  # it has ended since
                found[int(entry.name)] = parent_of((entry / "stat").read_text())
    return found


def parent_of(stat: str) -> int:
    """The parent's id in the text of /proc/PID/stat; a name there may hold blanks and brackets."""
    return int(stat.rpartition(")")[2].split()[1])


def descendants(top: int, parent: Mapping[int, int]) -> set[int]:
    """All processes below ``top``, at any depth."""
    below = {pid for pid, its in parent.items() if its == top}
    return below.union(*(descendants(pid, parent) for pid in below))


def pss(pid: int) -> int:
    """A process's proportional set size in bytes; 0 once it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    return 0


def name_of(pid: int) -> str:
    """A process's name, as the kernel has it; empty once it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def cpu(pid: int) -> float:
    """Seconds of processor time that a process has used; 0 once it has ended."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # proc(5): 14, 15
    return 0.0


def median_stage(runs: Sequence[Stage]) -> Stage:
    """One stage from the repeats of it: medians of its seconds, memory and steps."""
    steps = {
        name: statistics.median(run.steps.get(name, 0.0) for run in runs) for name in runs[0].steps
    }
    return Stage(
        runs[0].name,
        statistics.median(run.seconds for run in runs),
        int(statistics.median(run.peak for run in runs)),
        steps,
    )


def read_once(files: Iterable[Path]) -> None:
    """Read files, so that whoever comes first does not pay for the disk."""
    for file in files:
        with file.open("rb") as stream:
            while stream.read(1 << 20):
                pass


def require_root(why: str) -> None:
    """Raises UserError for other users."""
    if os.geteuid() != 0:
        raise UserError(f"this benchmark needs root: {why}", "Run it with sudo.")


def refuse_running(cluster: Cluster) -> None:
    """Raises UserError if the cluster is up: somebody may use it."""
    running = [node.name for node in cluster.profile.nodes if cluster.driver.running(node)]
    if running:
        raise UserError(f"running already: {', '.join(running)}", "Run: orchestrate down")


def require_tools(*names: str) -> None:
    """Raises UserError that names the Debian packages of the commands that are missing."""
    missing = [name for name in names if shutil.which(name) is None]
    if missing:
        packages = sorted({PACKAGES.get(name, name) for name in missing})
        raise UserError(
            f"not installed: {', '.join(missing)}",
            f"On Debian: apt-get install {' '.join(packages)}",
        )


def machine() -> dict[str, Any]:
    """What figures depend on: processor, cores, memory (bytes), kernel, load at the start."""
    cpu = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in cpu if line.startswith("model name")), "?")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory": memory,
        "kernel": platform.release(),
        "load": os.getloadavg()[0],
    }


def versions(commands: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The checkout's commit, and the first line that each of ``commands`` says (by its name)."""
    commit = run(["git", "-C", paths.checkout(), "describe", "--always", "--dirty"], ok=None)
    found = {
        "orchestrate": version("orchestrate"),
        "commit": commit.out.strip() or "?",
        "python": platform.python_version(),
    }
    for name, argv in commands.items():
        said = run(argv, ok=None)
        found[name] = (said.out + said.err).strip().partition("\n")[0]
    return found


@dataclass
class Report:
    """What one benchmark found. ``started`` and ``machine`` are of its beginning."""

    benchmark: str
    versions: dict[str, str]
    figures: dict[str, Any] = field(default_factory=dict)
    goals: list[Goal] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=machine)
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def document(self) -> dict[str, Any]:
        """As JSON types: seconds, bytes."""
        document = asdict(self)
        document["goals"] = [asdict(goal) | {"met": goal.met} for goal in self.goals]
        return document

    def finish(self, tables: Iterable[Table], json_file: Path | None) -> None:
        """Print the machine, the tables and the goals; write the JSON where a file is named."""
        found = self.machine
        memory = f"{found['memory'] / (1 << 30):.0f} GiB"
        out.print(f"{found['cpu']}, {found['cores']} cores, {memory}, Linux {found['kernel']}")
        said = [v if v.startswith(name) else f"{name} {v}" for name, v in self.versions.items()]
        out.print(", ".join(said), markup=False)
        if found["load"] > found["cores"] / 2:
            out.print(
                f"[yellow]the machine was busy at the start: load {found['load']:.1f}[/yellow]"
            )
        for table in tables:
            out.print()
            out.print(table)
            self.tables.append(as_data(table))
        out.print()
        for goal in self.goals:
            met = "met" if goal.met else "[bold red]missed[/bold red]"
            out.print(f"{goal.what}: {goal.value:.2f}, goal at most {goal.most:g}: {met}")
        if json_file:
            json_file.write_text(json.dumps(self.document(), indent=2) + "\n")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table whose columns but the first are figures."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for number, column in enumerate(columns):
        made.add_column(column, justify="right" if number else "left")
    for row in rows:
        made.add_row(*row)
    return made


def as_data(shown: Table) -> dict[str, Any]:
    """A table's title, columns and rows: benchmarks/figures.py makes Markdown of it."""
    columns = [list(map(str, column.cells)) for column in shown.columns]
    return {
        "title": str(shown.title or ""),
        "columns": [str(column.header) for column in shown.columns],
        "rows": [list(row) for row in zip(*columns, strict=True)],
    }


def start(command: Callable[..., Any]) -> None:
    """Run a script's command: what is for people is one message, without a traceback."""
    assert isinstance(command, click.Command)
    try:
        command.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except UserError as error:
        sys.exit(f"error: {error}")
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)  # 128 + SIGINT, as shells count
