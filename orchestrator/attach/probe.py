"""`probe` of a cluster that others run: its devices, links and collectives, as its user.

The programs are those of `performance.probe`. They are sent on standard input, and end by
themselves. The model keeps most of the accelerators' memory meanwhile, so little of it is used.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from orchestrator.attach import endpoint as endpoints
from orchestrator.attach.find import ask_node
from orchestrator.attach.reach import AROUND, NodeShell
from orchestrator.core.errors import UserError
from orchestrator.core.progress import Board
from orchestrator.performance import metrics
from orchestrator.performance.probe.nodes import source
from orchestrator.performance.probe.plan import sizes
from orchestrator.performance.probe.run import LOOK, Kind, ProbedCluster, Round, now
from orchestrator.performance.results.probe import Before, FailedProbe, Probes
from orchestrator.profile.existing import RANKS_NETWORK, Attached, AttachedNode

#: What is probed here: files of a model are wherever its owner put them.
KINDS = (Kind.DEVICE, Kind.LINK, Kind.COLLECTIVE)


@dataclass(frozen=True)
class TheirNode:
    """A `ProbedNode`. ``inside``: also plain programs run in its container, not on the machine."""

    profile: Attached
    node: AttachedNode
    inside: bool = False

    @property
    def name(self) -> str:
        return self.node.name

    def address(self, network: str) -> str:
        if self.node.address is None:
            raise UserError(
                f"{self.name}: its address is not known",
                f"Name it in the profile: nodes.{self.name}.address",
            )
        return str(self.node.address)

    def plain(self, program: str, words: Sequence[str], seconds: float) -> Any:
        return self._run(program, words, seconds, inside=self.inside)

    def with_torch(self, program: str, asked: Any, seconds: float) -> Any:
        if not self.node.engine:
            raise UserError(
                f"{self.name}: the Python of vLLM is not known",
                f"Name it in the profile: nodes.{self.name}.engine",
            )
        variables = (f"{name}={value}" for name, value in self.profile.serving.env.items())
        start = ["env", *variables, self.node.engine]
        return self._run(program, [json.dumps(asked)], seconds, start=start)

    def _run(self, program: str, words: Sequence[str], seconds: float, **how: Any) -> Any:
        text = AROUND.format(text=source(program))
        shell = NodeShell(self.node)
        return shell.ask(text, dict[str, Any], *words, timeout=int(seconds), **how)


def probe(
    profile: Attached,
    board: Board,
    kinds: Collection[Kind],
    nodes: Sequence[AttachedNode],
    requests: float | None,
) -> Probes:
    """Probe these nodes; saves nothing. ``requests``: of `requests_in_work`, before."""
    with ThreadPoolExecutor(max(1, len(nodes))) as pool:
        seen = list(pool.map(ask_node, nodes))
    round_ = Round(board)
    silent = [each for each in seen if each.facts is None]
    round_.failed += [FailedProbe(LOOK, e.node.name, e.error.splitlines()[0]) for e in silent]
    here = {
        node.name: (node, found.clock.offset if found.clock else 0.0)
        for node, found in zip(nodes, seen, strict=True)
        if found.facts
    }
    probed = ProbedCluster(
        places={name: TheirNode(profile, node) for name, (node, _) in here.items()},
        skews_s={name: skew for name, (_, skew) in here.items()},
        networks={RANKS_NETWORK: list(here)},
        ranks=RANKS_NETWORK,
        sizes=sizes({}),
    )
    rates = round_.rates(kinds, probed)
    versions = {k: v for each in seen if each.facts for k, v in each.facts.versions.items()}
    return Probes(
        profile=profile.name,
        profile_sha256=profile.sha256,
        image_id="",
        versions=versions,
        time=now(),
        before=Before(requests=requests),
        failed=tuple(round_.failed),
        **rates,
    )


def requests_in_work(profile: Attached) -> float | None:
    """The requests that the model works on; None where its metrics do not say."""
    with endpoints.client_of(profile) as client:
        return metrics.in_work(endpoints.metrics_page(client))
