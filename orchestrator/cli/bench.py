"""`orchestrate bench`: measured load, kept runs, comparison, report."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.choice import json_option, model_option, must_be_alone, of_model
from orchestrator.cli.prove import prove
from orchestrator.cli.told import told, with_proofs
from orchestrator.cli.where import on_cluster
from orchestrator.core.console import err, out, print_error, print_json, print_text

if TYPE_CHECKING:
    from orchestrator.performance.report.story import Story
    from orchestrator.performance.results.bench import Asked, Run
    from orchestrator.performance.results.probe import Spread
    from orchestrator.profile import Profile
    from orchestrator.profile.existing import Attached


@click.group()
def bench() -> None:
    """Find the bottleneck: put load on the model, record every node, explain the time taken.

    RUN is a run's id, the beginning of one, or "last".
    """


bench.add_command(prove)


@bench.command("run")
@partial(on_cluster, attached="orchestrator.cli.attached:bench_run")
@json_option
@click.option("--workload", multiple=True, help="Only these, by their names in 'bench workloads'.")
@click.option(
    "--repeats",
    type=click.IntRange(1, 100),
    help="Repeats of each workload.  [default: the profile's bench.repeats]",
)
@click.option("--no-rates", is_flag=True, help="Skip the sweep over request rates.")
@click.option(
    "--target",
    metavar="ttft=MS,tpot=MS",
    help="Goodput: requests per second whose TTFT and TPOT are within these times.  "
    "[default: the profile's bench.targets]",
)
@click.option(
    "--against-one-node", is_flag=True, help="Measure one node first: does clustering help?"
)
@click.option("--resume", metavar="RUN", help="Finish an interrupted run with its own options.")
@model_option
def run_(profile: Profile, as_json: bool, model: str | None, **how: Any) -> None:
    """Load the model through the endpoint with vLLM's own client, and store the results.

    Workloads: a single stream, rising concurrency, rising request rates, long prompts, long
    answers. Refused if 'verify' fails. A lost node marks the run. --resume measures only the
    missing workloads.

    \b
    Example: orchestrate bench run
    Example: orchestrate bench run --workload "single stream" --repeats 8
    """
    from orchestrator.cluster.cluster import open_cluster
    from orchestrator.core.progress import Board
    from orchestrator.performance.bench.against import against_one_node
    from orchestrator.performance.bench.run import bench as measure

    profile = of_model(profile, model)
    if how["against_one_node"]:
        must_be_alone(profile, "--against-one-node")
    cluster = open_cluster(profile)
    resumed, asked = asked_for(profile, how)
    with cluster.locked("bench run"), Board(quiet=as_json) as board:
        if how["against_one_node"]:
            run = against_one_node(cluster, board, asked)
        else:
            run = measure(cluster, board, asked, resumed)
    finished(run, profile, as_json)


def asked_for(profile: Profile | Attached, how: dict[str, Any]) -> tuple[Run | None, Asked]:
    """The run to finish, if any, and what is wanted. Raises BadInput."""
    resumed = _begun(profile.name, how) if how["resume"] else None
    return resumed, (resumed and resumed.asked) or _asked(profile, how)


def finished(run: Run, profile: Profile | Attached, as_json: bool) -> None:
    """Keep the named causes of a run that has just ended, and show it; exit code 1 if it is not
    complete."""
    from orchestrator.performance.bench import history
    from orchestrator.performance.results.bench import Named

    story = told(run, profile)
    causes = tuple(Named(each.workload, each.name, each.cause) for each in story.phases)
    history.store(replace(run, causes=causes))
    if as_json:
        print_json({"id": run.id, "state": run.state, "note": run.note,
                    "verdict": story.verdict,
                    "workloads": [each.workload.name for each in run.measured]})  # fmt: skip
    else:
        _show(story)
    if run.note:
        print_error(run.note, label=f"this run is {run.state}")
        raise SystemExit(1)


def _begun(cluster: str, how: dict[str, Any]) -> Run:
    """The run to finish; what it measures was said when it began."""
    from orchestrator.core.errors import BadInput
    from orchestrator.performance.bench import history

    others = [name for name, value in how.items() if value and name != "resume"]
    if others:
        option = others[0].replace("_", "-")
        raise click.UsageError(
            f"--resume uses the options of the interrupted run: leave out --{option}"
        )
    run = history.load(cluster, how["resume"])
    if run.asked is None:
        raise BadInput(f"the run {run.id} has no recorded options", "Start a new run.")
    return run


def _asked(profile: Profile | Attached, how: dict[str, Any]) -> Asked:
    """What the options ask for, else the profile. Raises BadInput for a load that is not known."""
    from orchestrator.core.errors import BadInput
    from orchestrator.core.nearest import nearest
    from orchestrator.performance.bench.load import targets, workloads
    from orchestrator.performance.results.bench import Asked

    names = how["workload"]
    every = workloads(profile)
    known = [each.name for each in every]
    if unknown := [name for name in names if name not in known]:
        raise BadInput(f"there is no workload {unknown[0]!r}", nearest(unknown[0], known))
    return Asked(
        workloads=tuple(each for each in every if not names or each.name in names),
        repeats=how["repeats"] or profile.bench.repeats,
        rates=not (names or how["no_rates"]),
        targets_ms=_targets(how["target"]) or targets(profile),
    )


def _targets(text: str | None) -> dict[str, float]:
    """Milliseconds by the client's name of a latency."""
    found = {}
    for word in filter(None, (text or "").split(",")):
        name, _, value = word.partition("=")
        number = float(value) if value.replace(".", "", 1).isdigit() else 0.0
        if name not in ("ttft", "tpot", "e2el") or number <= 0:
            raise click.UsageError(f"--target {word}: ttft, tpot or e2el, like ttft=500,tpot=50")
        found[name] = number
    return found


@bench.command()
@partial(on_cluster, attached=True)
@json_option
def workloads(profile: Profile | Attached, as_json: bool) -> None:
    """List the workloads that fit the profile's limits.

    Example: orchestrate bench workloads
    """
    from dataclasses import asdict

    from orchestrator.performance.bench.load import workloads

    every = workloads(profile)
    if as_json:
        print_json([asdict(each) for each in every])
        return
    for each in every:
        tokens = f"{each.prompt_tokens} + {each.output_tokens} tokens"
        out.print(f"{each.name:<16} {each.load}, {tokens}, {each.requests} requests a repeat")


@bench.command()
@partial(on_cluster, attached=True)
@json_option
def ls(profile: Profile | Attached, as_json: bool) -> None:
    """List the cluster's runs, the oldest first.

    Example: orchestrate bench ls
    """
    from rich.table import Table
    from rich.text import Text

    from orchestrator.performance.bench import history

    name = profile.name
    runs = [history.load(name, each) for each in history.names(name)]
    rows = [
        {"id": run.id, "state": run.state, "model": run.provenance.model,
         "layout": run.provenance.layout, "image": run.provenance.image_id[:12],
         "workloads": len(run.measured), "note": run.note}
        for run in runs
    ]  # fmt: skip
    if as_json:
        print_json(rows)
        return
    table = Table(
        "run", "state", "model", "layout", "image", "workloads", "", box=None, pad_edge=False
    )
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row.values()))
    if rows:
        out.print(table)
    if not rows:
        out.print("No runs yet: orchestrate bench run")


@bench.command()
@partial(on_cluster, attached=True)
@json_option
@click.argument("run", default="last")
def show(profile: Profile | Attached, as_json: bool, run: str) -> None:
    """Show a run: figures, causes, and changes since the last good run.

    Example: orchestrate bench show last
    """
    from orchestrator.performance.bench import history

    found = history.load(profile.name, run)
    story = with_proofs(told(found, profile))
    if as_json:
        print_json(_document(story))
    else:
        _show(story)


@bench.command()
@partial(on_cluster, attached=True)
@json_option
@click.argument(
    "files", metavar="[FILE]...", nargs=-1, type=click.Path(dir_okay=False, path_type=Path)
)
def accuracy(profile: Profile | Attached, as_json: bool, files: tuple[Path, ...]) -> None:
    """Show how right forecasts were: all of the cluster's runs, and of run files.

    'bench run' forecasts each load and seals the forecast before it measures. FILE: a run of
    another cluster, from its state directory. A forecast that was changed afterwards is named and
    not counted, as is a load that gave no figures.

    \b
    Example: orchestrate bench accuracy
    Example: orchestrate bench accuracy ~/other/20261130T101500Z.json
    """
    from orchestrator.cli.accuracy import show as show_accuracy
    from orchestrator.performance.report.accuracy import document, gathered

    found = gathered(profile.name, files)
    if as_json:
        print_json(document(found))
    else:
        show_accuracy(found, profile.name)


@bench.command()
@partial(on_cluster, attached=True)
@json_option
@click.argument("before")
@click.argument("after", default="last")
def compare(profile: Profile | Attached, as_json: bool, before: str, after: str) -> None:
    """Compare two runs by workload: by how much, with an interval, and other differences.

    Example: orchestrate bench compare 20261126T0700 last
    """
    from dataclasses import asdict

    from orchestrator.performance.bench import history

    name = profile.name
    old, new = history.load(name, before), history.load(name, after)
    changes, differs = history.changes(old, new), history.differences(old, new)
    if as_json:
        print_json({"changes": [asdict(each) for each in changes], "differs": differs})
        return
    for each in changes:
        out.print(each.line, markup=False)
    if not changes:
        out.print("The two runs have no workload in common.")
    for line in differs:
        out.print(f"differs: {line}", markup=False)


@bench.command()
@partial(on_cluster, attached=True)
@click.argument("run", default="last")
@click.option(
    "--out",
    "to",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help="Default: beside the run, in the state directory. '-' is standard output.",
)
def report(profile: Profile | Attached, run: str, to: Path | None) -> None:
    """Write a run's report, one HTML file that opens without a network, and print its path.

    Example: orchestrate bench report
    Example: orchestrate bench report last --out report.html
    """
    from orchestrator.core.files import write
    from orchestrator.core.sizes import human_size
    from orchestrator.performance.bench import history
    from orchestrator.performance.report.page import page

    found = history.load(profile.name, run)
    story = with_proofs(told(found, profile))
    if to == Path("-"):
        print_text(f"{page(story)}\n")
        return
    path = to or history.report(profile.name, found.id)
    write(path, page(story))
    out.print(f"{path}: {human_size(path.stat().st_size)}", markup=False, soft_wrap=True)


def _spread(found: Spread, scale: float = 1.0) -> str:
    """The median, and how far the repeats are off it."""
    off = max(found.high - found.median, found.median - found.low) * scale
    return f"{found.median * scale:.4g} ± {off:.2g}"


def figures(run: Run) -> None:
    from rich.table import Table

    from orchestrator.performance.bench.load import engine_times

    heads = ("workload", "load", "first token", "further token", "tokens/s")
    phases = ("queue", "prefill", "decode")
    good = ["good requests/s"] if any(each.goodput_per_s for each in run.measured) else []
    table = Table(*heads, *phases, *good, box=None, pad_edge=False)
    for each in run.measured:
        times = engine_times(each.engine)
        goodput = [_spread(each.goodput_per_s)] if each.goodput_per_s else []
        table.add_row(
            each.workload.name,
            each.workload.load,
            f"{_spread(each.ttft_s, 1e3)} ms",
            f"{_spread(each.tpot_s, 1e3)} ms",
            _spread(each.output_tokens_per_s),
            *(f"{times[name] * 1e3:.3g} ms" if name in times else "" for name in phases),
            *goodput,
        )
    out.print(table)
    if run.measured:
        out.print("queue, prefill, decode: mean per request, by vLLM's own clocks")


def _show(story: Story) -> None:
    from orchestrator.cli.accuracy import beside

    for each in story.answer.sentences:
        out.print(f"{each.asks} {each.says}", markup=False)
    for line in story.verdict:
        out.print(line, markup=False)
    figures(story.run)
    beside(story.run)
    for line in story.run.warnings:
        err.print(f"warning: {line}", markup=False)
    for phase in story.phases:
        rest = f"{phase.unexplained_s * 1e3:+.3g} ms unexplained"
        took = f"{phase.measured_s * 1e3:.3g} ms"
        out.print(f"{phase.workload}, {phase.name}: {took}, {phase.cause}; {rest}. {phase.why}",
                  markup=False)  # fmt: skip
    for line in story.compared:
        out.print(f"since the last good run: {line}", markup=False)


def _document(story: Story) -> dict[str, Any]:
    from pydantic import TypeAdapter

    from orchestrator.performance.bench.load import engine_times
    from orchestrator.performance.report.accuracy import document
    from orchestrator.performance.report.score import score
    from orchestrator.performance.results.bench import Run

    return {
        "answer": [vars(each) for each in story.answer.sentences],
        "verdict": story.verdict,
        "compared": story.compared,
        "engine_s": {each.workload.name: engine_times(each.engine) for each in story.run.measured},
        "phases": [
            {"workload": each.workload, "phase": each.name, "measured_s": each.measured_s,
             "parts_s": dict(each.parts), "unexplained_s": each.unexplained_s,
             "cause": each.cause, "why": each.why, "modelled": each.modelled}
            for each in story.phases
        ],
        "forecasts": document(score(story.run)),
        "run": TypeAdapter(Run).dump_python(story.run, mode="json"),
    }  # fmt: skip
