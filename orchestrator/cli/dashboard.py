"""`orchestrate dashboard`: a live page of the cluster, for a browser on this machine."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from threading import Event, Thread
from typing import TYPE_CHECKING

import click

from orchestrator.cli.where import on_cluster
from orchestrator.core.console import err, out, print_json

if TYPE_CHECKING:
    from orchestrator.dashboard.gather import Feed
    from orchestrator.profile import Profile
    from orchestrator.profile.existing import Attached

#: Seconds between two documents of --follow, and for the first one with --json alone.
EVERY, FIRST = 2.0, 30.0


@click.command()
@partial(on_cluster, attached=True, here=lambda how: not how["as_json"])
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Default: a free one.")
@click.option("--json", "as_json", is_flag=True, help="Print the page's data once, and exit.")
@click.option("--follow", is_flag=True, help="With --json: a line every 2 s, until Ctrl-C.")
def dashboard(profile: Profile | Attached, port: int, as_json: bool, follow: bool) -> None:
    """Serve a live page of the cluster on this machine: open the printed address in a browser.

    Nodes, links, load, what limits now, checks, runs and forecasts. It changes nothing, and asks
    nothing of the cluster while no browser shows it. Only 127.0.0.1 reaches it, and only by the
    whole address: its secret is new at each start. Ctrl-C ends it.

    \b
    Example: orchestrate dashboard
    Example: orchestrate dashboard --json
    """
    if follow and not as_json:
        raise click.UsageError("--follow goes with --json")
    # However it is ended, what it started ends too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if as_json:
        _print(profile, follow=follow)
    else:
        _serve(profile, port)


def _feed(profile: Profile | Attached) -> Feed:
    """What looks at the cluster, from here or, by SSH, from its control host."""
    from orchestrator.dashboard.gather import Feed
    from orchestrator.profile.existing import Attached

    if isinstance(profile, Attached):
        from orchestrator.dashboard.theirs import Theirs

        return Feed(Theirs(profile))
    from orchestrator.cli.control_host import RemoteCheckout, is_here

    if profile.control_host and not is_here(profile):
        from orchestrator.dashboard.there import There

        host = RemoteCheckout(profile)
        host.sync(lambda line: err.print(line, markup=False))
        words = ["dashboard", "--json", "--follow"]
        return Feed(There(profile.name, host.name, host.lifeline_argv(words)))
    from orchestrator.dashboard.ours import Ours

    return Feed(Ours(profile))


def _print(profile: Profile | Attached, *, follow: bool) -> None:
    feed = _feed(profile)
    feed.start()
    try:
        if not follow:
            print_json(feed.settled(FIRST))
            return
        while True:
            print_json(feed.document(), indent=None)
            sys.stdout.flush()
            time.sleep(EVERY)
    finally:
        _end(feed.stop)


def _serve(profile: Profile | Attached, port: int) -> None:
    from orchestrator.core.errors import UserError
    from orchestrator.dashboard.web import OnDemand, Server

    # Loaded when somebody looks: the address is printed at once.
    watched = OnDemand(partial(_feed, profile))
    try:
        server = Server(watched.document, port)
    except OSError as error:
        raise UserError(
            f"port {port} cannot be used: {error.strerror}", "Name another, or leave out --port."
        ) from None
    Thread(target=server.serve_forever, daemon=True).start()
    out.print(f"{profile.name}: {server.url}")
    err.print("Open this address in a browser on this machine. Ctrl-C ends the dashboard.")
    sys.stdout.flush()
    try:
        Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        server.shutdown()
        server.server_close()
        _end(watched.close)


def _end(stop: Callable[[], None]) -> None:
    """End the programs on nodes, then what looks are still in: ssh."""
    from orchestrator.cluster.down import end_children

    stop()
    end_children()
