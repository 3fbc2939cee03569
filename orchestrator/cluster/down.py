"""`orchestrate down`, and the cleanup after an interrupted `up`."""

from __future__ import annotations

import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from orchestrator.cluster.cluster import Cluster
from orchestrator.cluster.power_intent import keep_off
from orchestrator.core import paths
from orchestrator.core.console import err
from orchestrator.core.errors import UserError
from orchestrator.core.progress import Board
from orchestrator.models import chosen
from orchestrator.models.publish import withdraw
from orchestrator.node.paths import RAY_TABLES
from orchestrator.profile import Node
from orchestrator.provision.machines import PowerState, power_states


def down(cluster: Cluster, board: Board) -> bool:
    """Power all nodes off and remove what they shared; False if there was nothing to do."""
    nodes = cluster.profile.nodes
    states = power_states(cluster.driver, nodes)
    running = [n for n in nodes if states[n.name] in (PowerState.ON, PowerState.WAKING)]
    for node in nodes:
        cluster.remote(node).close()

    def off(node: Node) -> None:
        with board.step(node.name, "power"):
            cluster.driver.power_off(node)

    # The control node last: the others are reached through its network.
    control = [node for node in running if cluster.profile.is_control(node)]
    others = [node for node in running if node not in control]
    failures: dict[str, UserError] = {}
    with ThreadPoolExecutor(len(nodes)) as pool:
        ends = {node.name: pool.submit(off, node) for node in others}
        for name, end in ends.items():
            try:
                end.result()
            except UserError as error:
                failures[name] = error
    for node in control:
        off(node)
    cluster.driver.cleanup()
    if failures:
        raise UserError(
            "\n".join(error.message for error in failures.values()),
            next(iter(failures.values())).hint,
        )
    withdraw(cluster.profile.name)
    # Ray's tables describe workers that do not run any more.
    shutil.rmtree(paths.lasting(cluster.profile.name) / RAY_TABLES, ignore_errors=True)
    chosen.forget(cluster.profile.name)
    keep_off(cluster.profile.name, [node.name for node in nodes])
    return bool(running)


def undo(cluster: Cluster, started: list[Node], *, shared: bool) -> None:
    """After an interrupt: power these machines off; with `shared`, remove networks and mounts."""
    end_children()
    for node in started:
        cluster.remote(node).close()
        try:
            cluster.driver.power_off(node, timeout=0)
        except UserError as error:
            err.print(str(error), markup=False)
    if shared:
        cluster.driver.cleanup()


def end_children() -> None:
    """Terminate child processes in this process's session (ssh, nix)."""
    ours = [str(os.getpid()), str(os.getsid(0))]
    # By the parent, not by each thread's children: threads end meanwhile, and theirs move on.
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            _, parent, _, session = status.read_text().rpartition(")")[2].split()[:4]
            if [parent, session] == ours:
                os.kill(int(status.parent.name), signal.SIGTERM)
