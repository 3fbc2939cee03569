"""`orchestrate bench`: measured load, kept runs, comparison, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.cluster import json_option, opened
from orchestrator.console import err, out, print_json
from orchestrator.profile import active, profile_option

if TYPE_CHECKING:
    from orchestrator.bench.results import Run
    from orchestrator.report.story import Story


@click.group()
def bench() -> None:
    """Where is the bottleneck? Load on the model, what every node did, and why it took so long.

    RUN is a run's id, the beginning of one, or "last".
    """


@bench.command("run")
@profile_option
@json_option
@click.option("--scenario", "names", multiple=True, help="Only these: names as in 'bench loads'.")
@click.option("--repeats", type=click.IntRange(1, 100), default=4, show_default=True)
@click.option("--no-rates", is_flag=True, help="Without the sweep over requests a second.")
@click.option(
    "--target",
    "targets",
    metavar="ttft=MS,tpot=MS",
    help="Goodput: requests whose first token, and each further one, come within these times.",
)
@click.option(
    "--against-one-node", is_flag=True, help="Measure on one node first: does clustering help?"
)
@click.option("--resume", metavar="RUN", help="Go on with a run that was interrupted.")
def run_(
    profile: str | None,
    as_json: bool,
    names: tuple[str, ...],
    repeats: int,
    no_rates: bool,
    targets: str | None,
    **how: Any,
) -> None:
    """Put load on the model, by vLLM's own client at the endpoint, and keep what came.

    One request at a time, more and more at once, more and more a second, long prompts, long
    answers. Refused where 'verify' fails. A node that is lost marks the run. With --resume the
    loads that are missing are measured.

    \b
    Example: orchestrate bench run
    Example: orchestrate bench run --scenario "single stream" --repeats 8
    """
    from orchestrator.bench import history
    from orchestrator.bench.against import against_one_node
    from orchestrator.bench.load import scenarios
    from orchestrator.bench.run import Asked
    from orchestrator.bench.run import bench as measure
    from orchestrator.errors import BadInput
    from orchestrator.nearest import nearest
    from orchestrator.progress import Board

    cluster = opened(profile)
    every = scenarios(cluster.profile)
    known = [each.name for each in every]
    if unknown := [name for name in names if name not in known]:
        raise BadInput(f"there is no load {unknown[0]!r}", nearest(unknown[0], known))
    chosen = [each for each in every if not names or each.name in names]
    asked = Asked(chosen, repeats, not (names or no_rates), _targets(targets))
    resumed = how["resume"] and history.load(cluster.profile.name, how["resume"])
    answer: list[str] = []
    with cluster.locked("bench run"), Board(quiet=as_json) as board:
        if how["against_one_node"]:
            both = against_one_node(cluster, board, asked)
            run, answer = both.together, history.clusters_help(both.alone, both.together)
        else:
            run = measure(cluster, board, asked, resumed or None)
    for line in answer:
        (err if as_json else out).print(f"Does clustering help? {line}", markup=False)
    if as_json:
        print_json({"id": run.id, "state": run.state, "note": run.note,
                    "loads": [each.scenario.name for each in run.measured]})  # fmt: skip
    else:
        _show(told(run))
    if run.note:
        err.print(f"[red]this run is {run.state}:[/red] {run.note}")
        raise SystemExit(1)


def _targets(text: str | None) -> dict[str, float]:
    """Milliseconds by the client's name of a latency."""
    found = {}
    for word in filter(None, (text or "").split(",")):
        name, _, value = word.partition("=")
        if name not in ("ttft", "tpot", "e2el") or not value.replace(".", "", 1).isdigit():
            raise click.UsageError(f"--target {word}: ttft, tpot or e2el, like ttft=500,tpot=50")
        found[name] = float(value)
    return found


@bench.command()
@profile_option
@json_option
def loads(profile: str | None, as_json: bool) -> None:
    """List the loads that the profile's limits have room for.

    Example: orchestrate bench loads
    """
    from dataclasses import asdict

    from orchestrator.bench.load import scenarios

    every = scenarios(active(profile))
    if as_json:
        print_json([asdict(each) for each in every])
        return
    for each in every:
        tokens = f"{each.prompt_tokens} + {each.output_tokens} tokens"
        out.print(f"{each.name:<16} {each.load}, {tokens}, {each.requests} requests a repeat")


@bench.command()
@profile_option
@json_option
def ls(profile: str | None, as_json: bool) -> None:
    """List the cluster's runs, the oldest first.

    Example: orchestrate bench ls
    """
    from orchestrator.bench import history

    name = active(profile).name
    runs = [history.load(name, each) for each in history.names(name)]
    rows = [
        {"id": run.id, "state": run.state, "model": run.provenance.model,
         "layout": run.provenance.layout, "image": run.provenance.image_id[:12],
         "loads": len(run.measured), "note": run.note}
        for run in runs
    ]  # fmt: skip
    if as_json:
        print_json(rows)
        return
    for row in rows:
        out.print("  ".join(str(value) for value in row.values() if value != ""), markup=False)
    if not rows:
        out.print("No runs yet: orchestrate bench run")


@bench.command()
@profile_option
@json_option
@click.argument("run", default="last")
def show(profile: str | None, as_json: bool, run: str) -> None:
    """Show a run: figures, causes, and what changed since the last good one.

    Example: orchestrate bench show last
    """
    from orchestrator.bench import history

    found = history.load(active(profile).name, run)
    story = told(found, profile)
    if as_json:
        print_json(_document(story))
    else:
        _show(story)


@bench.command()
@profile_option
@json_option
@click.argument("before")
@click.argument("after", default="last")
def compare(profile: str | None, as_json: bool, before: str, after: str) -> None:
    """Compare two runs, load by load: better or worse, significant or not, and what else differs.

    Example: orchestrate bench compare 20261126T0700 last
    """
    from dataclasses import asdict

    from orchestrator.bench import history

    name = active(profile).name
    old, new = history.load(name, before), history.load(name, after)
    changes, differs = history.changes(old, new), history.differences(old, new)
    if as_json:
        print_json({"changes": [asdict(each) for each in changes], "differs": differs})
        return
    for each in changes:
        out.print(each.line, markup=False)
    if not changes:
        out.print("The two have no load in common.")
    for line in differs:
        out.print(f"differs: {line}", markup=False)


@bench.command()
@profile_option
@click.argument("run", default="last")
@click.option(
    "--out",
    "to",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help="Default: RUN.html here. '-': the standard output, as from another computer.",
)
def report(profile: str | None, run: str, to: Path | None) -> None:
    """Write a run's report: one HTML file that opens without a network.

    Example: orchestrate bench report last --out report.html
    """
    from orchestrator.bench import history
    from orchestrator.report.page import page

    found = history.load(active(profile).name, run)
    if to == Path("-"):
        print(page(told(found, profile)))
        return
    path = to or Path(f"{found.id}.html")
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(page(told(found, profile)), encoding="utf-8")
    beside.replace(path)
    out.print(f"{path}: {path.stat().st_size / 1e6:.1f} MB", markup=False)


def told(run: Run, profile: str | None = None) -> Story:
    """A run's story, with what is known on this machine: probes, a fitted engine, runs before."""
    from orchestrator import models
    from orchestrator.bench import history
    from orchestrator.bench.against import layout_of
    from orchestrator.bench.attribute import story
    from orchestrator.errors import UserError
    from orchestrator.predict import inputs

    loaded = active(profile)
    try:
        probes = inputs.probes(loaded.name)
    except UserError:
        probes = None
    return story(
        run,
        loaded,
        models.served(loaded).config,
        layout_of(run),
        probes,
        inputs.engine(loaded.name),
        history.last_good(loaded.name, run),
    )


def _show(story: Story) -> None:
    from rich.table import Table

    for line in story.verdict:
        out.print(line, markup=False)
    table = Table("load", "at", "first token", "each further", "tokens/s", box=None, pad_edge=False)
    for each in story.run.measured:
        table.add_row(
            each.scenario.name,
            each.scenario.load,
            f"{each.ttft_s.median * 1e3:.3g} ms",
            f"{each.tpot_s.median * 1e3:.3g} ms",
            f"{each.output_tokens_per_s.median:.4g}",
        )
    out.print(table)
    for phase in story.phases:
        rest = f"{phase.unexplained_s * 1e3:+.3g} ms unexplained"
        took = f"{phase.measured_s * 1e3:.3g} ms"
        out.print(f"{phase.scenario}, {phase.name}: {took}, {phase.cause}; {rest}. {phase.why}",
                  markup=False)  # fmt: skip
    for line in story.compared:
        out.print(f"since the last good run: {line}", markup=False)


def _document(story: Story) -> dict[str, Any]:
    from pydantic import TypeAdapter

    from orchestrator.bench.results import Run

    return {
        "verdict": story.verdict,
        "compared": story.compared,
        "phases": [
            {"scenario": each.scenario, "phase": each.name, "measured_s": each.measured_s,
             "parts_s": dict(each.parts), "unexplained_s": each.unexplained_s,
             "cause": each.cause, "why": each.why, "modelled": each.modelled}
            for each in story.phases
        ],
        "run": TypeAdapter(Run).dump_python(story.run, mode="json"),
    }  # fmt: skip
