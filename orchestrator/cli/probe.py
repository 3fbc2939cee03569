"""`orchestrate probe`: what the machines and the cables can do."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from orchestrator.cli import complete
from orchestrator.cli.cluster import json_option, opened
from orchestrator.console import err, out, print_json
from orchestrator.profile import profile_option

if TYPE_CHECKING:
    from orchestrator.probe.results import Probes

KINDS = ("device", "link", "collective")


@click.command()
@profile_option
@json_option
@click.option("--only", type=click.Choice(KINDS), multiple=True, help="Default: all three.")
@click.option(
    "--node",
    "nodes",
    metavar="NAMES",
    multiple=True,
    shell_complete=complete.nodes,
    help="Only these, as with 'up'.",
)
@click.option("--force", is_flag=True, help="Also while the model answers requests.")
def probe(
    profile: str | None, as_json: bool, only: tuple[str, ...], nodes: tuple[str, ...], force: bool
) -> None:
    """Measure memory, matrix products, links and collectives, as the model's ranks use them.

    Minutes at most; what hangs is ended and said. The figures are kept: 'plan --serving' predicts
    from the newest, and reports show them. Exit code 0 only if every probe gave something.

    \b
    Example: orchestrate probe
    Example: orchestrate probe --only link --node compute0,compute1
    """
    from dataclasses import asdict

    from orchestrator.errors import UserError
    from orchestrator.probe.plan import left_out
    from orchestrator.probe.run import Kind, odd, requests_in_work, store
    from orchestrator.probe.run import probe as measure
    from orchestrator.progress import Board
    from orchestrator.selection import select

    cluster = opened(profile)
    chosen = select(cluster.profile, nodes).nodes
    if (busy := requests_in_work(cluster)) and not force:
        raise UserError(
            f"the model is working on {busy:.0f} requests: figures would be of what it leaves",
            "Wait until they are answered, or add --force.",
        )
    with cluster.locked("probe"), Board(quiet=as_json) as board:
        found = measure(cluster, board, [Kind(each) for each in only or KINDS], chosen)
    path = store(found)
    if as_json:
        print_json({"file": path, **asdict(found)})
    else:
        show(found)
        for line in odd(cluster, found):
            out.print(f"odd: {line}", markup=False)
        if more := left_out(cluster.profile, chosen):
            out.print(f"{more} further pairs of nodes were not probed")
        out.print(f"kept: {path}", markup=False)
    for failure in found.failed:
        err.print(f"[red]failed:[/red] {failure.probe} of {failure.where}: {failure.reason}")
    sys.exit(1 if found.failed else 0)


def show(found: Probes) -> None:
    """Two tables: devices, and links with collectives."""
    from rich.table import Table

    if found.devices:
        table = Table("node", "device", "memory", "matrix", "operation", box=None, pad_edge=False)
        for device in found.devices:
            matrix = ", ".join(
                f"{dtype} {rate.median / 1e9:.4g}"
                for dtype, rate in device.matrix_flops_per_s.items()
            )
            table.add_row(
                device.node,
                f"{device.device}, {device.threads} threads: {device.name}",
                f"{device.memory_bytes_per_s.median / 1e9:.3g} GB/s",
                f"{matrix} GFLOP/s",
                f"{device.operation_s.median * 1e6:.1f} µs",
            )
        out.print(table)
    if found.links:
        table = Table("link", "network", "interfaces", "TCP", "one way", box=None, pad_edge=False)
        for link in found.links:
            table.add_row(
                f"{link.a}, {link.b}",
                link.network,
                ", ".join(link.interfaces),
                f"{link.bytes_per_s.median * 8 / 1e6:.4g} Mb/s",
                f"{link.latency_s.median * 1e6:.0f} µs",
            )
        out.print(table)
    for each in found.collectives:
        times = ", ".join(
            f"{size} B {took.median * 1e3:.3g} ms" for size, took in each.all_reduce_s.items()
        )
        out.print(f"all-reduce by {each.backend}: {times}", markup=False)
