"""A model's sizes, from its config.json: bytes and FLOPs per token.

A multiply-add counts as two FLOPs. Per token, a weight of a linear layer is read once and used for
two FLOPs (Kaplan et al., "Scaling Laws for Neural Language Models", 2020, table 1). Attention
multiplies each new token twice with each token of its context.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.models.reading.description import ModelDescription, describe
from orchestrator.models.reading.layers import head_dim, kv_heads


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder.

    ``weight_bits``: bits of a weight in the decoder's linear layers, with its share of scales and
    zero points. ``dtype``: torch's name of all other numbers' format. ``mlp_matrices``: two, or
    three with a gate. ``experts``: 0 in a dense model. ``dense_layers``: layers without experts in
    a model that has experts. ``shared``: the width of the MLP that every token passes beside its
    experts.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    dtype: str = "bfloat16"
    dtype_bytes: int = 2
    weight_bits: float = 16.0
    tied: bool = False
    mlp_matrices: int = 3
    experts: int = 0
    experts_per_token: int = 0
    expert_intermediate: int = 0
    unlike: ModelDescription | None = None

    @property
    def weight_bytes(self) -> float:
        """Bytes of one weight in the decoder's linear layers."""
        return self.weight_bits / 8

    @property
    def plain(self) -> bool:
        """Whether all its products are of dense matrices with 16-bit weights."""
        alike = self.unlike is None and not self.experts
        return alike and self.dtype_bytes == 2 and self.weight_bits == 16

    @property
    def head_weights(self) -> int:
        """The number of weights of the output head; the embedding has as many."""
        return self.vocabulary * self.hidden

    def attention_weights(self, tensor: int = 1) -> float:
        """Weights of a layer's attention on one of ``tensor`` ranks: queries, output, keys, values.

        With more ranks than key-value heads, each rank has a copy of one head (vLLM's llama.py).
        """
        own = 2 * self.hidden * self.heads * self.head_dim / tensor
        return own + 2 * self.hidden * max(self.kv_heads / tensor, 1.0) * self.head_dim

    def mlp_weights(self, experts: float) -> float:
        """Weights of all layers' MLPs together, counting ``experts`` experts in each layer."""
        matrix = self.layers * self.mlp_matrices * self.hidden
        return matrix * (experts * self.expert_intermediate if self.experts else self.intermediate)

    def experts_touched(self, tokens: float) -> float:
        """The expected number of a layer's experts that ``tokens`` tokens use, if chosen evenly.

        E (1 - (1 - k/E)^n): (1 - k/E)^n is the probability that no token uses an expert.
        """
        if not self.experts:
            return 0.0
        nobody: float = (1 - self.experts_per_token / self.experts) ** tokens
        return self.experts * (1 - nobody)

    def bytes_read(self, tokens: float = 1, tensor: int = 1) -> float:
        """Weight bytes that one of ``tensor`` ranks reads in a step that computes ``tokens``.

        All layers and the head. The embedding does not count, since only a few rows are read.
        """
        head = self.head_weights * self.dtype_bytes / tensor
        touched = self.experts_touched(max(tokens, 1))
        if self.unlike:
            return self.unlike.layer_bytes(touched) / tensor + head
        linear = self.layers * self.attention_weights(tensor) + self.mlp_weights(touched) / tensor
        return linear * self.weight_bytes + head

    def bytes_held(self, tensor: int = 1, stages: int = 1) -> float:
        """Weight bytes in the memory of the fullest rank: all experts, and embedding or head.

        The first stage has the embedding, the last one the head; a single stage has both.
        """
        mlp = self.mlp_weights(self.experts) / tensor
        linear = (self.layers * self.attention_weights(tensor) + mlp) * self.weight_bytes
        if self.unlike:
            linear = self.unlike.layer_bytes() / tensor
            linear += sum(self.unlike.others.values()) * self.dtype_bytes / tensor
        share = -(-self.layers // stages) / self.layers  # some stages have one layer more
        ends = 1 if self.tied or stages > 1 else 2
        return linear * share + ends * self.head_weights * self.dtype_bytes / tensor

    def flops(self, tokens: float, context: float, sampled: float) -> float:
        """FLOPs of a step with ``tokens`` new tokens, each with ``context`` tokens before it on
        average. Logits are computed for ``sampled`` tokens only."""
        dense = self.layers * self.attention_weights() + self.mlp_weights(self.experts_per_token)
        attention = 4 * self.layers * self.heads * self.head_dim * context
        if self.unlike:
            dense = sum(layer.active for layer in self.unlike.layers)
            seen = [min(context, kept.window or context)
                    for layer in self.unlike.layers if (kept := layer.cache)]  # fmt: skip
            attention = 4 * sum(seen) * self.heads * self.head_dim
        return tokens * (2 * dense + attention) + sampled * 2 * self.head_weights

    def kv_bytes_per_token(self, tensor: int = 1) -> float:
        """Bytes of one token's keys and values of all layers, in one of ``tensor`` ranks' cache."""
        if self.unlike:
            return self.unlike.kv_bytes(tensor)
        heads = max(self.kv_heads / tensor, 1.0)
        return 2 * self.layers * heads * self.head_dim * self.dtype_bytes

    def cache_held(self, tokens: float, tensor: int = 1) -> float:
        """Bytes that a request of so many tokens takes in one of ``tensor`` ranks' cache."""
        if self.unlike:
            return self.unlike.held(tokens, tensor) + self.unlike.state_bytes / tensor
        return tokens * self.kv_bytes_per_token(tensor)

    def cache_read(self, tokens: float, tensor: int = 1) -> float:
        """Bytes of it that each further token reads: of a window, no more than the window."""
        if self.unlike:
            return self.unlike.held(tokens, tensor, 1) + self.unlike.state_bytes / tensor
        return tokens * self.kv_bytes_per_token(tensor)


def read(
    config: Mapping[str, Any], dtype: str = "auto", cache: str = "auto"
) -> tuple[ModelShape | None, tuple[str, ...]]:
    """The shape in a config.json, and notes on what could not be read or is not modelled.

    ``dtype``, ``cache``: vLLM's flags --dtype and --kv-cache-dtype. The shape is None if the
    layers' sizes are unknown.
    """
    found = describe(config, dtype, cache)
    facts, experts = found.facts, next((each for each in found.layers if each.experts), None)
    if not found.layers:
        missing = "num_hidden_layers, hidden_size or num_attention_heads"
        return None, (f"config.json has no {missing}: nothing can be predicted",)
    heads = facts.whole("num_attention_heads") or 1
    width = facts.whole("intermediate_size") or 4 * found.hidden
    shape = ModelShape(
        layers=len(found.layers),
        hidden=found.hidden,
        heads=heads,
        kv_heads=kv_heads(facts),
        head_dim=head_dim(facts, heads),
        intermediate=width,
        vocabulary=found.vocabulary,
        dtype=found.dtype,
        dtype_bytes=found.dtype_bytes,
        weight_bits=found.quantization.bits or 8.0 * found.dtype_bytes,
        tied=found.tied,
        mlp_matrices=facts.family.get("matrices", 3),
        experts=experts.experts if experts else 0,
        experts_per_token=experts.chosen if experts else 0,
        expert_intermediate=(facts.whole("moe_intermediate_size") or width) if experts else 0,
    )
    return (shape if _alike(shape, found) else replace(shape, unlike=found)), found.unread


def _alike(shape: ModelShape, found: ModelDescription) -> bool:
    """Whether the shape's few sizes say all that the description does."""
    router = sum(layer.modules.get("mlp.gate", 0) for layer in found.layers)
    counted = shape.layers * shape.attention_weights() + shape.mlp_weights(shape.experts)
    size = counted * shape.weight_bytes + router * shape.dtype_bytes
    return (
        counted + router == sum(layer.weights for layer in found.layers)
        and math.isclose(size, found.layer_bytes())
        and shape.kv_bytes_per_token() == found.kv_bytes_per_token
        and not (found.others or found.state_bytes)
    )
