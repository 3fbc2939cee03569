"""`orchestrate sim`: simulated machines alone, without configuring them."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import click

from orchestrator.cli import complete
from orchestrator.cli.choice import nodes_option
from orchestrator.cli.cluster import accel_option, json_option, machines_option
from orchestrator.cli.where import on_cluster
from orchestrator.core.console import out, print_json

if TYPE_CHECKING:
    from orchestrator.profile import Profile


@click.group()
def sim() -> None:
    """The simulated cluster: machines that boot the image on this computer.

    'orchestrate up' starts them by itself; these verbs are for a closer look.
    """


@sim.command()
@on_cluster
@machines_option
@accel_option
def up(profile: Profile, machines: str | None, accel: str | None) -> None:
    """Start the machines and their network; configure nothing.

    Example: orchestrate sim up --profile sim
    """
    from orchestrator.cluster.cluster import open_cluster

    cluster = open_cluster(profile, machines, accel)
    with cluster.locked("sim up"):
        cluster.driver.prepare(cluster.image)
        off = [node for node in cluster.profile.nodes if not cluster.driver.running(node)]
        for node in off:
            cluster.boot(node)
    names = ", ".join(node.name for node in off)
    out.print(f"started: {names}" if off else "all machines run already; nothing changed")


@sim.command()
@on_cluster
def down(profile: Profile) -> None:
    """Stop the machines and remove their network and mounts.

    Example: orchestrate sim down --profile sim
    """
    from orchestrator.cluster.cluster import open_cluster
    from orchestrator.cluster.down import down as take_down
    from orchestrator.core.progress import Board

    cluster = open_cluster(profile)
    with cluster.locked("sim down"), Board() as board:
        found = take_down(cluster, board)
    out.print("stopped" if found else "nothing ran; nothing changed")


@sim.command()
@on_cluster
@json_option
def status(profile: Profile, as_json: bool) -> None:
    """Show which machines run, which cables are throttled, and where consoles are.

    Example: orchestrate sim status --json
    """
    from rich.table import Table

    from orchestrator.cluster.cluster import open_cluster

    cluster = open_cluster(profile)
    cables = cluster.driver.cables
    rows: list[dict[str, Any]] = [
        {
            "node": node.name,
            "running": cluster.driver.running(node),
            "throttled_bits_per_s": dict(cables.throttled(node)),
            "console": str(cluster.driver.console(node)),
        }
        for node in cluster.profile.nodes
    ]
    if as_json:
        print_json({"machines": rows})
        return
    table = Table("node", "running", "throttled", "console", box=None, pad_edge=False)
    for row in rows:
        slow = (f"{k} {v / 1e6:g} Mb/s" for k, v in row["throttled_bits_per_s"].items())
        running = "yes" if row["running"] else "no"
        table.add_row(row["node"], running, ", ".join(slow), row["console"])
    out.print(table)


@sim.command()
@on_cluster
@click.option("--rate", metavar="RATE", help="Bits a second, like 100Mbit or 2.5Gbit.")
@click.option("--reset", is_flag=True, help="As fast as they can again.")
@click.option("--network", metavar="NAME", help="Default: the one that Ray uses.")
@nodes_option("Default: all compute nodes.")
def link(
    profile: Profile, rate: str | None, reset: bool, network: str | None, nodes: tuple[str, ...]
) -> None:
    """Throttle the cables of containers, to see what a slower network would do.

    It stays until --reset, or 'down'; 'sim status' shows it.

    \b
    Example: orchestrate sim link --rate 100Mbit
    Example: orchestrate sim link --node compute1 --reset
    """
    from orchestrator.cluster.cluster import open_cluster
    from orchestrator.core.errors import BadInput
    from orchestrator.core.nearest import nearest
    from orchestrator.node.selection import select
    from orchestrator.provision.machines.switch import bits_per_s

    if bool(rate) == reset:
        raise click.UsageError("say either --rate or --reset")
    limit = bits_per_s(rate) if rate else None
    cluster = open_cluster(profile)
    loaded = cluster.profile
    name = network or loaded.ray.network
    if name not in loaded.networks:
        raise BadInput(f"there is no network {name!r}", nearest(name, list(loaded.networks)))
    chosen = select(loaded, nodes).nodes if nodes else loaded.compute_nodes
    linked = [node for node in chosen if name in node.links]
    cables = cluster.driver.cables
    if any(cluster.driver.netboots(node) for node in linked):
        raise BadInput(
            "only cables of containers can be throttled",
            "Start them: orchestrate up --machines nspawn",
        )
    for node in linked:
        cables.throttle(node, name, limit)
    said = f"at most {limit / 1e6:g} Mb/s each way" if limit else "not throttled"
    out.print(f"{', '.join(node.name for node in linked)} on {name}: {said}", markup=False)


@sim.command()
@on_cluster
@click.argument("node", shell_complete=complete.nodes)
@click.argument("command", nargs=-1)
def shell(profile: Profile, node: str, command: tuple[str, ...]) -> None:
    """Open a root shell in a machine (or run COMMAND there).

    Into a container it goes from outside, also where its SSH is broken; to a machine with a kernel
    of its own it goes over SSH.

    Example: orchestrate sim shell compute0 -- journalctl -u vllm
    """
    from orchestrator.cluster.cluster import open_cluster
    from orchestrator.node.selection import find

    cluster = open_cluster(profile)
    machine = find(cluster.profile, node)
    words = list(command or ("/bin/bash", "--login"))
    driver = cluster.driver
    if driver.netboots(machine):
        remote = cluster.remote(machine)
        with driver.network():
            replace_by(remote.ssh_argv(words, terminal=sys.stdin.isatty()))
    pid = driver.leader(machine)
    replace_by(["nsenter", "--target", str(pid), "--all", "--", *words])


def replace_by(argv: list[str]) -> NoReturn:
    """Run a command in this one's place. Raises UserError where it is not installed."""
    from orchestrator.core.errors import UserError
    from orchestrator.core.run import PACKAGE_OF

    try:
        os.execvp(argv[0], argv)
    except FileNotFoundError:
        raise UserError(
            f"the command {argv[0]!r} is not installed",
            f"On Debian: apt-get install {PACKAGE_OF[argv[0]]}",
        ) from None
