"""What is looked at of a cluster that others run, and the document of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from orchestrator.attach import endpoint as endpoints
from orchestrator.attach.bench import kept_speeds, speeds
from orchestrator.attach.endpoint import EndpointFacts
from orchestrator.attach.explain import findings
from orchestrator.attach.find import NodeFound, ask_node, of_ray
from orchestrator.attach.ray import RayCluster
from orchestrator.attach.samples import ENDPOINT, sampler_argv
from orchestrator.attach.verify import Looked, checks
from orchestrator.core.errors import UserError
from orchestrator.dashboard import view
from orchestrator.dashboard.gather import Polled, Tail
from orchestrator.dashboard.kept import Kept, Shelf
from orchestrator.dashboard.minute import FRESH, PERIOD, Minute, by_node
from orchestrator.performance import metrics
from orchestrator.performance.bench.sample import sampler
from orchestrator.performance.bench.sampler import GAUGES
from orchestrator.performance.predict.layout import Parallelism
from orchestrator.performance.results.bench import Provenance, Run, RunState, Series
from orchestrator.profile.existing import Attached, AttachedNode

#: Seconds between two looks: at the endpoint, at a node's processes, at Ray.
OFTEN, SELDOM, RAY = 10.0, 60.0, 300.0
#: Seconds for what starts a Python on a node, by way of jump hosts.
PATIENCE = 30.0


class Theirs:
    """A cluster that others run: its endpoint, and its nodes by the user's own SSH."""

    def __init__(self, profile: Attached) -> None:
        self.profile = profile
        self.minute = Minute()
        self.changes = view.Changes()
        self.endpoint = Polled("endpoint", self._endpoint, OFTEN)
        self.metrics = Polled("metrics", self._metrics, PERIOD)
        self.nodes = {
            node.name: Polled(node.name, partial(ask_node, node), SELDOM, PATIENCE)
            for node in profile.nodes
        }
        self.ray = Polled("Ray", self._ray, RAY, PATIENCE)
        self.kept = Polled("measurements", self._kept, 30.0)
        text = sampler(PERIOD, ())
        self.tails: Sequence[Tail] = [
            Tail(node.name, partial(sampler_argv, node, text), partial(self.minute.take, node.name))
            for node in profile.nodes
        ]
        self._shelf = Shelf(profile)

    @property
    def sources(self) -> Sequence[Polled]:
        return (self.endpoint, self.metrics, *self.nodes.values(), self.ray, self.kept)

    def network(self) -> AbstractContextManager[object]:
        return nullcontext()

    def _endpoint(self) -> EndpointFacts:
        with endpoints.client_of(self.profile) as client:
            return endpoints.find(client)

    def _metrics(self) -> None:
        with endpoints.client_of(self.profile) as client:
            values = metrics.values(endpoints.metrics_page(client))
        if not values:
            raise UserError("/metrics has none of vLLM's (a router in front?)")
        self.minute.metered(values)

    def _found(self) -> list[NodeFound]:
        mine = (self.profile.serving.model, self.profile.endpoint.url)
        return [each.value.of(*mine) for each in self.nodes.values() if each.value]

    def _ray(self) -> RayCluster | None:
        return of_ray(self._found())

    def _kept(self) -> Kept:
        serving = self.profile.serving
        sizes = (serving.tensor_parallel, serving.pipeline_parallel, serving.data_parallel)
        return self._shelf.look(Parallelism(*sizes))

    def document(self) -> dict[str, Any]:
        profile = self.profile
        kept: Kept | None = self.kept.value
        said: EndpointFacts | None = None if self.endpoint.problem else self.endpoint.value
        found = {each.node.name: each for each in self._found()}
        does = by_node(self.minute.series())
        nodes = [self._of_node(node, found.get(node.name), does) for node in profile.nodes]
        gone = [node["name"] for node in nodes if node["state"] == "no answer"]
        state, text = "serving", f"It serves {', '.join(said.models) if said else ''}."
        if said is None:
            state, text = "not serving", self.endpoint.problem.partition("\n")[0]
            if not self.endpoint.tried:
                state, text = "asked", "It is being looked at."
        elif gone:
            state, text = "degraded", f"{text} No answer: {', '.join(gone)}."
        states = {node["name"]: node["state"] for node in nodes}
        asked = (self.endpoint, *self.nodes.values(), self.ray)
        changed = self.changes.seen({**states, "endpoint": state})
        if changed and all(source.tried for source in asked):  # not by the first look itself
            for source in asked:
                source.again()
        looked = Looked(said, self.endpoint.problem, tuple(found.values()), self.ray.value)
        whole = len(found) == len(profile.nodes)
        made = checks(profile, looked, whole=whole, questions=False) if said or found else ()
        rates = speeds(looked) or kept_speeds(profile.name)
        serving = profile.serving
        layout = f"tensor {serving.tensor_parallel}, pipeline {serving.pipeline_parallel}"
        return view.document(
            profile, self.sources, self.minute, kept, self.changes,
            {
                "state": state,
                "text": text,
                "next": self.endpoint.problem.partition("\n")[2],
                "layout": f"{layout}, data {serving.data_parallel}",
                "endpoint": f"{profile.endpoint.url}/v1",
                "nodes": nodes,
                "links": view.links(kept.probes if kept else None, does, rates),
                "limits": self._limits(kept, rates),
                "checks": view.checks(list(made), profile),
                "warnings": [],
            },
        )  # fmt: skip

    def _limits(self, kept: Kept | None, rates: dict[str, float]) -> dict[str, Any]:
        """By forecasts where the engine and probes are known; else by counters, as `doctor`."""
        found = self.minute.measured()
        told = view.limits(self.minute, kept)
        if found is None or told["phases"]:
            return told
        times = tuple(when for when, _ in self.minute.metrics)
        gauges = [
            Series(ENDPOINT, f"vLLM {name}", "", times,
                   tuple(values[name] for _, values in self.minute.metrics))
            for name in GAUGES
        ]  # fmt: skip
        nothing = Provenance(self.profile.name, "", "", "", {}, "", "", "", "", "")
        run = Run("", nothing, RunState.COMPLETE, measured=(found,),
                  series=(*self.minute.series(), *gauges))  # fmt: skip
        seen = findings(run, self.profile, rates)
        text = "" if seen else "No limit shows in the counters of the last minute."
        return {**told, "text": text, "findings": [each.document() for each in seen]}

    def _of_node(
        self, node: AttachedNode, found: NodeFound | None, does: dict[str, dict[str, Any]]
    ) -> dict[str, Any]:
        source = self.nodes[node.name]
        age = next(tail.age for tail in self.tails if tail.name == node.name)
        lives = age is not None and age < FRESH
        tried = source.tried or age is not None
        facts = found.facts if found else None
        error = (found.error if found else "") or source.problem
        lines = [] if lives or not error else error.splitlines()[:2]
        if facts:
            lines += [f"{len(facts.ranks)} of {node.ranks} ranks"]
            lines += [f"{card.vendor} {card.name}" for card in facts.accelerators]
        return {
            "name": node.name,
            "role": "compute",
            "address": node.host,
            "state": "up" if lives else "no answer" if tried else "asked",
            "heard_s": None if age is None else round(age, 1),
            "lines": lines,
            "steps": [],
            **does.get(node.name, {}),
        }
