"""`orchestrate bench prove`: the named cause is changed on purpose."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.choice import json_option, model_option, of_model
from orchestrator.cli.where import on_cluster
from orchestrator.core.console import out, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.performance.prove.claim import Claim
    from orchestrator.performance.results.bench import Run
    from orchestrator.performance.results.proof import Proof
    from orchestrator.profile import Profile
    from orchestrator.profile.existing import Attached

CAUSES = (
    "link bandwidth",
    "link latency",
    "host",
    "scheduling",
    "compute",
    "memory",
    "batch limit",
    "long prefill",
    "slow node",
)


@click.command()
@partial(on_cluster, attached="orchestrator.cli.prove:attached_prove")
@json_option
@click.argument("run", default="last")
@click.option("--workload", multiple=True, help="Only these workloads of the run.")
@click.option("--phase", type=click.Choice(("prefill", "decode")), help="Only this phase.")
@click.option("--cause", type=click.Choice(CAUSES), help="Try this cause, not the named ones.")
@click.option(
    "--rounds",
    type=click.IntRange(2, 50),
    default=3,
    show_default=True,
    help="How often each dose is measured.",
)
@click.option("--force", is_flag=True, help="Also while the model answers requests of others.")
@model_option
def prove(
    profile: Profile, as_json: bool, run: str, rounds: int, model: str | None, **how: Any
) -> None:
    """Change the causes that a run's report names, in steps, and compare the slope of the time.

    Each step is measured between two loads in the unchanged state. Links get slower, clocks are
    limited, prompts or requests at once change. A cause is confirmed, refuted, undecided for noise,
    or cannot be tried here, with the reason. All changes are undone, also if this program or the
    connection ends. Without --workload, each cause is tried on the first workload that has it.
    Exit code 1 if a cause is refuted.

    \b
    Example: orchestrate bench prove
    Example: orchestrate bench prove last --workload "single stream" --phase decode
    Example: orchestrate bench prove --cause host --rounds 5
    """
    from orchestrator.cli.probe import idle
    from orchestrator.cli.told import told
    from orchestrator.cluster.cluster import open_cluster
    from orchestrator.core.progress import Board
    from orchestrator.performance.bench import history
    from orchestrator.performance.prove.claim import claims
    from orchestrator.performance.prove.prove import prove_all

    profile = of_model(profile, model)
    found = history.load(profile.name, run)
    phases = told(found, profile).phases
    wanted = of_phase(claims(found, phases, how["workload"], how["cause"]), how["phase"], found)
    cluster = open_cluster(profile)
    idle(cluster, force=how["force"])
    with cluster.locked("bench prove"), Board(quiet=as_json) as board:
        proofs = prove_all(cluster, board, found, wanted, rounds)
    shown(found, proofs, as_json)


def attached_prove(profile: Attached, as_json: bool, run: str, rounds: int, **how: Any) -> None:
    from orchestrator.attach.bench import kept_speeds
    from orchestrator.attach.probe import requests_in_work
    from orchestrator.attach.prove import claims, prove_all
    from orchestrator.cli.probe import undisturbed
    from orchestrator.core.progress import Board
    from orchestrator.performance.bench import history

    found = history.load(profile.name, run)
    speeds = kept_speeds(profile.name)
    every = claims(found, profile, speeds, how["workload"], how["cause"])
    wanted = of_phase(every, how["phase"], found)
    undisturbed(requests_in_work(profile), force=how["force"])
    with Board(quiet=as_json) as board:
        proofs = prove_all(profile, board, found, wanted, rounds)
    shown(found, proofs, as_json)


def of_phase(found: Sequence[Claim], phase: str | None, run: Run) -> list[Claim]:
    """The claims on a phase. Raises BadInput where there are none."""
    from orchestrator.core.errors import BadInput

    left = [each for each in found if phase in (None, each.phase)]
    if not left:
        raise BadInput(f"no cause is named for {phase} in the run {run.id}", "Add: --cause NAME")
    return left


def shown(run: Run, proofs: Sequence[Proof], as_json: bool) -> None:
    """Show proofs; exit code 1 if one refutes."""
    from dataclasses import asdict

    from orchestrator.performance.results.proof import Judgement

    if as_json:
        print_json({"run": run.id, "proofs": [asdict(each) for each in proofs]})
    else:
        for each in proofs:
            _show(each)
    if any(each.verdict is Judgement.REFUTED for each in proofs):
        raise SystemExit(1)


def _show(proof: Proof) -> None:
    from rich.table import Table

    out.print(proof.line, markup=False)
    if not proof.points:
        return
    table = Table("changed to", "time", "unchanged", box=None, pad_edge=False)
    for each in sorted(proof.points, key=lambda point: point.x):
        table.add_row(each.dose, f"{each.seconds * 1e3:.4g} ms", f"{each.unchanged_s * 1e3:.4g} ms")
    out.print(table)
    out.print(f"undone by {proof.put_back}", markup=False)
