"""Build an image from inputs that are here: by Nix, and by mmdebstrap, pip and mksquashfs.

python benchmarks/image_build.py [--profile NAME] [--repeats N] [--json FILE]
python benchmarks/image_build.py --config-change: only the cost of a changed configuration file.

Nix builds all of the image, into other store paths, and the result has to have the same id.
Neither side downloads. Needs root and the image built.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import click
import conventional_image
import measure
import nix_image
import pip
from conventional_image import Conventional
from measure import Goal, Report, Stage, median_stage
from rich.table import Table

from orchestrator.cli.where import profile_name_option
from orchestrator.core.console import err
from orchestrator.core.errors import UserError
from orchestrator.image import lockfile, store
from orchestrator.image.build.building import require_inputs
from orchestrator.models.profiles import active

#: Of the other tools' seconds, and of seconds after a change of one configuration file.
RATIO_GOAL = 0.7
CONFIG_GOAL = 5.0

VERSIONS = {
    "nix": ["nix", "--version"],
    "mmdebstrap": ["mmdebstrap", "--version"],
    "mksquashfs": ["mksquashfs", "-version"],
}


@click.command(help=__doc__)
@profile_name_option
@click.option("--repeats", type=click.IntRange(1), default=1, show_default=True, help="Of each.")
@click.option("--config-change", is_flag=True, help="Change one configuration file instead.")
@measure.json_option
def image_build(
    profile: str | None, repeats: int, config_change: bool, json_file: Path | None
) -> None:
    name = active(profile).image
    store.require_nix()
    if store.built(name) is None:
        raise UserError(f"the image {name!r} is not built", f"Run: orchestrate image build {name}")
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        if config_change:
            measure_change(name, repeats, Path(scratch), json_file)
        else:
            compare(name, repeats, Path(scratch), json_file)


def measure_change(name: str, repeats: int, scratch: Path, json_file: Path | None) -> None:
    """The cost of a changed configuration file."""
    report = Report("image_build --config-change", measure.versions({"nix": VERSIONS["nix"]}))
    changes = nix_image.change_config(name, repeats, scratch)
    report.figures = {
        "image": name,
        "file": changes.file,
        "median": changes.median,
        "runs": changes.runs,
        "nothing_changed": changes.nothing_changed,
    }
    report.goals = [Goal("one configuration file changed, seconds", changes.median, CONFIG_GOAL)]
    rows = [
        (f"{changes.file} changed", f"{changes.median:.2f}"),
        ("nothing changed", f"{changes.nothing_changed:.2f}"),
    ]
    title = f"nix build of {name}, {repeats} runs; the other layers stayed the same"
    report.finish([measure.table(title, ("", "seconds"), rows)], json_file)


def compare(name: str, repeats: int, scratch: Path, json_file: Path | None) -> None:
    """Both ways to build, in turn."""
    measure.require_root("mmdebstrap sets owners, and Nix has to build below this process")
    measure.require_tools(*conventional_image.TOOLS)
    locks = lockfile.with_shared(name)
    require_inputs(name, locks)
    report = Report("image_build", measure.versions(VERSIONS) | {"pip": pip.__version__})
    other = Conventional(name, scratch)
    err.print("preparing: a local repository, the wheels, all inputs read once")
    other.prepare()
    measure.read_once(store.path_of_file(file) for lock in locks.values() for file in lock.files)
    ours: list[list[Stage]] = []
    theirs: list[list[Stage]] = []
    for number in range(1, repeats + 1):
        err.print(f"run {number} of {repeats}: Nix")
        ours.append([nix_image.afresh(name, scratch)])
        err.print(f"run {number} of {repeats}: mmdebstrap, pip, mksquashfs")
        theirs.append(other.stages())
    sides = {"nix": medians(ours), "conventional": medians(theirs)}
    totals = {side: sum(stage.seconds for stage in stages) for side, stages in sides.items()}
    ratio = totals["nix"] / totals["conventional"]
    report.figures = {
        "image": name,
        "repeats": repeats,
        "ratio": ratio,
        "totals": totals,
        "medians": sides,
        "runs": {"nix": ours, "conventional": theirs},
        "reproduced": True,  # else afresh has raised
        "squashfs_bytes": other.squashfs.stat().st_size,
    }
    report.goals = [Goal("seconds, Nix over the other tools", ratio, RATIO_GOAL)]
    report.finish((breakdown(side, stages) for side, stages in sides.items()), json_file)


def medians(runs: list[list[Stage]]) -> list[Stage]:
    """Stage by stage over the repeats."""
    return [median_stage(stage) for stage in zip(*runs, strict=True)]


def breakdown(side: str, stages: Iterable[Stage]) -> Table:
    """A row for each stage and step, and the sum."""
    rows = []
    stages = list(stages)
    for stage in stages:
        rows.append((stage.name, f"{stage.seconds:.1f}", mib(stage.peak)))
        rows += [(f"  {step}", f"{seconds:.1f}", "") for step, seconds in stage.steps.items()]
    total = sum(stage.seconds for stage in stages)
    rows.append(("all", f"{total:.1f}", mib(max(stage.peak for stage in stages))))
    return measure.table(side, ("stage", "seconds", "peak MiB"), rows)


def mib(size: int) -> str:
    return f"{size / (1 << 20):.0f}"


if __name__ == "__main__":
    measure.start(image_build)
