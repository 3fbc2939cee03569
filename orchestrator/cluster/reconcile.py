"""`orchestrate watch`: reconcile a cluster with its profile in a loop.

Each round looks at all nodes, then runs `up` for those that differ or whose host certificate
expires soon. A failed repair is retried after growing pauses. Nodes that their user switched off
stay off.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime

from orchestrator.cluster.certificates import shown_by
from orchestrator.cluster.cluster import Cluster
from orchestrator.cluster.power_intent import kept_off
from orchestrator.cluster.readiness import not_serving
from orchestrator.cluster.targets import plan, published_models
from orchestrator.cluster.up import bring
from orchestrator.core.errors import UserError
from orchestrator.core.progress import CLUSTER, Board
from orchestrator.core.slots import JOBS
from orchestrator.models.serving import ways
from orchestrator.node.configure import Outcome
from orchestrator.node.resources import Step
from orchestrator.node.selection import Selection
from orchestrator.profile import Node

#: Seconds between two rounds; before the first retry (doubled for each further one); at most.
INTERVAL, FIRST_PAUSE, LONGEST_PAUSE = 10.0, 10.0, 600.0
#: Seconds between two checks of certificates, which are valid for months.
CERTIFICATES = 3600.0
#: The most resources that a line names.
NAMED = 3
GOOD = "in the desired state"
#: The subject of the model's events; other events have a node's name or the cluster's.
MODEL = "model"


@dataclass(frozen=True)
class ReconcileEvent:
    """An event to report. ``kind``: seen, acting, done or failed."""

    node: str
    kind: str
    text: str
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


@dataclass
class Pauses:
    """When each node may be repaired again, in ``clock``'s seconds."""

    clock: Callable[[], float] = time.monotonic
    tries: dict[str, int] = field(default_factory=dict)
    until: dict[str, float] = field(default_factory=dict)

    def due(self, names: Sequence[str]) -> list[str]:
        """The nodes that may be repaired now."""
        return [name for name in names if self.until.get(name, 0.0) <= self.clock()]

    def failed(self, name: str) -> float:
        """Record a failure; return the seconds until the next try."""
        pause = min(FIRST_PAUSE * 2.0 ** self.tries.get(name, 0), LONGEST_PAUSE)
        self.tries[name] = self.tries.get(name, 0) + 1
        self.until[name] = self.clock() + pause
        return pause

    def well(self, name: str) -> None:
        """Forget a node's failures, since it is in its desired state."""
        self.tries.pop(name, None)
        self.until.pop(name, None)


@dataclass
class Reconciler:
    """The loop's state. ``opened`` opens the cluster anew in each round: profiles may change."""

    opened: Callable[[], Cluster]
    tell: Callable[[ReconcileEvent], None]
    pauses: Pauses = field(default_factory=Pauses)
    before: dict[str, str] = field(default_factory=dict)
    certificates_at: float = 0.0

    def round(self) -> None:
        """Look at all nodes and repair those that differ. Errors are reported, not raised."""
        try:
            cluster = self.opened()
            nodes = wanted(cluster)
            self._seen(CLUSTER, GOOD if nodes else "down: waiting for 'orchestrate up'")
            seen = looked(cluster, nodes) if nodes else {}
            if nodes:
                self._seen(MODEL, answering(cluster))
            if self.pauses.clock() >= self.certificates_at:
                self.certificates_at = self.pauses.clock() + CERTIFICATES
                good = [name for name, text in seen.items() if text == GOOD]
                seen = {**seen, **ending(cluster, good)}
        except UserError as error:
            self._seen(CLUSTER, str(error).splitlines()[0])
            return
        for name, text in seen.items():
            self._seen(name, text)
            if text == GOOD:
                self.pauses.well(name)
        if due := self.pauses.due([name for name, text in seen.items() if text != GOOD]):
            self._put_right(cluster, due)

    def _put_right(self, cluster: Cluster, names: Sequence[str]) -> None:
        for name in names:
            self.tell(ReconcileEvent(name, "acting", "bringing it up"))
        try:
            with cluster.locked("watch"), Board(quiet=True) as board:
                # The command that held the lock may have switched some off.
                names = [name for name in wanted(cluster) if name in names]
                if not names:
                    return
                chosen = tuple(node for node in cluster.profile.nodes if node.name in names)
                result = bring(cluster, board, Step.SERVING, Selection(chosen, whole=False))
            failures = {name: str(error) for name, error in result.failures.items()}
            if result.report and not result.report.ok:
                failures[CLUSTER] = f"{len(result.report.failed)} checks fail: orchestrate verify"
            changed = result.changed
        except UserError as error:
            failures, changed = dict.fromkeys(names, str(error)), {}
        for name in [*names, *(failures.keys() - set(names))]:
            if reason := failures.get(name):
                pause = self.pauses.failed(name)
                first = reason.splitlines()[0]
                self.tell(ReconcileEvent(name, "failed", f"{first}; again in {pause:.0f} s"))
            else:
                self.tell(ReconcileEvent(name, "done", f"{len(changed.get(name, ()))} changed"))

    def _seen(self, name: str, text: str) -> None:
        """Report a node's state if it has changed."""
        known = self.before.get(name)
        self.before[name] = text
        if text != known and not (known is None and text == GOOD):
            self.tell(ReconcileEvent(name, "seen", text))


def wanted(cluster: Cluster) -> list[str]:
    """The names of the nodes that should be on."""
    off = kept_off(cluster.profile.name)
    return [node.name for node in cluster.profile.nodes if node.name not in off]


def looked(cluster: Cluster, names: Sequence[str]) -> Mapping[str, str]:
    """Each node's state in a line, by name. Changes nothing."""
    profile = cluster.profile
    files = published_models(cluster)
    nodes = tuple(node for node in profile.nodes if node.name in names)
    found = plan(cluster, files, Selection(nodes, whole=nodes == profile.nodes))
    return {name: "off" if name in found.off else told(found.outcomes[name]) for name in names}


def ending(cluster: Cluster, names: Sequence[str]) -> Mapping[str, str]:
    """The nodes whose host certificate ends soon, each with a line. Changes nothing."""

    def look(node: Node) -> str:
        with cluster.driver.network():
            found = shown_by(cluster, node)
        return f"its certificate expires {found.told}" if found.ends_soon else ""

    nodes = [node for node in cluster.profile.nodes if node.name in names]
    with ThreadPoolExecutor(max(1, min(JOBS, len(nodes)))) as pool:
        lines = zip((node.name for node in nodes), pool.map(look, nodes), strict=True)
        return {name: line for name, line in lines if line}


def answering(cluster: Cluster) -> str:
    """The endpoint's state in a line. Only nodes are repaired: the endpoint follows them."""
    if not cluster.driver.running(cluster.profile.control):
        return "does not answer: the control node is off"
    with cluster.driver.network(), cluster.client() as client:
        missing = not_serving(cluster, client)
    if not missing:
        return GOOD
    copies = {
        name: each.profile.serving.model
        for each in cluster.services
        for name in ways(each.profile, each.layout)
    }
    if len(copies) == 1:
        return f"does not answer: {', '.join(missing.values())}"
    models = copies if len(cluster.services) > 1 else {}
    told = ", ".join(
        f"{name} ({models[name]}: {reason})" if models else f"{name} ({reason})"
        for name, reason in missing.items()
    )
    what = "models' copies" if models else "copies"
    return f"{len(missing)} of {len(copies)} {what} do not answer: {told}"


def told(outcome: Outcome) -> str:
    """A node's differences in words."""
    if outcome.error:
        return f"does not answer: {outcome.error.splitlines()[0]}"
    found = [item.resource for item in outcome.differences]
    if not found:
        return GOOD
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return f"differs: {', '.join(found[:NAMED])}{more}"


def run(reconciler: Reconciler, interval: float = INTERVAL) -> None:
    """Round after round, until interrupted."""
    while True:
        reconciler.round()
        time.sleep(interval)
