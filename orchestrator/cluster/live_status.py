"""`orchestrate status --watch`: a live table on a terminal, otherwise lines for changes."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator.cluster.cluster import Cluster
from orchestrator.cluster.status import Status, status
from orchestrator.core.console import out
from orchestrator.core.sizes import human_size
from orchestrator.provision.netboot.timeline import BootTimeline

#: Seconds between two refreshes; a refresh takes longer if a node does not answer.
INTERVAL = 1.0
#: Warnings that are written in all: strangers cause some of them.
MOST = 1000
#: What changes in a warning while more of the same happens.
COUNTED = re.compile(r" \((?:at|\d+ times since) [^()]*\)$|^\d+ more$")


def watch(cluster: Cluster) -> None:
    """Show the status until every node is up, or until Ctrl-C."""
    try:
        if out.is_terminal:
            with Live(console=out, auto_refresh=False) as live:
                until_up(cluster, lambda seen: live.update(Group(*seen.tables()), refresh=True))
        else:
            until_up(cluster, Lines(out.print).show)
    except KeyboardInterrupt:
        return


def until_up(cluster: Cluster, show: Callable[[Status], None]) -> None:
    while True:
        seen = status(cluster)
        show(seen)
        if seen.all_up:
            return
        time.sleep(INTERVAL)


class Lines:
    """Writes a line when a node's step, power or system changes, and for each new warning."""

    def __init__(self, write: Callable[..., None]) -> None:
        self.write = write
        self.shown: set[tuple[str, ...]] = set()
        self.before: dict[str, tuple[str, ...]] = {}

    def show(self, seen: Status) -> None:
        for node in seen.nodes:
            at = seen.seen.netboot.boots[node.name].current
            step = (at.step, at.status) if at else ("-", "")
            now = (node.power, *step, node.system)
            if self.before.get(node.name) != now:
                self.before[node.name] = now
                boot = seen.boot_of(node.name)
                self._line(f"{node.name:<10} power {node.power}, boot {boot}, system {node.system}")
        for kind, text in seen.warnings():
            # A count that goes on is no new warning.
            key = (kind, COUNTED.sub("", text))
            if kind and key not in self.shown and len(self.shown) < MOST:
                self.shown.add(key)
                self._line(f"{kind}: {text}")

    def _line(self, text: str) -> None:
        self.write(f"{time.strftime('%T')}  {text}", markup=False)


def timeline(boots: Iterable[BootTimeline]) -> Table:
    """A table of boot steps: start (since the boot's first step), duration, size."""
    table = Table("node", "step", "at", "took", "size", "", box=None, pad_edge=False)
    for boot in boots:
        for number, step in enumerate(boot.steps):
            size = human_size(step.bytes) if step.bytes else ""
            times = (f"{step.start - boot.began:.1f} s", f"{step.seconds:.1f} s")
            cells = ["" if number else boot.node, step.step, *times, size, step.text]
            table.add_row(*(Text(cell) for cell in cells))
    return table
