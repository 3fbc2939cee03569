"""How long `orchestrate --help` takes, and which imports take it.

python benchmarks/cli_start.py [--repeats N] [--json FILE]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import click
import measure

from orchestrator.core.run import run

#: Seconds that the help may take.
GOAL = 0.3
SHOWN = 10

HELP = (str(measure.ORCHESTRATE), "--help")
#: What no Python program can be quicker than.
NOTHING = (sys.executable, "-c", "pass")


class Import(NamedTuple):
    """One line of `python -X importtime`: milliseconds in a module alone, and with its imports."""

    module: str
    alone: float
    total: float


@click.command(help=__doc__)
@click.option("--repeats", type=click.IntRange(1), default=20, show_default=True)
@measure.json_option
def cli_start(repeats: int, json_file: Path | None) -> None:
    report = measure.Report("cli_start", measure.versions({}))
    help_runs, nothing_runs = seconds(HELP, repeats), seconds(NOTHING, repeats)
    said = run([sys.executable, "-X", "importtime", *HELP]).err
    slowest = sorted(imports(said), key=lambda each: each.alone, reverse=True)[:SHOWN]
    median = statistics.median(help_runs)
    report.figures = {
        "help": {"median": median, "runs": help_runs},
        "nothing": {"median": statistics.median(nothing_runs), "runs": nothing_runs},
        "imports": [each._asdict() for each in slowest],
    }
    report.goals = [measure.Goal("orchestrate --help, seconds", median, GOAL)]
    times = [
        (name, *(f"{pick(runs):.3f}" for pick in (statistics.median, min, max)))
        for name, runs in (("orchestrate --help", help_runs), ("python -c pass", nothing_runs))
    ]
    modules = [(each.module, f"{each.alone:.1f}", f"{each.total:.1f}") for each in slowest]
    report.finish(
        [
            measure.table(f"seconds, {repeats} runs", ("", "median", "min", "max"), times),
            measure.table("imports, ms", ("module", "alone", "with its imports"), modules),
        ],
        json_file,
    )


def seconds(argv: Sequence[str], repeats: int) -> list[float]:
    """Wall-clock seconds of each run; one before them, not counted, fills the page cache."""
    taken = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        run(argv)
        taken.append(time.perf_counter() - begun)
    return taken[1:]


def imports(text: str) -> list[Import]:
    """The modules in what `python -X importtime` says."""
    rows = [
        line.removeprefix("import time:").split("|")
        for line in text.splitlines()
        if line.startswith("import time:")
    ]
    return [
        Import(module.strip(), int(alone) / 1000, int(total) / 1000)
        for alone, total, module in rows
        if alone.strip().isdecimal()
    ]


if __name__ == "__main__":
    measure.start(cli_start)
