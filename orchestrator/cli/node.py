"""`orchestrate node`: power, wait, shell and status of single nodes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli import complete
from orchestrator.cli.choice import json_option
from orchestrator.cli.sim import replace_by
from orchestrator.cli.where import on_cluster
from orchestrator.core.console import out, print_error, print_json

if TYPE_CHECKING:
    from orchestrator.cluster.cluster import Cluster
    from orchestrator.cluster.nodes import PowerOutcome
    from orchestrator.profile import Node, Profile

nodes_argument = click.argument("node", nargs=-1, shell_complete=complete.nodes)
all_option = click.option("--all", "everyone", is_flag=True, help="All compute nodes.")
wait_option = click.option(
    "--wait", "waits", is_flag=True, help="Then wait for SSH, as 'orchestrate node wait' does."
)


@click.group()
def node() -> None:
    """Single nodes: power, wait, shell, status.

    NODE is a name, or a number: 0 is the first compute node.
    """


@node.command()
@on_cluster
@json_option
@all_option
@wait_option
@nodes_argument
def up(profile: Profile, as_json: bool, everyone: bool, waits: bool, node: tuple[str, ...]) -> None:
    """Power nodes on. They only boot; 'orchestrate up' configures them.

    A node that is on is not changed. With the power driver 'manual', the command says which machine
    to switch on, and waits.

    Example: orchestrate node up 0 1 --wait
    """
    from orchestrator.cluster.nodes import switch_on

    cluster, chosen = _chosen(profile, node, everyone)
    outcomes = _changed(cluster, "node up", chosen, switch_on)
    by_hand = [each for each in chosen if _is_manual(cluster, each)]
    _finish(cluster, chosen if waits else by_hand, outcomes, as_json)


@node.command()
@on_cluster
@json_option
@all_option
@nodes_argument
def down(profile: Profile, as_json: bool, everyone: bool, node: tuple[str, ...]) -> None:
    """Shut nodes down: cleanly over SSH, then by their power driver if it can.

    A node that is off is not changed.

    Example: orchestrate node down compute1
    """
    from orchestrator.cluster.nodes import switch_off

    cluster, chosen = _chosen(profile, node, everyone)
    _finish(cluster, (), _changed(cluster, "node down", chosen, switch_off), as_json)


@node.command()
@on_cluster
@json_option
@all_option
@wait_option
@nodes_argument
def restart(
    profile: Profile, as_json: bool, everyone: bool, waits: bool, node: tuple[str, ...]
) -> None:
    """Reboot nodes: over SSH if they answer, else by their power driver.

    Example: orchestrate node restart compute1 --wait
    """
    from orchestrator.cluster.nodes import restart as again

    cluster, chosen = _chosen(profile, node, everyone)
    outcomes = _changed(cluster, "node restart", chosen, again)
    _finish(cluster, chosen if waits else (), outcomes, as_json)


@node.command()
@on_cluster
@json_option
@all_option
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Timeout. Default: as long as the machines may take to boot.",
)
@nodes_argument
def wait(
    profile: Profile,
    as_json: bool,
    everyone: bool,
    timeout: float | None,
    node: tuple[str, ...],
) -> None:
    """Wait until nodes answer over SSH; show the steps of their boots.

    Exit code 0 only if all nodes answer in time. Prints the likely cause for each node that does
    not.

    Example: orchestrate node wait --all --timeout 300
    """

    cluster, chosen = _chosen(profile, node, everyone, control=True)
    _finish(cluster, chosen, (), as_json, timeout)


@node.command()
@on_cluster
@json_option
@all_option
@nodes_argument
def status(profile: Profile, as_json: bool, everyone: bool, node: tuple[str, ...]) -> None:
    """Show power, boot and system of nodes (default: all nodes, with the control node).

    Example: orchestrate node status 0
    """
    from rich.table import Table
    from rich.text import Text

    from orchestrator.cluster.cluster import open_cluster
    from orchestrator.cluster.nodes import look_at

    whole = not (node or everyone)
    if whole:
        cluster = open_cluster(profile)
        rows = look_at(cluster, cluster.profile.nodes)
    else:
        rows = look_at(*_chosen(profile, node, everyone, control=True))
    if as_json:
        print_json({"nodes": [asdict(row) for row in rows]})
        return
    table = Table(
        "#", "node", "address", "power", "boot", "system", box=None, pad_edge=False
    )  # fmt: skip
    for row in rows:
        number = "" if row.index is None else str(row.index)
        cells = (number, row.node, row.address, row.power, row.boot, row.system)
        table.add_row(*(Text(cell) for cell in cells))
    out.print(table)
    for row in rows:
        for network, rate in row.throttled_bits_per_s.items():
            out.print(f"{row.node}: {network} is throttled to {rate / 1e6:g} Mb/s", markup=False)
        if not whole:
            out.print(f"{row.node}: console: {row.console}", markup=False, soft_wrap=True)


@node.command()
@on_cluster
@click.argument("node", shell_complete=complete.nodes)
@click.argument("command", nargs=-1)
def ssh(profile: Profile, node: str, command: tuple[str, ...]) -> None:
    """Open a root shell on a node over SSH, or run COMMAND there.

    The exit code is the command's; 255 is ssh's own. The words of COMMAND are quoted: for a pipe
    or a variable of the node, run a shell.

    Example: orchestrate node ssh compute0 -- journalctl -u vllm
    """

    cluster, (machine,) = _chosen(profile, (node,), False, control=True)
    with cluster.driver.network():
        remote = cluster.remote(machine)
        if command:
            replace_by(remote.ssh_argv(command, terminal=sys.stdin.isatty() and out.is_terminal))
        replace_by(remote.shell_argv())


def _chosen(
    profile: Profile, words: Sequence[str], everyone: bool, *, control: bool = False
) -> tuple[Cluster, list[Node]]:
    """Open the cluster and choose nodes as `choose` does."""
    from orchestrator.cluster.cluster import open_cluster
    from orchestrator.cluster.nodes import choose

    cluster = open_cluster(profile)
    return cluster, choose(cluster.profile, words, everyone=everyone, control=control)


def _is_manual(cluster: Cluster, node: Node) -> bool:
    return cluster.driver.kind == "real" and cluster.profile.power_of(node).driver == "manual"


def _changed(
    cluster: Cluster, verb: str, nodes: Sequence[Node], act: Callable[[Cluster, Node], PowerOutcome]
) -> list[PowerOutcome]:
    from orchestrator.cluster.nodes import each

    with cluster.locked(verb):
        return each(nodes, lambda node: act(cluster, node))


def _finish(
    cluster: Cluster,
    waited: Sequence[Node],
    outcomes: Sequence[PowerOutcome],
    as_json: bool,
    limit: float | None = None,
) -> None:
    """Say what came of nodes, wait for those that are to be waited for, and exit by all of it."""
    from orchestrator.cluster.live_status import timeline
    from orchestrator.cluster.nodes import wait as wait_for
    from orchestrator.core.progress import Board

    failed = {outcome.node for outcome in outcomes if outcome.error}
    document: dict[str, Any] = {"nodes": [asdict(outcome) for outcome in outcomes]}
    if not as_json:
        _show(outcomes)
    left = [node for node in waited if node.name not in failed]
    if left:
        with Board(quiet=as_json) as board:
            arrived, seen = wait_for(cluster, left, board, limit)
        failed |= {outcome.node for outcome in arrived if outcome.error}
        boots = [seen.netboot.boots[node.name] for node in left]
        document["waited"] = [asdict(outcome) for outcome in arrived]
        document |= {key: seen.document()[key] for key in ("boot", "stuck")}
        if not as_json:
            _show(arrived)
            out.print(timeline(boots))
            for name, cause in seen.stuck.items():
                out.print(f"{name} is stuck: {cause.text}\n  {cause.hint}", markup=False)
    if as_json:
        print_json(document)
    sys.exit(1 if failed else 0)


def _show(outcomes: Sequence[PowerOutcome]) -> None:
    for outcome in outcomes:
        if outcome.error:
            print_error(f"{outcome.node}: {outcome.error}")
        else:
            out.print(f"{outcome.node}: {outcome.text}", markup=False)
