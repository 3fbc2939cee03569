"""Find anomalies in probes: wrong interfaces, slow links or devices, wide spreads. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.performance.results.probe import Probes, Spread
from orchestrator.profile import Node, Profile

#: Spreads above this share of the median are reported.
WIDE = 0.3
#: TCP rates below this share of the negotiated rate are reported, as are devices below this share
#: of the fastest device.
SLOW = 0.6
#: Nodes whose processors were busier than this before probing are reported.
BUSY = 0.3
#: The rate of a model's file counts only if the file has at least so many bytes.
SMALL = 16 << 20


def used(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The interface with the most bytes between two readings of node_state's `cards`; "" if none
    moved. If a bridge moved bytes, its ports do not count."""
    moved = {name: card["bytes"] - before.get(name, card)["bytes"] for name, card in after.items()}
    ports = {name for name, card in after.items() if moved.get(card["master"] or "", 0) > 0}
    found = {name: count for name, count in moved.items() if count > 0 and name not in ports}
    return max(found, key=lambda name: found[name], default="")


def way(profile: Profile, a: Node, b: Node, network: str) -> str:
    """The network by which packets from a to b's address on ``network`` should go: one that
    carries it and that both nodes are on, else ``network`` itself."""
    for name, other in profile.networks.items():
        if other.carries == network and name in a.links and name in b.links:
            return name
    return network


def anomalies(profile: Profile, probes: Probes) -> Iterator[str]:
    """Lines about results that contradict the profile, or are not reliable."""
    yield from _before(probes)
    yield from _links(profile, probes)
    yield from _collectives(profile, probes)
    yield from _devices(probes)
    for each in probes.storage:
        if not each.uncached:
            where = f" ({each.file_system})" if each.file_system else ""
            yield f"{each.node}: the model is in memory{where}: the rate is not a disk rate"
        elif each.bytes < SMALL:
            yield f"{each.node}: the model has {each.bytes} bytes: too small to measure the disk"
        else:
            yield from _varying(each.node, {"reading the model": each.read_bytes_per_s})
    if probes.pairs_left_out:
        yield f"{probes.pairs_left_out} more pairs of nodes were not probed"


def _before(probes: Probes) -> Iterator[str]:
    if probes.before.requests:
        yield (
            f"the model was answering {probes.before.requests:.0f} requests: "
            "the figures are too low"
        )
    for node, share in probes.before.busy.items():
        if share > BUSY:
            yield f"{node}: its processors were {share:.0%} busy before the probe"


def _links(profile: Profile, probes: Probes) -> Iterator[str]:
    nodes = {node.name: node for node in profile.nodes}
    for link in probes.links:
        pair = f"{link.a}, {link.b} over {link.network}"
        ends = ((link.a, link.b), (link.b, link.a))
        for (own, other), seen in zip(ends, link.interfaces, strict=True):
            name = way(profile, nodes[own], nodes[other], link.network)
            yield from _interface(profile, nodes[own], {name}, seen, pair)
        yield from _varying(pair, {"TCP's rate": link.bytes_per_s})
        agreed = [each for each in link.negotiated_bits_per_s if each]
        if agreed and link.bytes_per_s.median * 8 < SLOW * min(agreed):
            yield (
                f"{pair}: TCP reaches {link.bytes_per_s.median * 8 / min(agreed):.0%} of the "
                "negotiated speed"
            )
        cable = sum(link.network in node.links for node in profile.nodes) == 2
        if cable and len(set(agreed)) > 1:
            yield f"{pair}: the two ends of the cable negotiated different speeds"


def _collectives(profile: Profile, probes: Probes) -> Iterator[str]:
    nodes = {node.name: node for node in profile.nodes}
    network = profile.ray.network
    for group in probes.collectives:
        members = [nodes[name] for name in group.nodes]
        for node, seen in zip(members, group.interfaces, strict=True):
            ways = {way(profile, node, each, network) for each in members if each is not node}
            yield from _interface(profile, node, ways, seen, f"all-reduce by {group.backend}")
        times = {f"{size} bytes": took for size, took in group.all_reduce_s.items()}
        yield from _varying(f"all-reduce by {group.backend}", times)


def _interface(profile: Profile, node: Node, ways: set[str], seen: str, what: str) -> Iterator[str]:
    said = {node.links[name].interface for name in ways}
    if seen not in said:
        networks = ", ".join(sorted(ways))
        yield (
            f"{what}: {node.name} used {seen or 'no interface'}, not {' or '.join(sorted(said))} "
            f"({profile.where('networks')}: {networks}); on {node.name}: ip route"
        )


def _devices(probes: Probes) -> Iterator[str]:
    for device in probes.devices:
        rates = {"memory": device.memory_bytes_per_s}
        rates |= {
            f"matrix rate in {name}": rate for name, rate in device.matrix_flops_per_s.items()
        }
        yield from _varying(device.node, rates)
    memory = {each.node: each.memory_bytes_per_s.median for each in probes.devices}
    best = max(memory.values(), default=0.0)
    for node, rate in memory.items():
        if rate < SLOW * best:
            yield f"{node}: its memory bandwidth is {rate / best:.0%} of the fastest node's"


def _varying(where: str, found: Mapping[str, Spread]) -> Iterator[str]:
    """One line about the figures whose repeats differ too much."""
    wide = {what: each.relative for what, each in found.items() if each.relative > WIDE}
    if wide:
        yield f"{where}: repeats differ by up to {max(wide.values()):.0%}: {', '.join(wide)}"
