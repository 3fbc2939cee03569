"""`orchestrate image warm`: compiled kernels of one node, for others like it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from orchestrator.cli import complete
from orchestrator.cli.choice import json_option
from orchestrator.cli.where import on_cluster
from orchestrator.core.console import out, print_json
from orchestrator.core.sizes import human_size

if TYPE_CHECKING:
    from orchestrator.cluster.warm import Warmed
    from orchestrator.profile import Profile


@click.command()
@on_cluster
@json_option
@click.option(
    "--node",
    metavar="NAME",
    shell_complete=complete.nodes,
    help="The node to take them from.  [default: the first compute node]",
)
@click.option("--remove", is_flag=True, help="Remove all that were taken, instead.")
def warm(profile: Profile, as_json: bool, node: str | None, remove: bool) -> None:
    """Take the kernels that a node compiled, so that nodes like it need not compile them again.

    The profile's serving.compile_cache says which caches. Nodes with the same image, driver and
    card get them at their next boot, checked by the printed sha256; other nodes ignore them.
    'orchestrate up' tells the nodes. Kernels are code: take them from a node that you trust.

    \b
    Example: orchestrate image warm
    Example: orchestrate image warm --remove
    """
    from orchestrator.cluster import kernels
    from orchestrator.cluster.cluster import open_cluster
    from orchestrator.cluster.nodes import choose
    from orchestrator.cluster.warm import warm as take

    if remove and node:
        raise click.UsageError("--remove and --node cannot be combined")
    cluster = open_cluster(profile)
    with cluster.locked("image warm"):
        if remove:
            gone = kernels.forget(profile.name)
            if as_json:
                print_json({"removed": [asdict(each) for each in gone]})
            for each in () if as_json else gone:
                out.print(f"removed: {each.key}, {human_size(each.size)}", markup=False)
            if not gone and not as_json:
                out.print("There are no warm caches; nothing changed.")
            return
        chosen = choose(profile, [node], everyone=False)[0] if node else profile.server
        taken = take(cluster, chosen)
    if as_json:
        print_json(asdict(taken))
    else:
        _show(taken)


def _show(taken: Warmed) -> None:
    cache = taken.cache
    said = f"{cache.files} files, {human_size(cache.size)}"
    out.print(f"{cache.key}: {said} from {cache.node}", markup=False, soft_wrap=True)
    out.print(f"  sha256 {cache.sha256}", markup=False)
    out.print(f"  for {', '.join(taken.fits) or 'no node that answers'}", markup=False)
    for name, key in taken.others.items():
        out.print(f"  not for {name}: its key is {key or 'unknown'}", markup=False, soft_wrap=True)
    after = "Run 'orchestrate up' to tell the nodes." if taken.changed else "Nothing changed."
    out.print(after)
