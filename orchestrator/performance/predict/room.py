"""Whether a layout has room in the memory of each of a profile's accelerators.

How much memory there is says a probe, else the profile, which names the least that it wants.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.core.errors import UserError
from orchestrator.core.nodeset import fold
from orchestrator.core.sizes import human_size
from orchestrator.models.config import context_of
from orchestrator.performance.predict import inputs
from orchestrator.performance.predict.layout import Parallelism
from orchestrator.performance.predict.load import CPU_CACHE, limits
from orchestrator.performance.predict.rank import Fit, fit
from orchestrator.performance.predict.rates import SYNCHRONOUS
from orchestrator.performance.predict.shape import ModelShape
from orchestrator.profile.model import Node, Profile


@dataclass(frozen=True)
class DeviceMemory:
    """An accelerator's memory in bytes. ``by``: who says so; ``cpu``: it is the node's own."""

    size: int
    by: str
    cpu: bool


@dataclass(frozen=True)
class Room:
    """What a layout takes of accelerators alike, and of how many tokens a request may be."""

    nodes: tuple[str, ...]
    memory: DeviceMemory
    fit: Fit
    context: int | None

    @property
    def why_not(self) -> str:
        """What the memory does not suffice for; empty where one request at least has room."""
        if self.fit.runs:
            return ""
        where, has = fold(self.nodes), f"{human_size(self.memory.size)} ({self.memory.by})"
        if self.fit.weight_bytes > self.fit.usable_bytes:
            usable = human_size(self.fit.usable_bytes)
            taken = human_size(self.fit.weight_bytes)
            return f"{where}: a rank's weights take {taken}, and vLLM {usable} of {has}"
        left = human_size(self.fit.cache_bytes)
        each = human_size(self.fit.cache_bytes_per_sequence)
        return (
            f"{where}: beside the weights {left} of {has} are left, and a request of"
            f" {self.context or 0:,} tokens takes {each}; serving.args.max-model-len shortens it"
        )

    def document(self) -> dict[str, Any]:
        return {
            "nodes": list(self.nodes),
            "bytes": self.memory.size,
            "said_by": self.memory.by,
            "weight_bytes": round(self.fit.weight_bytes),
            "cache_bytes_per_request": round(self.fit.cache_bytes_per_sequence),
            "requests": self.fit.sequences if self.fit.runs else 0,
            "suffices": self.fit.runs,
        }


def memories(profile: Profile) -> dict[str, DeviceMemory | None]:
    """The memory of each node's accelerators, the smallest counts; None where nobody says it."""
    try:
        found = inputs.probes(profile.name)
    except UserError:
        found = None
    known: dict[str, DeviceMemory | None] = {}
    for node in profile.compute_nodes:
        devices = [each for each in found.devices if each.node == node.name] if found else []
        if found and devices:
            size = min(each.memory_total_bytes for each in devices)
            on_cpu = any(each.device == SYNCHRONOUS for each in devices)
            known[node.name] = DeviceMemory(size, f"by the probes of {found.time}", on_cpu)
        elif node.accelerators:
            known[node.name] = _demanded(profile, node)
    return known


def _demanded(profile: Profile, node: Node) -> DeviceMemory | None:
    """The least that the profile wants: of a card, its largest memory region (BAR), which is all of
    its memory where the profile demands that; of a processor, the node's memory."""
    kind = profile.hardware.get(node.hardware or "")
    if kind is None:
        return None
    of = f"hardware.{node.hardware}"
    if CPU_CACHE in profile.serving_env() or (kind.torch and kind.torch.device == SYNCHRONOUS):
        return DeviceMemory(kind.memory, f"{of}.memory, the least", True) if kind.memory else None
    regions = [size for card in kind.pci for size in card.bars.values()]
    return DeviceMemory(max(regions), f"{of}.pci.bars, the least", False) if regions else None


def rooms(
    profile: Profile,
    known: Mapping[str, DeviceMemory | None],
    shape: ModelShape,
    config: Mapping[str, Any],
    layout: Parallelism,
) -> Iterator[Room]:
    """What a layout takes of all accelerators whose memory is known. Any may hold a rank."""
    alike: dict[DeviceMemory, list[str]] = {}
    for node, memory in known.items():
        if memory is not None:
            alike.setdefault(memory, []).append(node)
    for memory, nodes in alike.items():
        allowed = limits(profile, memory.cpu)
        allowed = replace(allowed, context=allowed.context or context_of(config))
        found = fit(shape, layout, memory.size, allowed)
        yield Room(tuple(nodes), memory, found, allowed.context)
