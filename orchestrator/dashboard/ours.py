"""What is looked at of a cluster that orchestrate runs, and the document of it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from orchestrator.cluster.cluster import Cluster, open_cluster
from orchestrator.cluster.status import (
    AtEndpoint,
    Status,
    answered,
    assembled,
    served,
    silent,
)
from orchestrator.cluster.targets import verify_context
from orchestrator.dashboard import view
from orchestrator.dashboard.gather import Polled, Tail
from orchestrator.dashboard.kept import Kept, Shelf
from orchestrator.dashboard.minute import FRESH, NAMES, PERIOD, Minute, by_node
from orchestrator.performance.bench.sample import sampler, sampler_argv
from orchestrator.performance.predict.layout import Parallelism
from orchestrator.profile import Node, Profile
from orchestrator.provision.machines import PowerState, power_states
from orchestrator.provision.netboot import look
from orchestrator.verify import gather, judge
from orchestrator.verify.facts import Clock, NodeFacts, RayFacts
from orchestrator.verify.gather import VerifyContext
from orchestrator.verify.report import Check

#: Seconds between two looks, and between two of what costs a node more: a start of Python. A
#: change of a node or of the endpoint is followed by a look at everything.
OFTEN, SELDOM = 5.0, 60.0
#: Of boots, while a node boots.
BOOTING = 3.0
#: Seconds for Ray's control store: Python has to load Ray.
RAY, RAY_PATIENCE = 300.0, 30.0


class Ours:
    """A cluster that orchestrate runs. Opening it may fail: then the page says why."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.minute = Minute(profile.server.name)
        self.changes = view.Changes()
        self.opened = Polled("cluster", self._open, 30.0)
        self.power = Polled("power", self._power, OFTEN, after=self.opened)
        self.nodes = {
            node.name: Polled(node.name, partial(self._node, node), SELDOM, after=self.power)
            for node in profile.nodes
        }
        self.boots = Polled("boots", self._boots, BOOTING, after=self.power)
        self.ray = Polled("Ray", self._ray, RAY, RAY_PATIENCE, after=self.power)
        self.endpoint = Polled("endpoint", self._endpoint, OFTEN, after=self.power)
        self.kept = Polled("measurements", self._kept, 30.0, after=self.opened)
        self.tails: Sequence[Tail] = [
            Tail(node.name, partial(self._sampler, node), partial(self.minute.take, node.name))
            for node in profile.nodes
        ]
        self._shelf = Shelf(profile.services[0])
        self._booted = 0.0

    @property
    def sources(self) -> Sequence[Polled]:
        of_nodes = (*self.nodes.values(), self.boots, self.ray, self.endpoint)
        return (self.opened, self.power, *of_nodes, self.kept)

    def network(self) -> AbstractContextManager[object]:
        cluster: Cluster | None = self.opened.value
        return cluster.driver.network() if cluster else nullcontext()

    # What each source looks at.

    def _open(self) -> Cluster:
        return open_cluster(self.profile)

    def _cluster(self) -> Cluster | None:
        found: Cluster | None = self.opened.value
        return found

    def _context(self) -> VerifyContext | None:
        """None while there is nobody to ask."""
        cluster = self._cluster()
        return verify_context(cluster, {}) if cluster and self._on(self.profile.control) else None

    def _power(self) -> dict[str, PowerState]:
        cluster = self._cluster()
        return power_states(cluster.driver, self.profile.nodes) if cluster else {}

    def _on(self, node: Node) -> bool:
        states = self.power.value or {}
        return states.get(node.name) == PowerState.ON

    def _node(self, node: Node) -> tuple[NodeFacts, Clock] | None:
        context = self._context()
        if context is None or not self._on(node):
            return None
        with context.network():
            return gather.node(context, self.profile, node)

    def _boots(self) -> dict[str, Any] | None:
        cluster = self._cluster()
        if cluster is None or not self._on(self.profile.control):
            return None
        boots = any(not self._lives(each) for each in self.profile.nodes if self._on(each))
        if not boots and time.monotonic() - self._booted < SELDOM:
            logs: dict[str, Any] | None = self.boots.value
            return logs
        with cluster.driver.network():
            logs = look.fetch(self.profile, cluster.remote(self.profile.control))
        self._booted = time.monotonic()
        return logs

    def _ray(self) -> RayFacts | None:
        context = self._context() if self.profile.serving.by_ray else None
        if context is None:
            return None
        with context.network():
            return gather.ray(context, self.profile)

    def _endpoint(self) -> AtEndpoint:
        cluster = self._cluster()
        if cluster is None or not self._on(self.profile.control):
            return AtEndpoint(note="the control node is off")
        with cluster.driver.network():
            return served(cluster)

    def _kept(self) -> Kept:
        cluster = self._cluster()
        if cluster is None:
            return Kept(reason="the cluster cannot be opened")
        cluster = cluster.services[0]
        layout = Parallelism.of(cluster.layout)
        return self._shelf.look(layout, cluster.image_id, cluster.model.config)

    def _sampler(self, node: Node) -> Sequence[str] | None:
        cluster = self._cluster()
        if cluster is None or not self._on(node):
            return None
        return sampler_argv(cluster, node, sampler(PERIOD, NAMES))

    # What is made of it.

    def _lives(self, node: Node) -> bool:
        """Whether a sample came just now."""
        age = next(tail.age for tail in self.tails if tail.name == node.name)
        return age is not None and age < FRESH

    def document(self) -> dict[str, Any]:
        cluster = self._cluster()
        kept: Kept | None = self.kept.value
        made: dict[str, Any] = self._closed() if cluster is None else self._of(cluster, kept)
        states = {node["name"]: node["state"] for node in made["nodes"]}
        asked = (self.power, *self.nodes.values(), self.ray, self.endpoint)
        changed = self.changes.seen({**states, "endpoint": made["state"]})
        # While it opens everything changes, and what says so is the first look itself.
        if changed and all(source.tried for source in asked):
            for source in asked:
                source.again()
            self._booted = 0.0
        return view.document(self.profile, self.sources, self.minute, kept, self.changes, made)

    def _closed(self) -> dict[str, Any]:
        text, _, hint = self.opened.error.partition("\n")
        state = "problem" if text else "asked"
        return {"state": state, "text": text or "It is being looked at.", "next": hint,
                "nodes": [], "links": [], "checks": None, "warnings": [],
                "limits": {"text": "", "phases": []}}  # fmt: skip

    def _of(self, cluster: Cluster, kept: Kept | None) -> dict[str, Any]:
        status = self._status(cluster)
        does = by_node(self.minute.series())
        nodes = [self._of_node(node, status, does) for node in self.profile.nodes]
        up = [node for node in nodes if node["state"] == "up"]
        state, text, next_ = "serving", f"It serves {', '.join(status.models)}.", ""
        if not status.models:
            state, text = "not serving", f"The endpoint: {status.note}"
            next_ = view.command(self.profile, "up")
        if self.power.value and all(node["state"] == "off" for node in nodes):
            state, text = "off", "All machines are off."
        elif status.models and len(up) < len(nodes):
            state = "degraded"
            text += f" No answer: {', '.join(n['name'] for n in nodes if n['state'] != 'up')}."
        elif not self.power.tried or not self.endpoint.tried:
            state, text, next_ = "asked", "It is being looked at.", ""
        return {
            "state": state,
            "text": text,
            "next": next_,
            "image": f"{status.image} {status.image_id[:12]}{status.told_of_choice()}",
            "layout": "; ".join(each.layout for each in status.services),
            "model": ", ".join(each.model for each in status.services),
            "endpoint": f"{status.endpoint}/v1",
            "nodes": nodes,
            "links": view.links(kept.probes if kept else None, does, {}),
            "limits": view.limits(self.minute, kept),
            "checks": None if state == "off" else self._checked(cluster),
            "warnings": [list(each) for each in status.warnings()],
        }

    def _status(self, cluster: Cluster) -> Status:
        """As `status` has it, from what was heard last."""
        profile = self.profile
        states = {node.name: PowerState.SILENT for node in profile.nodes} | (self.power.value or {})
        seen = {}
        for node in profile.nodes:
            source = self.nodes[node.name]
            if not self._on(node):
                continue
            if self._lives(node) and source.value:
                seen[node.name] = answered(profile, node, source.value[0])
            else:
                seen[node.name] = silent(profile, node, source.problem.partition("\n")[0])
        facts: RayFacts | None = self.ray.value
        alive = {
            each.address: "head" if each.head else f"{each.accelerators:g} accelerators"
            for each in (facts.nodes if facts else ())
        }
        said = self.endpoint.value or AtEndpoint(note="no answer yet")
        if self.endpoint.problem:
            said = AtEndpoint(note=self.endpoint.problem)
        return assembled(cluster, states, seen, alive, said, self.boots.value)

    def _of_node(
        self, node: Node, status: Status, does: dict[str, dict[str, Any]]
    ) -> dict[str, Any]:
        seen = next(each for each in status.nodes if each.name == node.name)
        age = next(tail.age for tail in self.tails if tail.name == node.name)
        boot = status.seen.netboot.boots[node.name]
        power = PowerState(seen.power) if self.power.value else PowerState.SILENT
        state = "up" if self._lives(node) else "off" if power == PowerState.OFF else "no answer"
        if state == "no answer" and node.name in status.seen.stuck:
            state = "stuck"
        elif state == "no answer" and boot.current and age is None:
            state = "starting"
        return {
            "name": node.name,
            "role": "control" if self.profile.is_control(node) else "compute",
            "address": seen.address,
            "state": state,
            "power": str(seen.power),
            "heard_s": None if age is None else round(age, 1),
            "system": seen.system,
            "ray": seen.ray,
            "lines": [re.sub(r"^(\d+) active$", r"\1 units active", x) for x in status.told(seen)],
            "boot": status.boot_of(node.name),
            "steps": [
                {"step": s.step, "status": s.status, "at_s": round(s.start - boot.began, 1),
                 "seconds": s.seconds, "bytes": s.bytes, "text": s.text}
                for s in boot.steps
            ],
            **({} if state == "off" else does.get(node.name, {})),
        }  # fmt: skip

    def _checked(self, cluster: Cluster) -> dict[str, Any]:
        return view.checks(list(self._checks(cluster)), self.profile)

    def _checks(self, cluster: Cluster) -> Iterator[Check]:
        """The checks that only look: no question, no comparison of configurations."""
        for node in self.profile.nodes:
            source = self.nodes[node.name]
            if source.value and self._lives(node):
                seen = judge.NodeObservation(self.profile, node, cluster.image_id, *source.value)
                for rule, verdict in judge.NODE_RULES.items():
                    yield rule.check(node.name, verdict(seen))
            elif source.tried:
                rule = next(iter(judge.NODE_RULES))
                yield rule.broken(node.name, source.problem.partition("\n")[0] or "no answer")
        control = self.profile.control.name
        facts: RayFacts | None = self.ray.value
        if facts:
            yield judge.RAY_NODES.check(control, judge.ray_nodes(self.profile, facts))
            yield judge.RAY_HEAD.check(control, judge.ray_head(self.profile, facts))
            accelerators = judge.ray_accelerators(self.profile, facts)
            yield judge.RAY_ACCELERATORS.check(control, accelerators)
            of_models = judge.of_models(self.profile, facts.workers)
            for one, (view, workers) in zip(cluster.services, of_models, strict=True):
                ranks = judge.ranks(view, one.layout, workers)
                yield judge.RANKS.of(view).check(control, ranks)
        elif self.ray.problem:
            yield judge.RAY_NODES.broken(control, self.ray.problem)
        said = self.endpoint.value or AtEndpoint()
        if said.models:
            for view in self.profile.services:
                yield judge.LISTED.of(view).check(control, judge.listed(view, said.models))
        elif said.note:
            yield judge.LISTED.broken(control, said.note)
