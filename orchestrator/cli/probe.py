"""`orchestrate probe`: what the machines and the cables can do."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from orchestrator.cli.choice import (
    json_option,
    model_option,
    must_be_alone,
    nodes_option,
    of_model,
)
from orchestrator.cli.where import on_cluster
from orchestrator.core.console import err, out, print_json

if TYPE_CHECKING:
    from orchestrator.cluster.cluster import Cluster
    from orchestrator.performance.results.engine import EngineRates
    from orchestrator.performance.results.probe import Probes
    from orchestrator.profile import Profile

KINDS = ("device", "link", "collective", "storage")
#: Takes minutes, so that it is measured only when asked for.
ENGINE = "engine"
#: Seconds for an engine's loads, where nobody says how many.
ENGINE_S = 300


@click.command()
@partial(on_cluster, attached="orchestrator.cli.attached:probe")
@json_option
@click.option(
    "--only",
    type=click.Choice((*KINDS, ENGINE)),
    multiple=True,
    help="Default: all probes but the engine's.",
)
@nodes_option("Only these nodes, as with 'up'.")
@click.option(
    "--force",
    is_flag=True,
    help="Probe even while the model answers requests, and measure an engine anew.",
)
@click.option(
    "--dummy",
    is_flag=False,
    flag_value="",
    metavar="[CONFIG]",
    help="With --only engine: start an engine with dummy weights, and measure that. CONFIG: the "
    "model's config.json or its directory, on a cluster that others run.",
)
@click.option(
    "--layers",
    metavar="N,M",
    help="With --dummy: only so many layers, twice, and a straight line through both. Default: all "
    "layers; where they do not fit, about a quarter and a half of them.",
)
@click.option(
    "--seconds",
    type=click.IntRange(30, 3600),
    help=f"With --only engine: at most so many for its loads. Less time means fewer rounds, and "
    f"then fewer loads. Default: {ENGINE_S}.",
)
@model_option
def probe(
    profile: Profile,
    as_json: bool,
    only: tuple[str, ...],
    nodes: tuple[str, ...],
    force: bool,
    model: str | None,
    **engine: Any,
) -> None:
    """Measure memory, matrix products, links, collectives and disks, as the model's ranks use them.

    It takes minutes at most; a probe that hangs is killed and reported. The figures are stored:
    'plan --serving' predicts from the newest complete round (all kinds, all nodes), and reports
    show it. Exit code 0 only if every probe gave a result.

    '--only engine' measures the engine itself under small loads, by batch size and prompt length:
    predictions from it need no formula. What was measured with the same model, versions, flags and
    devices is not measured again without --force.

    \b
    Example: orchestrate probe
    Example: orchestrate probe --only link --node compute0,compute1
    Example: orchestrate probe --only engine
    """
    from orchestrator.cluster.cluster import open_cluster
    from orchestrator.core.progress import Board
    from orchestrator.node.selection import select
    from orchestrator.performance.probe.judge import anomalies
    from orchestrator.performance.probe.run import Kind, store
    from orchestrator.performance.probe.run import probe as measure

    wish = asked_engine(only, **engine)
    if ENGINE in only:
        profile = of_model(profile, model)
        if wish.dummy is not None:
            must_be_alone(profile, "--dummy")
    elif model:
        raise click.UsageError("--model goes with --only engine")
    cluster = open_cluster(profile)
    if ENGINE in only:
        if nodes or wish.dummy or wish.depths:
            text = "--node, a CONFIG and --layers do not go with --only engine of this cluster"
            raise click.UsageError(text)
        _engine(cluster, as_json, wish, force=force)
        return
    chosen = select(cluster.profile, nodes)
    kinds = [Kind(each) for each in only or KINDS]
    requests = idle(cluster, force=force)
    with cluster.locked("probe"), Board(quiet=as_json) as board:
        found = measure(cluster, board, kinds, chosen.nodes, requests)
    whole = chosen.whole and set(kinds) == set(Kind)
    shown(found, store(found, whole=whole), list(anomalies(cluster.profile, found)), as_json, whole)


def shown(found: Probes, path: Path, lines: Sequence[str], as_json: bool, whole: bool) -> NoReturn:
    """Show a round of probes; the exit code is 1 if one failed."""
    from dataclasses import asdict

    from orchestrator.performance.probe.tables import tables

    if as_json:
        print_json({"file": path, "anomalies": lines, **asdict(found)})
    else:
        for table in tables(found):
            out.print(table)
            out.print()
        for line in lines:
            out.print(f"anomaly: {line}", markup=False)
        use = "" if whole else " (partial: 'plan --serving' uses only complete rounds)"
        out.print(f"kept: {path}{use}", markup=False)
    for failure in found.failed:
        err.print(f"failed: {failure.probe} of {failure.where}: {failure.reason}", markup=False)
    sys.exit(1 if found.failed else 0)


def _engine(cluster: Cluster, as_json: bool, wish: EngineWish, *, force: bool) -> None:
    from orchestrator.core.progress import Board
    from orchestrator.performance.bench import served
    from orchestrator.performance.probe.engine import kept, store

    idle(cluster, force=force)
    measure = served.live if wish.dummy is None else served.dummy
    with cluster.locked("probe"), Board(quiet=as_json) as board:
        found, known = measure(cluster, board, wish.seconds, again=force)
    name = cluster.profile.name
    engine_shown(found, kept(name, found) if known else store(name, found), as_json, known)


@dataclass(frozen=True)
class EngineWish:
    """How an engine is to be measured. ``dummy``: None, or the config.json of one to be started
    ("": the cluster's own model); ``depths``: numbers of layers, or none."""

    dummy: str | None
    depths: tuple[int, ...]
    seconds: float


def asked_engine(
    only: Sequence[str], dummy: str | None, layers: str | None, seconds: int | None
) -> EngineWish:
    """Raises UsageError for options that do not go together."""
    if seconds is not None and ENGINE not in only:
        raise click.UsageError("--seconds goes with --only engine")
    return EngineWish(dummy, _depths(only, dummy, layers), float(seconds or ENGINE_S))


def _depths(only: Sequence[str], dummy: str | None, layers: str | None) -> tuple[int, ...]:
    if (dummy is not None or layers) and ENGINE not in only:
        raise click.UsageError("--dummy and --layers go with --only engine")
    if ENGINE in only and len(set(only)) > 1:
        raise click.UsageError("--only engine is measured alone")
    if layers is None:
        return ()
    if dummy is None:
        raise click.UsageError("--layers goes with --dummy: the engine that serves has all of them")
    words = layers.split(",")
    if not all(word.strip().isdigit() and len(word) < 8 for word in words):
        raise click.UsageError("--layers wants two numbers, like 14,28")
    return tuple(map(int, words))


def engine_shown(found: EngineRates, path: Path, as_json: bool, known: bool) -> None:
    """Show what was measured of an engine, now or before."""
    from dataclasses import asdict

    from orchestrator.performance.probe.engine import age
    from orchestrator.performance.probe.tables import engine_table

    if as_json:
        print_json({"file": path, "known": known, "age": age(found), **asdict(found)})
        return
    out.print(engine_table(found))
    for note in found.notes:
        out.print(f"note: {note}", markup=False)
    again = f" (measured {age(found)}; --force measures anew)" if known else ""
    out.print(f"kept: {path}{again}", markup=False)


def idle(cluster: Cluster, *, force: bool) -> float | None:
    """How many requests the model works on; None where it does not serve. Raises UserError where
    it works on some, unless forced."""
    from orchestrator.performance.probe.run import requests_in_work

    return undisturbed(requests_in_work(cluster), force=force)


def undisturbed(requests: float | None, *, force: bool) -> float | None:
    """The requests that the model works on. Raises UserError where there are any, unless forced."""
    from orchestrator.core.errors import UserError

    if requests and not force:
        raise UserError(
            f"the model is answering {requests:.0f} requests, which would distort the figures",
            "Wait until they are answered, or add --force.",
        )
    return requests
