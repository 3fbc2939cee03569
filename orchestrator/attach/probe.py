"""`probe` of a cluster that others run: its devices, links and collectives, as its user.

The programs are those of `performance.probe`. They are sent on standard input, and end by
themselves. The model keeps most of the accelerators' memory meanwhile, so little of it is used.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import combinations
from typing import Any, TypeVar

from orchestrator.attach import endpoint as endpoints
from orchestrator.attach.find import NodeFound, ask_node
from orchestrator.attach.reach import AROUND, NodeShell
from orchestrator.core.errors import UserError
from orchestrator.core.progress import CLUSTER, Board
from orchestrator.performance import metrics
from orchestrator.performance.probe.judge import used
from orchestrator.performance.probe.nodes import source
from orchestrator.performance.probe.plan import BETWEEN, sizes
from orchestrator.performance.probe.run import FIGURE_S, IN_WORK, PORTS, Kind, device_rates
from orchestrator.performance.results.probe import (
    Before,
    CollectiveRates,
    DeviceRates,
    FailedProbe,
    LinkRates,
    Probes,
    by_size,
    spread,
)
from orchestrator.profile.existing import RANKS_NETWORK, Attached, AttachedNode

#: What is probed here: files of a model are wherever its owner put them.
KINDS = (Kind.DEVICE, Kind.LINK, Kind.COLLECTIVE)
#: Seconds for a device, a link, a collective, a look.
DEVICE_S, LINK_S, COLLECTIVE_S, LOOK_S = 170, 60, 170, 30
#: The most pairs of nodes: about five minutes.
MOST_PAIRS = 60

_Found = TypeVar("_Found")
Document = dict[str, Any]


@dataclass
class Attempts:
    """Probes side by side or one after the other; failures are collected, and the others go on."""

    board: Board
    failed: list[FailedProbe] = field(default_factory=list)

    def one(self, kind: Kind, where: str, act: Callable[[], _Found]) -> _Found | None:
        try:
            with self.board.step(where, kind):
                try:
                    return act()
                except (KeyError, TypeError, ValueError, AttributeError) as error:
                    raise UserError(f"{where}: the probe's figures are none: {error!r}") from None
        except UserError as error:
            self.failed.append(FailedProbe(kind, where, error.message))
            return None

    def each(self, kind: Kind, acts: Mapping[str, Callable[[], _Found]]) -> list[_Found]:
        with ThreadPoolExecutor(max(1, len(acts))) as pool:
            found = pool.map(lambda where: self.one(kind, where, acts[where]), acts)
            return [each for each in found if each is not None]


def probe(
    profile: Attached,
    board: Board,
    kinds: Collection[Kind],
    nodes: Sequence[AttachedNode],
    requests: float | None,
) -> Probes:
    """Probe these nodes; saves nothing. ``requests``: of `requests_in_work`, before."""
    attempts = Attempts(board)
    with ThreadPoolExecutor(max(1, len(nodes))) as pool:
        seen = {each.node.name: each for each in pool.map(ask_node, nodes)}
    silent = [each for each in seen.values() if each.facts is None]
    attempts.failed += [FailedProbe("look", e.node.name, e.error.splitlines()[0]) for e in silent]
    here = [node for node in nodes if seen[node.name].facts]
    devices: list[DeviceRates] = []
    links: list[LinkRates] = []
    groups: list[CollectiveRates] = []
    if Kind.DEVICE in kinds:
        acts = {node.name: partial(_device, profile, seen[node.name], node) for node in here}
        devices = attempts.each(Kind.DEVICE, acts)
    pairs = list(combinations(here, 2))[:MOST_PAIRS] if Kind.LINK in kinds else []
    for a, b in pairs:
        found = attempts.one(Kind.LINK, f"{a.name}, {b.name}", partial(link_rates, a, b))
        links += [found] if found else []
    if Kind.COLLECTIVE in kinds and len(here) > 1:
        group = attempts.one(Kind.COLLECTIVE, CLUSTER, partial(_collective, profile, here))
        groups += [group] if group else []
    versions = {
        k: v for each in seen.values() if each.facts for k, v in each.facts.versions.items()
    }
    return Probes(
        profile=profile.name,
        profile_sha256=profile.sha256,
        image_id="",
        versions=versions,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        devices=tuple(devices),
        links=tuple(links),
        collectives=tuple(groups),
        failed=tuple(attempts.failed),
        before=Before(requests=requests),
        pairs_left_out=max(0, len(here) * (len(here) - 1) // 2 - len(pairs)) if pairs else 0,
    )


def requests_in_work(profile: Attached) -> float | None:
    """The requests that the model works on; None where its metrics do not say."""
    with endpoints.client_of(profile) as client:
        found = metrics.values(endpoints.metrics_page(client))
    return sum(found[name] for name in IN_WORK) if all(n in found for n in IN_WORK) else None


def _run(
    shell: NodeShell, program: str, seconds: int, *words: str, inside: bool = False
) -> Document:
    """A program of the standard library, on the machine itself, or ``inside`` its container."""
    text = AROUND.format(text=source(program))
    return shell.ask(text, Document, *words, inside=inside, timeout=seconds)


def with_torch(
    profile: Attached, node: AttachedNode, program: str, asked: Any, seconds: int
) -> Document:
    """A program in vLLM's environment. Raises UserError if that is not known."""
    if not node.engine:
        raise UserError(
            f"{node.name}: the Python of vLLM is not known",
            f"Name it in the profile: nodes.{node.name}.engine",
        )
    variables = [f"{name}={value}" for name, value in profile.serving.env.items()]
    text = AROUND.format(text=source(program))
    start = ["env", *variables, node.engine]
    return NodeShell(node).ask(text, Document, json.dumps(asked), timeout=seconds, start=start)


def _device(profile: Attached, seen: NodeFound, node: AttachedNode) -> DeviceRates:
    found = with_torch(profile, node, "node_device", {"seconds": FIGURE_S}, DEVICE_S)
    return device_rates(node.name, found, seen.clock.offset if seen.clock else 0.0)


def _addresses(*nodes: AttachedNode) -> list[str]:
    if missing := [node.name for node in nodes if node.address is None]:
        raise UserError(
            f"{missing[0]}: its address is not known",
            f"Name it in the profile: nodes.{missing[0]}.address",
        )
    return [str(node.address) for node in nodes]


def _together(*acts: Callable[[], Document]) -> list[Document]:
    """Side by side; raises the first failure when all have ended."""
    with ThreadPoolExecutor(len(acts)) as pool:
        jobs = [pool.submit(act) for act in acts]
    return [job.result() for job in jobs]


def link_rates(a: AttachedNode, b: AttachedNode, *, inside: bool = False) -> LinkRates:
    here, there = _addresses(a, b)
    port = str(random.choice(PORTS))
    ask = ["ask", there, port, here, ",".join(map(str, sizes({})))]
    ends = [(a, ask), (b, ["serve", there, port])]
    run = partial(_run, inside=inside)
    before = [_cards(node, inside) for node in (a, b)]
    found, _ = _together(
        *(partial(run, NodeShell(node), "node_link", LINK_S, *words) for node, words in ends)
    )
    after = [_cards(node, inside) for node in (a, b)]
    names = [used(first, last) for first, last in zip(before, after, strict=True)]
    rates = [last.get(n, {}).get("negotiated") for n, last in zip(names, after, strict=True)]
    return LinkRates(
        a=a.name,
        b=b.name,
        network=RANKS_NETWORK,
        interfaces=(names[0], names[1]),
        negotiated_bits_per_s=(rates[0], rates[1]),
        latency_s=spread(found["latency_s"]),
        bytes_per_s=spread(found["bytes_per_s"]),
        by_size_s=by_size(found["by_size_s"]),
    )


def _cards(node: AttachedNode, inside: bool) -> Document:
    found: Document = _run(NodeShell(node), "node_state", LOOK_S, inside=inside)["cards"]
    return found


def _collective(profile: Attached, nodes: Sequence[AttachedNode]) -> CollectiveRates:
    common = {
        "world": len(nodes),
        "address": _addresses(*nodes)[0],
        "port": random.choice(PORTS),
        "sizes": sizes({}),
        "between": BETWEEN,
        "timeout_s": COLLECTIVE_S / 4,
    }

    def rank(number: int) -> Callable[[], Document]:
        asked = common | {"rank": number}
        return partial(with_torch, profile, nodes[number], "node_collective", asked, COLLECTIVE_S)

    found = _together(*map(rank, range(len(nodes))))[0]
    return CollectiveRates(
        nodes=tuple(node.name for node in nodes),
        backend=str(found["backend"]),
        interfaces=(),
        all_reduce_s=by_size(found["all_reduce_s"]),
        send_s=by_size(found["send_s"]),
        launch_s=by_size(found["launch_s"]),
    )
