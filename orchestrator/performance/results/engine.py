"""The engine itself under small loads, as it is stored. Units: seconds, bytes, tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from orchestrator.performance.results.probe import Spread


class EngineWeights(StrEnum):
    """What the engine computed with. Its speed depends on shapes, not on values."""

    OWN = "own"
    DUMMY = "dummy"


@dataclass(frozen=True)
class EngineCell:
    """One small load: ``concurrency`` requests at once, of equal length.

    Latencies are medians over requests; their spread is over repeats, which were taken in turns
    with the other cells. ``output_tokens_per_s``: of all of
    them together. ``step_s``: between two tokens of one while all of them decode and none waits for
    another one's prompt; None where they never did so for long enough.
    """

    prompt_tokens: int
    output_tokens: int
    concurrency: int
    ttft_s: Spread
    tpot_s: Spread
    output_tokens_per_s: Spread
    step_s: Spread | None = None


@dataclass(frozen=True)
class EngineRates:
    """The real engine, with its flags, on its accelerators and over its links.

    ``key``: a hash of everything that the figures depend on but time: the model's config.json,
    versions or image, flags, layout, devices. ``layers``: how many of the model's layers ran; equal
    to ``of_layers`` where all did; None where that is not known. ``kv_tokens``: room in the KV
    cache, by the engine's word. ``link_bytes_per_s``, ``link_latency_s``: the slowest link between
    its nodes, measured just before; None on one node, or where it was not measured.
    """

    key: str
    time: str
    model: str
    nodes: tuple[str, ...]
    devices: tuple[str, ...]
    tensor: int
    pipeline: int
    data: int
    args: dict[str, str]
    versions: dict[str, str]
    weights: EngineWeights
    cells: tuple[EngineCell, ...]
    layers: int | None = None
    of_layers: int | None = None
    kv_tokens: int | None = None
    link_bytes_per_s: float | None = None
    link_latency_s: float | None = None
    image_id: str = ""
    notes: tuple[str, ...] = field(default=())

    def of(self, model: str, args: Mapping[str, object]) -> bool:
        """Whether it was this model with these flags: without graphs an engine is another one."""
        return self.model == model and _plain(self.args) == _plain(args)


def _plain(args: Mapping[str, object]) -> dict[str, str]:
    """Flags as text: a profile may write them with lines below."""
    return {name.replace("_", "-"): str(value) for name, value in args.items()}
