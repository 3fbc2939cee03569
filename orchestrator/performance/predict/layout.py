"""Ways to lay a model on a cluster's accelerators, and which node each part comes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from orchestrator.models.config import pipeline_misfit, tensor_misfit

if TYPE_CHECKING:
    from orchestrator.profile.model import Profile

#: A group of ranks, by the node of each.
Ranks = tuple[str, ...]


@dataclass(frozen=True)
class Parallelism:
    """``tensor``: over how many ranks each layer is spread; ``pipeline``: into how many stages
    the layers are cut; ``data``: how many copies of all that answer side by side."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1

    @property
    def ranks(self) -> int:
        """How many accelerators it takes."""
        return self.tensor * self.pipeline * self.data

    @property
    def one(self) -> bool:
        """Whether the model lies on a single accelerator."""
        return self.ranks == 1

    def __str__(self) -> str:
        parts = [f"tensor {self.tensor}"] if self.tensor > 1 else []
        parts += [f"pipeline {self.pipeline}"] if self.pipeline > 1 else []
        parts += [f"{self.data} copies"] if self.data > 1 else []
        return " x ".join(parts) or "one device"


@dataclass(frozen=True)
class Placement:
    """The nodes of one copy's ranks: by stage, then by tensor rank."""

    stages: tuple[Ranks, ...]

    @property
    def nodes(self) -> tuple[str, ...]:
        """All its nodes, each once, in order."""
        return tuple(dict.fromkeys(node for stage in self.stages for node in stage))

    @property
    def tensor_nodes(self) -> tuple[str, ...]:
        """The nodes of the stage that is spread over the most of them."""
        return max((tuple(dict.fromkeys(stage)) for stage in self.stages), key=len)

    @property
    def borders(self) -> int:
        """How many borders between stages are between nodes too."""
        return sum(one != other for one, other in pairwise(self.stages))


def candidates(config: Mapping[str, Any], accelerators: int) -> list[Parallelism]:
    """All layouts that the model can be cut into, smallest first."""
    text = config.get("text_config", config)
    sizes = range(1, accelerators + 1)
    found = [
        Parallelism(tensor, pipeline, data)
        for tensor in sizes
        if not tensor_misfit(text, tensor)
        for pipeline in range(1, accelerators // tensor + 1)
        if not pipeline_misfit(text, pipeline)
        for data in range(1, accelerators // (tensor * pipeline) + 1)
    ]
    return sorted(found, key=lambda layout: (layout.ranks, layout.data, layout.pipeline))


def accelerators(profile: Profile) -> Ranks:
    """The node of each accelerator, in vLLM's order: node by node, the server's first."""
    return tuple(node.name for node in profile.compute_nodes for _ in range(node.accelerators))


def place(devices: Sequence[str], layout: Parallelism) -> tuple[Placement, ...]:
    """Where each copy lies. Ranks are numbered through the stages, tensor ranks side by side
    (vLLM's ``initialize_model_parallel``)."""
    copy = layout.tensor * layout.pipeline
    return tuple(
        Placement(_chunks(devices[start : start + copy], layout.tensor))
        for start in range(0, layout.ranks, copy)
    )


def _chunks(devices: Sequence[str], size: int) -> tuple[Ranks, ...]:
    return tuple(tuple(devices[start : start + size]) for start in range(0, len(devices), size))
