"""`orchestrate probe`: what the machines and the cables can do."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from orchestrator.cli.choice import json_option, nodes_option
from orchestrator.cli.where import on_cluster
from orchestrator.core.console import err, out, print_json

if TYPE_CHECKING:
    from orchestrator.cluster.cluster import Cluster
    from orchestrator.profile import Profile

KINDS = ("device", "link", "collective", "storage")


@click.command()
@on_cluster
@json_option
@click.option("--only", type=click.Choice(KINDS), multiple=True, help="Default: all probes.")
@nodes_option("Only these nodes, as with 'up'.")
@click.option("--force", is_flag=True, help="Probe even while the model answers requests.")
def probe(
    profile: Profile, as_json: bool, only: tuple[str, ...], nodes: tuple[str, ...], force: bool
) -> None:
    """Measure memory, matrix products, links, collectives and disks, as the model's ranks use them.

    It takes minutes at most; a probe that hangs is killed and reported. The figures are stored:
    'plan --serving' predicts from the newest complete round (all kinds, all nodes), and reports
    show it. Exit code 0 only if every probe gave a result.

    \b
    Example: orchestrate probe
    Example: orchestrate probe --only link --node compute0,compute1
    """
    from dataclasses import asdict

    from orchestrator.cluster.cluster import open_cluster
    from orchestrator.core.progress import Board
    from orchestrator.node.selection import select
    from orchestrator.performance.probe.judge import anomalies
    from orchestrator.performance.probe.run import Kind, store
    from orchestrator.performance.probe.run import probe as measure
    from orchestrator.performance.probe.tables import tables

    cluster = open_cluster(profile)
    chosen = select(cluster.profile, nodes)
    kinds = [Kind(each) for each in only or KINDS]
    requests = idle(cluster, force=force)
    with cluster.locked("probe"), Board(quiet=as_json) as board:
        found = measure(cluster, board, kinds, chosen.nodes, requests)
    whole = chosen.whole and set(kinds) == set(Kind)
    path = store(found, whole=whole)
    lines = list(anomalies(cluster.profile, found))
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


def idle(cluster: Cluster, *, force: bool) -> float | None:
    """How many requests the model works on; None where it does not serve. Raises UserError where
    it works on some, unless forced."""
    from orchestrator.core.errors import UserError
    from orchestrator.performance.probe.run import requests_in_work

    requests = requests_in_work(cluster)
    if requests and not force:
        raise UserError(
            f"the model is answering {requests:.0f} requests, which would distort the figures",
            "Wait until they are answered, or add --force.",
        )
    return requests
