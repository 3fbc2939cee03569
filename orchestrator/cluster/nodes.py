"""Single nodes, for `orchestrate node`: power, waiting for SSH, state."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from orchestrator.cluster.cluster import Cluster
from orchestrator.cluster.power_intent import keep_off, want_on
from orchestrator.cluster.status import told
from orchestrator.core.errors import BadInput, UserError
from orchestrator.core.progress import Board
from orchestrator.core.waiting import as_long_as
from orchestrator.node.remote import PROBE_TIMEOUT, Remote
from orchestrator.node.selection import select
from orchestrator.profile import Node, Profile
from orchestrator.provision.machines import PowerState, power_states
from orchestrator.provision.netboot import look
from orchestrator.provision.netboot.causes import BOOTED
from orchestrator.provision.netboot.look import Seen, Watch

#: Seconds for a machine to go down after it was told to restart, and between two polls.
GONE_TIMEOUT, POLL = 120.0, 1.0
BOOT_ID = ["cat", "/proc/sys/kernel/random/boot_id"]


@dataclass(frozen=True)
class PowerOutcome:
    """The result for one node. `error` is text for people, empty on success."""

    node: str
    text: str = ""
    changed: bool = False
    error: str = ""


@dataclass(frozen=True)
class NodeLook:
    """A node's state; "-" for what is unknown. `index` is None for the control node."""

    node: str
    index: int | None
    address: str
    power: str
    boot: str
    system: str
    #: Where to find its console: a file, or a sentence.
    console: str
    #: Limits of its links in bits per second, by network (simulated machines only).
    throttled_bits_per_s: Mapping[str, int]


def choose(
    profile: Profile, words: Sequence[str], *, everyone: bool, control: bool = False
) -> list[Node]:
    """The nodes that words name, as for --node (node.selection).

    `everyone`: all compute nodes; `control`: the control node may be named too. Raises BadInput.
    """
    if everyone == bool(words):
        raise BadInput(
            "name nodes or give --all, not both" if words else "which nodes?",
            f"Compute nodes: {_listed(profile)}, or --all for all of them.",
        )
    if everyone:
        return list(profile.compute_nodes)
    chosen = select(profile, words).nodes
    if profile.control in chosen and not control:
        raise BadInput(
            f"{profile.control.name} is the control node, which the others boot from",
            "'orchestrate up' and 'orchestrate down' switch it.",
        )
    return list(chosen)


def _listed(profile: Profile) -> str:
    return ", ".join(f"{number} {node.name}" for number, node in enumerate(profile.compute_nodes))


def each(nodes: Sequence[Node], act: Callable[[Node], PowerOutcome]) -> list[PowerOutcome]:
    """Call `act` for all nodes in parallel; a UserError of one becomes its outcome."""

    def one(node: Node) -> PowerOutcome:
        try:
            return act(node)
        except UserError as error:
            return PowerOutcome(node.name, error=str(error))

    with ThreadPoolExecutor(len(nodes)) as pool:
        return list(pool.map(one, nodes))


def switch_on(cluster: Cluster, node: Node) -> PowerOutcome:
    """Power a node on, unless it is on. Raises UserError if that fails."""
    want_on(cluster.profile.name, [node.name])
    if cluster.driver.state(node) == PowerState.ON:
        return PowerOutcome(node.name, "on already; nothing changed")
    must_boot_others(cluster)
    _power_on(cluster, node)
    return PowerOutcome(node.name, "switched on", changed=True)


def switch_off(cluster: Cluster, node: Node) -> PowerOutcome:
    """Shut a node down, unless it is off. Raises UserError if it stays on."""
    keep_off(cluster.profile.name, [node.name])
    if cluster.driver.state(node) == PowerState.OFF:
        return PowerOutcome(node.name, "off already; nothing changed")
    cluster.remote(node).close()
    cluster.driver.power_off(node)
    return PowerOutcome(node.name, "off", changed=True)


def restart(cluster: Cluster, node: Node) -> PowerOutcome:
    """Restart a node: over SSH if it netboots and answers, else by its power driver.

    Raises UserError if neither is possible.
    """
    want_on(cluster.profile.name, [node.name])
    must_boot_others(cluster)
    remote = cluster.remote(node)
    remote.close()
    if cluster.driver.state(node) == PowerState.OFF:
        _power_on(cluster, node)
        return PowerOutcome(node.name, "was off; switched on", changed=True)
    if cluster.driver.netboots(node):
        with cluster.driver.network(), suppress(UserError):
            before = remote.run(BOOT_ID, timeout=PROBE_TIMEOUT).out
            cluster.diary.add(node.name, "power")
            with suppress(UserError):  # the connection may end before the command does
                remote.run(["systemctl", "reboot"], timeout=PROBE_TIMEOUT)
            remote.close()
            _wait_until_gone(remote, before)
            return PowerOutcome(node.name, "restarts", changed=True)
    cluster.driver.power_off(node)
    _power_on(cluster, node)
    return PowerOutcome(node.name, "switched off and on", changed=True)


def must_boot_others(cluster: Cluster) -> None:
    """Raises UserError if the control node is off, since nodes boot from it."""
    if not cluster.driver.running(cluster.profile.control):
        raise UserError(
            f"the control node ({cluster.profile.control.name}) is off, and nodes boot from it",
            "Run: orchestrate up, or up --until control for the control node alone",
        )


def _power_on(cluster: Cluster, node: Node) -> None:
    cluster.diary.add(node.name, "power")
    cluster.boot(node)


def _wait_until_gone(remote: Remote, boot_id: str) -> None:
    """Wait until the boot with this id has ended. Raises UserError if it does not end."""

    def runs() -> bool:
        try:
            return remote.run(BOOT_ID, timeout=PROBE_TIMEOUT).out == boot_id
        except UserError:
            return False
        finally:
            remote.close()

    if as_long_as(runs, GONE_TIMEOUT, POLL):
        raise UserError(f"{remote.name} was told to restart but is still running")


def wait(
    cluster: Cluster, nodes: Sequence[Node], board: Board, limit: float | None = None
) -> tuple[list[PowerOutcome], Seen]:
    """Wait until nodes accept the operator over SSH, at most `limit` seconds (default: the
    driver's boot timeout).

    Returns each node's outcome, and the boots. Raises UserError if the control node is off.
    """
    must_boot_others(cluster)
    profile, driver = cluster.profile, cluster.driver
    control = cluster.remote(profile.control)
    watch = Watch(profile, cluster.diary, control)
    patience = driver.boot_timeout if limit is None else limit
    answered: dict[str, float] = {}

    def until_up(node: Node) -> PowerOutcome:
        begun = time.monotonic()

        def waiting(reason: str) -> None:
            step = watch.step(node.name) if driver.netboots(node) else ""
            board.note(node.name, step or reason.splitlines()[0])
            if trouble := driver.trouble(node):
                raise trouble

        with board.step(node.name, "ssh"):
            cluster.remote(node).wait_for_ssh(patience, waiting)
        answered[node.name] = time.time()
        return PowerOutcome(node.name, f"answers after {time.monotonic() - begun:.0f} s")

    with driver.network():
        outcomes = each(nodes, until_up)
        failed = {outcome.node for outcome in outcomes if outcome.error}
        logs = None
        with suppress(UserError):
            logs = look.fetch(cluster.profile, control)
    seen = look.seen(profile, cluster.diary, logs, failed)
    for name, when in answered.items():
        if seen.netboot.boots[name].reached not in BOOTED:
            cluster.diary.add(name, "sshd", when=when)
    return outcomes, look.seen(profile, cluster.diary, logs, failed)


def look_at(cluster: Cluster, nodes: Sequence[Node]) -> list[NodeLook]:
    """The state of nodes. Changes nothing."""
    profile, driver = cluster.profile, cluster.driver
    states = power_states(driver, nodes)
    systems: dict[str, str] = {}
    logs = None
    if driver.running(profile.control):
        on = [node for node in nodes if states[node.name] == PowerState.ON]
        with driver.network(), ThreadPoolExecutor(len(nodes)) as pool:
            asked = pool.map(lambda node: system(cluster.remote(node)), on)
            systems = {node.name: said for node, said in zip(on, asked, strict=True)}
            with suppress(UserError):
                logs = look.fetch(profile, cluster.remote(profile.control))
    boots = look.seen(profile, cluster.diary, logs, ()).netboot.boots
    compute = list(profile.compute_nodes)
    return [
        NodeLook(
            node.name,
            compute.index(node) if node in compute else None,
            str(profile.boot_link(node).address),
            states[node.name],
            "-" if states[node.name] == PowerState.OFF else told(boots[node.name]),
            systems.get(node.name, "-"),
            driver.console(node),
            dict(driver.cables.throttled(node)),
        )
        for node in nodes
    ]


def system(remote: Remote) -> str:
    """A node's state by systemd, like "running"; "-" if it does not accept the operator."""
    try:
        argv = ["systemctl", "is-system-running"]
        return remote.run(argv, ok=None, timeout=PROBE_TIMEOUT).out.strip() or "-"
    except UserError:
        return "-"
