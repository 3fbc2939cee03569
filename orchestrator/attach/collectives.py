"""Whether NCCL, RCCL and oneCCL take RDMA, from lines of the engine's own log. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from orchestrator.attach.facts import MachineFacts
from orchestrator.core.visible import one_line

#: What carries messages between nodes.
RDMA, SOCKETS = "RDMA", "sockets"
#: What a line says of it; the first that fits counts. NCCL and RCCL, then oneCCL's libfabric.
NETWORKS = (
    (
        re.compile(r"Using network (?:IB|IBext\w*)\b|NET/IB\w* ?: ?Using \[\d|via NET/IB", re.I),
        RDMA,
    ),
    (re.compile(r"Using network Socket|NET/Socket ?: ?Using|via NET/Socket", re.I), SOCKETS),
    (re.compile(r"provider:? *(?:verbs|mlx|psm3)|\bprovider=(?:verbs|mlx|psm3)", re.I), RDMA),
    (re.compile(r"provider:? *(?:tcp|sockets)|\bprovider=(?:tcp|sockets)", re.I), SOCKETS),
)
#: Ways within a node.
WITHIN = re.compile(r"via ((?:P2P|SHM)[/\w]*)")
WARNS = re.compile(r"CCL[_ ]WARN", re.IGNORECASE)
#: How to have it said.
ADVICE = "start vLLM with NCCL_DEBUG=INFO (oneCCL: CCL_LOG_LEVEL=info) and attach again"


def network(facts: MachineFacts) -> str:
    """What carries the messages: RDMA, sockets, or "" where the log says nothing of it.

    With RDMA, NCCL says that it uses sockets too, for its own set-up.
    """
    said = {name for line in facts.log.lines for pattern, name in NETWORKS if pattern.search(line)}
    chosen = [line for line in facts.log.lines if "Using network" in line]
    for line in chosen:
        return next((name for pattern, name in NETWORKS if pattern.search(line)), "")
    return RDMA if RDMA in said else SOCKETS if SOCKETS in said else ""


def told(facts: MachineFacts) -> Iterator[str]:
    """Lines for people: nothing without a log that speaks of it."""
    way = network(facts)
    within = dict.fromkeys(match[1] for line in facts.log.lines for match in WITHIN.finditer(line))
    words = [way and f"{way} between nodes", *within]
    if any(words):
        by = one_line(facts.log.of)
        yield f"collectives: {', '.join(filter(None, words))} (by {by})"
    for line in [each for each in facts.log.lines if WARNS.search(each)][:3]:
        yield f"the collectives' library warns: {one_line(line)}"


def missing(nodes: Sequence[MachineFacts]) -> Iterator[str]:
    """Where RDMA is there, and the log does not say whether it is taken."""
    for facts in nodes:
        if ports(facts) and facts.ranks and not network(facts):
            by = f"its log ({one_line(facts.log.of)}) does not say" if facts.log.of else "no log"
            yield f"whether the collectives of {facts.hostname} take RDMA: {by}; {ADVICE}"


def ports(facts: MachineFacts) -> list[str]:
    return [each.told for each in facts.rdma if each.works]
