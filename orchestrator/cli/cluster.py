"""`orchestrate up`, `down`, `status`, `verify`, `ask`: the cluster of the active profile."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.choice import (
    NodeChoice,
    choice_options,
    json_option,
    model_option,
    of_model,
)
from orchestrator.cli.layout import change_layout_option, settled_layout, tell_layout
from orchestrator.cli.where import on_cluster
from orchestrator.core.console import out, print_error, print_json

if TYPE_CHECKING:
    from orchestrator.cluster.cluster import Cluster
    from orchestrator.cluster.up import Bringup
    from orchestrator.node.selection import Selection
    from orchestrator.performance.predict.auto import Settled
    from orchestrator.profile import Profile
    from orchestrator.verify.facts import Generated

#: As machines/accel.py has them.
ACCELERATORS = ("auto", "kvm", "tcg")
machines_option = click.option(
    "--machines",
    metavar="KIND",
    help="Machine driver, in place of the profile's 'machines'; kept until 'down'.",
)
accel_option = click.option(
    "--accel",
    type=click.Choice(ACCELERATORS),
    help="Accelerator of QEMU machines, in place of the profile's 'simulation.accel': KVM, TCG"
    " (translation, several times slower), or 'auto': KVM if a trial succeeds. Kept until 'down';"
    " applies to machines started from now on.",
)
#: Where 'up' can stop, in order: the last is all of it.
STEPS = ("control", "ssh", "base", "ray", "serving")


@click.command()
@on_cluster
@json_option
@machines_option
@accel_option
@click.option(
    "--until",
    type=click.Choice(STEPS),
    default=STEPS[-1],
    show_default=True,
    help="Stop after this step. 'control': only the control node, ready for others to boot. "
    "Only the last step, 'serving', is followed by verification.",
)
@click.option(
    "--if-profile",
    metavar="SHA256",
    help="Refuse unless the profile is the planned one: 'profile_sha256' of 'plan --json'.",
)
@change_layout_option
@choice_options
def up(
    profile: Profile,
    as_json: bool,
    until: str,
    if_profile: str | None,
    change_layout: bool,
    choice: NodeChoice,
    **driver: str | None,
) -> None:
    """Bring the cluster up, from power to a verified answer.

    Changes only what differs; a second 'up' changes nothing and says so. Exit code 0 only if every
    node came up and every check passed. With part of the nodes, only these nodes are checked, not
    the endpoint. With --only, nodes are powered on, then only that step runs.

    With 'serving.layout: auto', the first 'up' chooses the layout by forecasts. Later ones keep it,
    and say if another one would be better; --change-layout takes that.

    \b
    Example: orchestrate up --profile sim
    Example: orchestrate up --node compute1 --only base
    """
    from orchestrator.cluster.cluster import open_cluster
    from orchestrator.cluster.up import up as bring_up
    from orchestrator.core.errors import UserError
    from orchestrator.core.progress import Board

    only = choice.only
    if only and until not in (STEPS[-1], only):
        raise click.UsageError("--only and --until cannot be combined")
    until = only or until
    selection, serves = choice.of(profile), until == STEPS[-1]
    if change_layout and not (serves and selection.whole):
        raise click.UsageError("--change-layout needs all nodes, and all steps")
    cluster = open_cluster(profile, **driver)
    if if_profile and if_profile != cluster.profile.sha256:
        raise UserError(
            f"{cluster.profile.path} was changed since that plan: its sha256 is now"
            f" {cluster.profile.sha256}",
            "Nothing was changed. See the current plan: orchestrate plan",
        )
    with cluster.locked("up"):
        settled = None
        if serves:
            cluster, settled = settled_layout(cluster, change=change_layout, write=True)
            if not as_json:
                tell_layout(settled)
        with Board(quiet=as_json) as board:
            result = bring_up(cluster, board, until, selection, choice.jobs)
    if as_json:
        print_json(_document(result, settled))
    else:
        _tell(result, cluster, selection, only)
    sys.exit(0 if result.ok else 1)


def _document(result: Bringup, settled: Settled | None) -> dict[str, Any]:
    """What `up` came to, as JSON types."""
    return {
        "ok": result.ok,
        "until": result.until,
        "seconds": round(result.board.seconds, 2),
        "changed": result.changed,
        "failures": {name: str(error) for name, error in result.failures.items()},
        "steps": result.board.document(),
        "first_run": result.first_run.document() if result.first_run else None,
        "verify": result.report.document() if result.report else None,
        **({"layout": settled.document()} if settled else {}),
    }


def _tell(result: Bringup, cluster: Cluster, selection: Selection, only: str | None) -> None:
    """What `up` came to, for people."""
    from orchestrator.core.nodeset import fold
    from orchestrator.node.plan import outcomes_told

    for report in (result.first_run, result.report):
        if report:
            out.print(report.table())
    changed, failures = outcomes_told(result.changed, result.failures)
    for line in changed:
        out.print(line, markup=False)
    for line in failures:
        print_error(line)
    if not result.ok:
        return
    said = "nothing changed" if result.nothing_changed else f"up in {result.board.seconds:.0f} s"
    if not selection.whole:
        reached = f"{fold(selection.names)}{f', only {only}' if only else ''}"
    elif result.report:
        reached = f"the model answers at {cluster.endpoint}/v1"
    else:
        reached = f"stopped after '{result.until}'"
    out.print(f"{cluster.profile.name}: {said}; {reached}")


@click.command()
@on_cluster
def down(profile: Profile) -> None:
    """Undo 'up': switch machines off, remove networks and mounts. Keys and images stay.

    Example: orchestrate down --profile sim
    """
    from orchestrator.cluster.cluster import open_cluster
    from orchestrator.cluster.down import down as take_down
    from orchestrator.core.progress import Board

    cluster = open_cluster(profile)
    with cluster.locked("down"), Board() as board:
        found = take_down(cluster, board)
    out.print(f"{cluster.profile.name}: {'down' if found else 'was down already; nothing changed'}")


@click.command()
@partial(on_cluster, attached="orchestrator.cli.attached:status")
@json_option
@click.option(
    "--watch", is_flag=True, help="Refresh until the whole cluster is up or Ctrl-C is pressed."
)
def status(profile: Profile, as_json: bool, watch: bool) -> None:
    """Show nodes with their boot progress, image, Ray, model and endpoint. Changes nothing.

    Example: orchestrate status --watch
    """
    from orchestrator.cluster.cluster import open_cluster
    from orchestrator.cluster.live_status import watch as look_again
    from orchestrator.cluster.status import status as look

    if watch and as_json:
        raise click.UsageError("--watch and --json cannot be combined")
    if watch:
        look_again(open_cluster(profile))
        return
    seen = look(open_cluster(profile))
    if as_json:
        print_json(seen.document())
    else:
        for part in seen.tables():
            out.print(part)


@click.command()
@partial(on_cluster, attached="orchestrator.cli.attached:verify")
@json_option
@click.option(
    "--junit",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write the checks to this file, as JUnit XML.",
)
@click.option(
    "--hardware",
    is_flag=True,
    help="From the bottom up instead, one layer at a time: devices, driver, torch, kernels, the"
    " collective, vLLM, a small model. Stops at the first layer that fails.",
)
@click.option(
    "--force",
    is_flag=True,
    help="With --hardware: also run the steps that disturb a served model. They may end it.",
)
@choice_options
def verify(
    profile: Profile,
    as_json: bool,
    junit: Path | None,
    hardware: bool,
    force: bool,
    choice: NodeChoice,
) -> None:
    """Check that the cluster is what the profile says. Changes nothing.

    Exit code 0 only if all checks pass. Ray and the endpoint are checked only if the control node
    is among the chosen nodes.

    \b
    Example: orchestrate verify --junit verify.xml
    Example: orchestrate verify --exclude control
    Example: orchestrate verify --hardware
    """
    from orchestrator.cluster.cluster import open_cluster
    from orchestrator.cluster.first_run import first_run
    from orchestrator.cluster.targets import published_models, verify_context
    from orchestrator.core.progress import Board
    from orchestrator.verify.everything import verify as check

    if force and not hardware:
        raise click.UsageError("--force needs --hardware")
    if hardware and choice.only:
        raise click.UsageError("--hardware and --only cannot be combined")
    cluster = open_cluster(profile)
    selection = choice.of(cluster.profile)
    if hardware:
        with Board(quiet=as_json) as board:
            report = first_run(cluster, board, selection, forced=force)
    else:
        context = verify_context(cluster, published_models(cluster), selection, choice.jobs)
        report = check(cluster.profile, context, selection, choice.jobs)
    if junit:
        junit.write_text(report.junit())
    if as_json:
        print_json(report.document())
    else:
        out.print(report.table())
        out.print(report.summary)
    sys.exit(0 if report.ok else 1)


@click.command()
@partial(on_cluster, attached="orchestrator.cli.attached:ask")
@json_option
@model_option
@click.argument("question")
def ask(profile: Profile, as_json: bool, question: str, model: str | None) -> None:
    """Ask a served model a question, through the endpoint, at temperature 0.

    Example: orchestrate ask "What is the capital of France?"
    """
    import httpx

    from orchestrator.cluster.cluster import open_cluster
    from orchestrator.core.errors import UserError
    from orchestrator.verify.gather import ask as put

    cluster = open_cluster(of_model(profile, model))
    with cluster.driver.network(), cluster.client() as client:
        try:
            said = put(client, cluster.profile, question)
        except httpx.TransportError as error:
            raise UserError(
                f"no answer at {cluster.endpoint}: {error}", "Run: orchestrate status"
            ) from None
    answered(question, said, as_json)


def answered(question: str, said: Generated, as_json: bool) -> None:
    if as_json:
        print_json({"question": question, "answer": said.text})
    else:
        out.print(said.text, markup=False)
