"""`orchestrate sim`: simulated machines alone, without configuring them."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import click

from orchestrator.cli import complete
from orchestrator.cli.cluster import json_option, machines_option, opened
from orchestrator.console import out, print_json
from orchestrator.profile import profile_option


@click.group()
def sim() -> None:
    """The simulated cluster: machines that boot the image on this computer.

    'orchestrate up' starts them by itself; these verbs are for a closer look.
    """


@sim.command()
@profile_option
@machines_option
def up(profile: str | None, machines: str | None) -> None:
    """Start the machines and their network; configure nothing.

    Example: orchestrate sim up --profile sim
    """
    cluster = opened(profile, machines)
    with cluster.locked("sim up"):
        cluster.driver.prepare(cluster.image)
        off = [node for node in cluster.profile.nodes if not cluster.driver.running(node)]
        for node in off:
            cluster.boot(node)
    names = ", ".join(node.name for node in off)
    out.print(f"started: {names}" if off else "all machines run already; nothing changed")


@sim.command()
@profile_option
def down(profile: str | None) -> None:
    """Stop the machines and remove their network and mounts.

    Example: orchestrate sim down --profile sim
    """
    from orchestrator.progress import Board
    from orchestrator.take_down import down as take_down

    cluster = opened(profile)
    with cluster.locked("sim down"), Board() as board:
        found = take_down(cluster, board)
    out.print("stopped" if found else "nothing ran; nothing changed")


@sim.command()
@profile_option
@json_option
def status(profile: str | None, as_json: bool) -> None:
    """Show which machines run, and where their consoles are.

    Example: orchestrate sim status --json
    """
    from rich.table import Table

    cluster = opened(profile)
    rows = [
        {
            "node": node.name,
            "running": cluster.driver.running(node),
            "console": str(cluster.driver.console(node)),
        }
        for node in cluster.profile.nodes
    ]
    if as_json:
        print_json({"machines": rows})
        return
    table = Table("node", "running", "console", box=None, pad_edge=False)
    for row in rows:
        table.add_row(str(row["node"]), "yes" if row["running"] else "no", str(row["console"]))
    out.print(table)


@sim.command()
@profile_option
@click.option("--rate", metavar="RATE", help="Bits a second, like 100mbit or 2.5gbit.")
@click.option("--reset", is_flag=True, help="As fast as they can again.")
@click.option("--network", help="Default: the one that Ray uses.")
@click.argument("nodes", nargs=-1, shell_complete=complete.nodes)
def link(
    profile: str | None, rate: str | None, reset: bool, network: str | None, nodes: tuple[str, ...]
) -> None:
    """Throttle the cables of containers, to see what a slower network would do.

    Without NODES those of all compute nodes. It stays until --reset, or 'down'.

    Example: orchestrate sim link --rate 100mbit
    """
    from orchestrator.errors import BadInput
    from orchestrator.machines.switch import Switch
    from orchestrator.selection import find

    if bool(rate) == reset:
        raise click.UsageError("say either --rate or --reset")
    cluster = opened(profile)
    loaded = cluster.profile
    name = network or loaded.ray.network
    if name not in loaded.networks:
        raise BadInput(f"there is no network {name!r}", f"Known: {', '.join(loaded.networks)}")
    switch = getattr(cluster.driver, "switch", None)
    if not isinstance(switch, Switch):
        raise BadInput(f"machines of {loaded.machines!r} have cables of their own")
    chosen = [find(loaded, word) for word in nodes] or list(loaded.compute_nodes)
    for node in chosen:
        switch.throttle(node, name, rate)
    said = f"at most {rate} each way" if rate else "not throttled"
    out.print(f"{', '.join(node.name for node in chosen)} on {name}: {said}", markup=False)


@sim.command()
@profile_option
@click.argument("node", shell_complete=complete.nodes)
@click.argument("command", nargs=-1)
def shell(profile: str | None, node: str, command: tuple[str, ...]) -> None:
    """Open a root shell in a machine (or run COMMAND there).

    Into a container it goes from outside, also where its SSH is broken; to a machine with a kernel
    of its own it goes over SSH.

    Example: orchestrate sim shell compute0 -- journalctl -u vllm
    """
    from orchestrator.errors import BadInput
    from orchestrator.nearest import nearest

    cluster = opened(profile)
    by_name = {each.name: each for each in cluster.profile.nodes}
    if node not in by_name:
        raise BadInput(f"there is no node {node!r}", nearest(node, list(by_name)))
    words = list(command or ("/bin/bash", "--login"))
    driver = cluster.driver
    if driver.netboots(by_name[node]):
        remote = cluster.remote(by_name[node])
        with driver.network():
            replace_by(remote.ssh_argv(words, terminal=sys.stdin.isatty()))
    pid = driver.leader(by_name[node])
    replace_by(["nsenter", "--target", str(pid), "--all", "--", *words])


def replace_by(argv: list[str]) -> NoReturn:
    """Run a command in this one's place. Raises UserError where it is not installed."""
    from orchestrator.errors import UserError
    from orchestrator.run import PACKAGE_OF

    try:
        os.execvp(argv[0], argv)
    except FileNotFoundError:
        raise UserError(
            f"the command {argv[0]!r} is not installed",
            f"On Debian: apt-get install {PACKAGE_OF[argv[0]]}",
        ) from None
