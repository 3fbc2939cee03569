"""Power to first answer: `orchestrate up`, and the same cluster brought up by hand.

python benchmarks/up.py [--profile NAME] [--repeats N] [--json FILE]

Both start at power-on of machines that are off, and end when /health answers 200. The image has to
be built, the cluster down, and it is down again after it. Needs root for simulated machines.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import measure
from by_hand import COPY, ByHand
from measure import ORCHESTRATE, Goal, Report, Stage, median_stage, refuse_running

from orchestrator.cli.where import profile_name_option
from orchestrator.cluster.cluster import open_cluster
from orchestrator.cluster.targets import publish_models
from orchestrator.core.console import err
from orchestrator.core.progress import CLUSTER
from orchestrator.core.run import run
from orchestrator.models.profiles import active
from orchestrator.node.resources import Step
from orchestrator.profile import Profile

#: Of the seconds by hand.
RATIO_GOAL = 1.3


@dataclass(frozen=True)
class Up:
    """One `orchestrate up`, in seconds. ``to_answer`` begins with the command itself."""

    to_answer: float
    verified: float
    down: float
    steps: Mapping[str, Mapping[str, Mapping[str, Any]]]


@click.command(help=__doc__)
@profile_name_option
@click.option("--repeats", type=click.IntRange(1), default=1, show_default=True, help="Of each.")
@measure.json_option
def up(profile: str | None, repeats: int, json_file: Path | None) -> None:
    measure.require_tools("nsenter")
    cluster = open_cluster(active(profile))
    # Made once for an image, and by neither way: it is here before the clock starts.
    publish_models(cluster, lambda line: None)
    refuse_running(cluster)
    report = Report("up", measure.versions({}))
    layers = [path for path in cluster.image.iterdir() if path.is_file()]
    measure.read_once(layers)
    ups: list[Up] = []
    hands: list[list[Stage]] = []
    try:
        for number in range(1, repeats + 1):
            err.print(f"run {number} of {repeats}: orchestrate up")
            ups.append(bring_up(cluster.profile))
            err.print(f"run {number} of {repeats}: by hand")
            hands.append(ByHand(cluster).stages())
            bring_down(cluster.profile)
    finally:
        bring_down(cluster.profile)
    by_hand = [median_stage(stage) for stage in zip(*hands, strict=True)]
    totals = {
        "up": statistics.median(each.to_answer for each in ups),
        "by_hand": statistics.median(map(counted, hands)),
    }
    ratio = totals["up"] / totals["by_hand"]
    report.figures = {
        "profile": cluster.profile.name,
        "repeats": repeats,
        "ratio": ratio,
        "totals": totals,
        "up": ups,
        "by_hand": hands,
        "not_counted": [COPY],
    }
    report.goals = [Goal("seconds to the first answer, up over by hand", ratio, RATIO_GOAL)]
    report.finish(
        [
            measure.table("orchestrate up", ("", "seconds"), up_rows(ups)),
            measure.table(
                "its steps (median start and length)", ("", "from", "seconds"), step_rows(ups)
            ),
            measure.table("by hand", ("", "seconds"), hand_rows(by_hand, totals["by_hand"])),
        ],
        json_file,
    )


def bring_up(profile: Profile) -> Up:
    """Run `orchestrate up` and `down`. Raises CommandFailed where `up` does not succeed."""
    begun = time.monotonic()
    said = run([ORCHESTRATE, "up", "--json", "--profile", profile.path], what="orchestrate up")
    wall = time.monotonic() - begun
    document = json.loads(said.out)
    down = bring_down(profile)
    return Up(to_answer(document, wall), wall, down, document["steps"])


def to_answer(document: Mapping[str, Any], wall: float) -> float:
    """Seconds until the endpoint was healthy: all of `up` but what came after that."""
    serving = document["steps"][CLUSTER][Step.SERVING]
    answered = float(serving["started"]) + float(serving["seconds"])
    return wall - (float(document["seconds"]) - answered)


def counted(stages: Sequence[Stage]) -> float:
    """The seconds of one way by hand."""
    return sum(stage.seconds for stage in stages if stage.name != COPY)


def bring_down(profile: Profile) -> float:
    begun = time.monotonic()
    run([ORCHESTRATE, "down", "--profile", profile.path], what="orchestrate down")
    return time.monotonic() - begun


def up_rows(ups: Sequence[Up]) -> Iterator[tuple[str, str]]:
    labels = {"to_answer": "to the first answer", "verified": "verified", "down": "down again"}
    for key, label in labels.items():
        yield label, f"{statistics.median(getattr(each, key) for each in ups):.1f}"


def step_rows(ups: Sequence[Up]) -> Iterator[tuple[str, str, str]]:
    """Steps in the order they begin, nodes side by side."""
    names = [(node, step) for node, steps in ups[0].steps.items() for step in steps]
    rows = []
    for node, step in names:
        entries = [each.steps[node][step] for each in ups]
        started, took = (
            statistics.median(float(entry[key]) for entry in entries)
            for key in ("started", "seconds")
        )
        rows.append((started, f"{node}: {step}", took))
    for started, name, took in sorted(rows):
        yield name, f"{started:.1f}", f"{took:.1f}"


def hand_rows(stages: Sequence[Stage], total: float) -> Iterator[tuple[str, str]]:
    for stage in stages:
        label = f"{stage.name} (not counted)" if stage.name == COPY else stage.name
        yield label, f"{stage.seconds:.1f}"
    yield "to the first answer", f"{total:.1f}"


if __name__ == "__main__":
    measure.start(up)
