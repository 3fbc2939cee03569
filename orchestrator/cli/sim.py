"""`orchestrate sim`: throttled links and shells of simulated machines."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NoReturn

import click

from orchestrator.cli import complete
from orchestrator.cli.choice import nodes_option
from orchestrator.cli.where import on_cluster
from orchestrator.core.console import out

if TYPE_CHECKING:
    from orchestrator.profile import Profile


@click.group()
def sim() -> None:
    """Simulated machines only: throttle links, enter a machine from the host.

    'orchestrate up' starts them, 'node status' shows them, 'down' stops them.
    """


@sim.command()
@on_cluster
@click.option("--rate", metavar="RATE", help="Bits per second, such as 100Mbit or 2.5Gbit.")
@click.option("--reset", is_flag=True, help="Remove the limit.")
@click.option("--network", metavar="NAME", help="Default: the network that Ray uses.")
@nodes_option("Default: all compute nodes.")
def link(
    profile: Profile, rate: str | None, reset: bool, network: str | None, nodes: tuple[str, ...]
) -> None:
    """Throttle the links of containers, to see the effect of a slower network.

    The limit lasts until --reset or 'down'. 'node status' shows it.

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
        raise click.UsageError("give either --rate or --reset")
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

    A container is entered from the host, so it works even if SSH is broken. A QEMU machine is
    reached over SSH.

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
