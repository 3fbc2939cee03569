"""`orchestrate watch`: keep the cluster what its profile says."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from orchestrator.cli.where import on_cluster
from orchestrator.core.console import out, print_json

#: What a unit has to be told of this shell.
VARIABLES = ("ORCHESTRATE_STATE", "ORCHESTRATE_CACHE", "ORCHESTRATE_CHECKOUT", "HOME", "PATH")

if TYPE_CHECKING:
    from orchestrator.profile import Profile


@click.command()
@on_cluster
@click.option("--json", "as_json", is_flag=True, help="Print each event as one line of JSON.")
@click.option("--interval", type=click.FloatRange(min=0.5), help="Seconds between two checks.")
@click.option("--once", is_flag=True, help="Check and fix once.")
@click.option("--unit", is_flag=True, help="Print a systemd unit that does this, and exit.")
def watch(profile: Profile, as_json: bool, interval: float | None, once: bool, unit: bool) -> None:
    """Reconcile: check the cluster at an interval, and fix what differs from the profile.

    Nodes that lost power are switched on and configured. Drift is reverted. Each event is a line.
    Nodes that 'node down' or 'down' switched off stay off. Ctrl-C stops it and changes nothing.

    \b
    Example: orchestrate watch
    Example: orchestrate watch --unit >/etc/systemd/system/orchestrate-watch.service
    """
    from orchestrator.cluster import reconcile
    from orchestrator.cluster.cluster import open_cluster
    from orchestrator.cluster.reconcile import ReconcileEvent, Reconciler
    from orchestrator.models.profiles import load

    if unit:
        out.print(_unit(profile), end="", markup=False)
        return

    def tell(event: ReconcileEvent) -> None:
        if as_json:
            print_json(asdict(event), indent=None)
        else:
            out.print(f"{event.time}  {event.node}: {event.text}", markup=False)
            sys.stdout.flush()

    reconciler = Reconciler(lambda: open_cluster(load(profile.path)), tell)
    if once:
        reconciler.round()
        return
    reconcile.run(reconciler, interval or reconcile.INTERVAL)


def _unit(profile: Profile) -> str:
    from orchestrator.core.templating import render

    path = profile.path.resolve()
    return render(
        "watch.service",
        profile=profile.name,
        environment={name: os.environ[name] for name in VARIABLES if name in os.environ},
        argv=[sys.executable, "-m", "orchestrator", "watch", "--profile", str(path)],
    )
