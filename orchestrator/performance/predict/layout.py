"""Layouts of a model on a cluster's accelerators: degrees of parallelism, ranks on nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from orchestrator.models.config import group_misfit, pipeline_misfit, tensor_misfit
from orchestrator.models.serving import Layout
from orchestrator.profile.existing import RANKS_NETWORK, Attached
from orchestrator.profile.model import Profile

#: The node of each rank of a group.
Ranks = tuple[str, ...]


@dataclass(frozen=True)
class Parallelism:
    """Degrees of parallelism. ``tensor``: ranks per layer; ``pipeline``: stages of layers;
    ``data``: copies of the whole model."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1

    @classmethod
    def of(cls, layout: Layout) -> Parallelism:
        """That of a layout that is served."""
        return cls(*layout.sizes)

    @property
    def ranks(self) -> int:
        """The number of accelerators."""
        return self.tensor * self.pipeline * self.data

    @property
    def one(self) -> bool:
        return self.ranks == 1

    def __str__(self) -> str:
        parts = [f"tensor {self.tensor}"] if self.tensor > 1 else []
        parts += [f"pipeline {self.pipeline}"] if self.pipeline > 1 else []
        parts += [f"{self.data} copies"] if self.data > 1 else []
        return " x ".join(parts) or "one device"


@dataclass(frozen=True)
class Placement:
    """The nodes of one copy's ranks, by stage, then by tensor rank."""

    stages: tuple[Ranks, ...]

    @property
    def nodes(self) -> tuple[str, ...]:
        """All its nodes, each once, in order."""
        return tuple(dict.fromkeys(node for stage in self.stages for node in stage))

    @property
    def tensor_nodes(self) -> tuple[str, ...]:
        """The nodes of the stage with the most nodes."""
        return max((tuple(dict.fromkeys(stage)) for stage in self.stages), key=len)

    @property
    def borders(self) -> int:
        """The number of stage borders that are between different nodes."""
        return sum(one != other for one, other in pairwise(self.stages))


def candidates(config: Mapping[str, Any], accelerators: int) -> list[Parallelism]:
    """All layouts that the model's sizes allow, the smallest first."""
    sizes = range(1, accelerators + 1)
    found = [
        Parallelism(tensor, pipeline, data)
        for tensor in sizes
        if not (tensor_misfit(config, tensor) or group_misfit(config, tensor))
        for pipeline in range(1, accelerators // tensor + 1)
        if not pipeline_misfit(config, pipeline)
        for data in range(1, accelerators // (tensor * pipeline) + 1)
    ]
    return sorted(found, key=lambda layout: (layout.ranks, layout.data, layout.pipeline))


def accelerators(profile: Profile | Attached) -> Ranks:
    """The node of each accelerator, in vLLM's order: node by node, the server's first. Where others
    run the cluster, those with ranks count."""
    if isinstance(profile, Attached):
        return tuple(node.name for node in profile.nodes for _ in range(node.ranks))
    return tuple(node.name for node in profile.compute_nodes for _ in range(node.accelerators))


def network(profile: Profile | Attached) -> str:
    """The network of the ranks' messages, as probes name it."""
    return RANKS_NETWORK if isinstance(profile, Attached) else profile.ray.network


def place(devices: Sequence[str], layout: Parallelism) -> tuple[Placement, ...]:
    """The nodes of each copy, in vLLM's order (``initialize_model_parallel``): consecutive tensor
    ranks, stage by stage."""
    copy = layout.tensor * layout.pipeline
    return tuple(
        Placement(_chunks(devices[start : start + copy], layout.tensor))
        for start in range(0, layout.ranks, copy)
    )


def _chunks(devices: Sequence[str], size: int) -> tuple[Ranks, ...]:
    return tuple(tuple(devices[start : start + size]) for start in range(0, len(devices), size))
