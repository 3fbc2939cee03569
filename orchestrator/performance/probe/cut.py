"""A model with fewer layers, and what it says of the whole one. Pure.

Layers may be of several kinds: a few dense ones before those with experts, every sixth with full
attention. A cut keeps the first ones and whole periods of the rest, so that each kind keeps its
share.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.core.errors import BadInput
from orchestrator.models.config import decoder, number
from orchestrator.performance.results.engine import EngineCell
from orchestrator.performance.results.probe import Spread

#: Keys of config.json with the number of layers.
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
#: Keys that say after how many layers a kind comes again.
PERIODS = (
    "sliding_window_pattern",
    "full_attention_interval",
    "attn_layer_period",
    "expert_layer_period",
    "interleave_moe_layer_step",
    "moe_layer_freq",
    "decoder_sparse_step",
    "no_rope_layer_interval",
    "layer_group_size",
)
#: Keys that say how many layers of another kind come first.
FIRST = ("first_k_dense_replace", "num_dense_layers", "attn_layer_offset", "moe_layer_start_index")
#: Ends of keys whose lists name layers by their numbers.
NUMBERED = ("_layers", "_layer_ids", "_layer_idx", "_layer_indices", "_layers_idx")
#: The share of the layers that may come first, before the rest repeats.
MOST_FIRST = 0.25


@dataclass(frozen=True)
class Pattern:
    """So many layers of their own come first, then the same ``period`` again and again."""

    layers: int
    first: int = 0
    period: int = 1

    def nearest(self, wanted: float) -> int:
        """The depth nearest to ``wanted`` that has whole periods, one at least."""
        return self.first + self.period * max(1, round((wanted - self.first) / self.period))

    def depths(self) -> tuple[int, int] | None:
        """A quarter and a half of the layers, about; None where no two depths are smaller."""
        low, high = self.nearest(self.layers / 4), self.nearest(self.layers / 2)
        if high == low:
            high += self.period
        return (low, high) if high < self.layers else None


def pattern(config: Mapping[str, Any]) -> Pattern | None:
    """How a model's layers repeat; None where config.json does not say how many there are."""
    text = decoder(config)
    layers = next(filter(None, (number(text, key) for key in LAYERS)), None)
    if not layers:
        return None
    first = max((number(text, key) or 0 for key in FIRST), default=0)
    periods = [number(text, key) or 1 for key in PERIODS]
    for kinds in _kinds(text, layers):
        begins, period = _repeats(kinds)
        first, periods = max(first, begins), [*periods, period]
    return Pattern(layers, first, math.lcm(*(each for each in periods if each <= layers)))


def _kinds(text: Mapping[str, Any], layers: int) -> Iterator[Sequence[Any]]:
    """Each layer's kind, in every way in which config.json tells it."""
    for key, value in text.items():
        if isinstance(value, list | str) and len(value) == layers and layers > 1:
            yield value
        elif _names_layers(key, value, layers):
            yield [each in value for each in range(layers)]


def _names_layers(key: str, value: object, layers: int) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and key.endswith(NUMBERED)
        and all(isinstance(each, int) and 0 <= each < layers for each in value)
    )


def _repeats(kinds: Sequence[Any]) -> tuple[int, int]:
    """How many come first, and the period of the rest: the smallest ones."""
    count = len(kinds)
    for period in range(1, count):
        for first in range(int(count * MOST_FIRST) + 1):
            if all(kinds[n] == kinds[n - period] for n in range(first + period, count)):
                return (first, period) if first + period < count else (0, count)
    return 0, count


def checked(depths: Sequence[int], found: Pattern) -> tuple[int, int]:
    """Two depths that were asked for. Raises BadInput where they are none, or break the pattern."""
    if len(set(depths)) != 2 or not all(1 <= each <= found.layers for each in depths):
        raise BadInput(f"--layers wants two numbers, each from 1 to {found.layers}, like 14,28")
    low, high = sorted(depths)
    for each in (low, high):
        if each < found.layers and each != found.nearest(each):
            raise BadInput(
                f"--layers: {each} layers break the model's pattern: {found.first} of their own, "
                f"then periods of {found.period}",
                f"The nearest that keep it: {found.nearest(each)}.",
            )
    return low, high


def cut(config: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """The same config.json with fewer layers, all else as it was."""
    text = dict(decoder(config))
    whole = pattern(config)
    assert whole is not None
    for key, value in text.items():
        if key in LAYERS:
            text[key] = layers
        elif isinstance(value, list | str) and len(value) == whole.layers and whole.layers > 1:
            text[key] = value[:layers]
        elif _names_layers(key, value, whole.layers):
            text[key] = [each for each in value if each < layers]
    return text if "text_config" not in config else {**config, "text_config": text}


def extrapolated(
    low: Sequence[EngineCell], high: Sequence[EngineCell], depths: tuple[int, int], layers: int
) -> tuple[EngineCell, ...]:
    """Each cell on the straight line through two depths, as wide as the noise of both makes it."""
    ahead = (layers - depths[1]) / (depths[1] - depths[0])
    found = []
    for cell in high:
        other = next((each for each in low if _load(each) == _load(cell)), None)
        if other is None:
            continue
        step = None
        if other.step_s and cell.step_s:
            step = _line(other.step_s, cell.step_s, ahead)
        ttft, tpot = (
            _line(other.ttft_s, cell.ttft_s, ahead),
            _line(other.tpot_s, cell.tpot_s, ahead),
        )
        share = _whole(cell, cell.ttft_s, cell.tpot_s) / _whole(cell, ttft, tpot)
        rate = cell.output_tokens_per_s
        found.append(
            replace(
                cell,
                ttft_s=ttft,
                tpot_s=tpot,
                step_s=step,
                output_tokens_per_s=Spread(
                    rate.median * share, rate.low * share, rate.high * share, rate.n
                ),
            )
        )
    return tuple(found)


def _load(cell: EngineCell) -> tuple[int, int, int]:
    return cell.prompt_tokens, cell.output_tokens, cell.concurrency


def _whole(cell: EngineCell, ttft: Spread, tpot: Spread) -> float:
    return max(1e-9, ttft.median + (cell.output_tokens - 1) * tpot.median)


def _line(low: Spread, high: Spread, ahead: float) -> Spread:
    """The value ``ahead`` times the depths' distance further. More layers never take less time."""

    def at(near: float, far: float) -> float:
        return max(near, near + (near - far) * ahead)

    return Spread(
        at(high.median, low.median),
        at(high.low, low.high),
        at(high.high, low.low),
        min(low.n, high.n),
    )
