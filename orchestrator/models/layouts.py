"""Every layout of a model on a profile's accelerators: possible, or why not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.models import cards
from orchestrator.models.config import group_misfit, pipeline_misfit, tensor_misfit

if TYPE_CHECKING:
    from orchestrator.profile.model import Profile


@dataclass(frozen=True)
class LayoutFit:
    """``why``: what stands against it; empty where the layout is possible."""

    tensor: int
    pipeline: int
    why: str


def fits(profile: Profile, config: Mapping[str, Any]) -> Iterator[LayoutFit]:
    """All pairs of sizes that the accelerators suffice for, the smallest first."""
    total = sum(node.accelerators for node in profile.compute_nodes)
    for tensor in range(1, total + 1):
        why = tensor_misfit(config, tensor)
        why = why or cards.rank_misfit(profile, config, tensor) or group_misfit(config, tensor)
        if not why and (cut := group_misfit(config, tensor, experts=True)):
            why = f"{cut}; possible where whole experts are spread (expert_parallel)"
        for pipeline in range(1, total // tensor + 1):
            yield LayoutFit(tensor, pipeline, why or pipeline_misfit(config, pipeline))


def refused(profile: Profile, name: str, config: Mapping[str, Any]) -> Iterator[str]:
    """What the profile's accelerators cannot compute of a model, served under ``name``."""
    yield from (text for _, text in cards.problems(serving(profile, name), config))


def serving(profile: Profile, name: str) -> Profile:
    """The profile with another model in place of its own."""
    changed = profile.serving.model_copy(update={"model": name})
    return profile.model_copy(update={"serving": changed})
