"""A model's sizes, from its config.json: bytes and FLOPs per token.

A multiply-add counts as two FLOPs. Per token, a weight of a linear layer is read once and used for
two FLOPs (Kaplan et al., "Scaling Laws for Neural Language Models", 2020, table 1). Attention
multiplies each new token twice with each token of its context.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.models import quantization
from orchestrator.models.config import EXPERT_KEYS, KV_HEAD_KEYS, number

#: vLLM's names of number formats -> (torch's name, bytes of a number).
DTYPES = {
    "half": ("float16", 2),
    "float16": ("float16", 2),
    "bfloat16": ("bfloat16", 2),
    "float": ("float32", 4),
    "float32": ("float32", 4),
}
#: Model types whose MLP has two matrices; all others have a gate, so three.
UNGATED = ("gpt2", "gpt_bigcode", "gpt_neox", "gptj", "opt", "falcon", "mpt", "bloom", "phi")
#: Keys of config.json for layers that are modelled as plain attention -> their real kind.
UNLIKE = {
    "kv_lora_rank": "attention over a compressed cache (MLA)",
    "ssm_cfg": "state space layers",
    "mamba_d_state": "state space layers",
    "linear_num_value_heads": "linear attention",
}


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
    shared: int = 0
    dense_layers: int = 0

    @property
    def weight_bytes(self) -> float:
        """Bytes of one weight in the decoder's linear layers."""
        return self.weight_bits / 8

    @property
    def plain(self) -> bool:
        """Whether all its products are of dense matrices with 16-bit weights."""
        return not self.experts and self.dtype_bytes == 2 and self.weight_bits == 16

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
        matrix = self.mlp_matrices * self.hidden
        if not self.experts:
            return self.layers * matrix * self.intermediate
        spread = self.layers - self.dense_layers
        each = matrix * (experts * self.expert_intermediate + self.shared)
        return spread * each + self.dense_layers * matrix * self.intermediate

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
        mlp = self.mlp_weights(self.experts_touched(max(tokens, 1))) / tensor
        linear = self.layers * self.attention_weights(tensor) + mlp
        return linear * self.weight_bytes + self.head_weights * self.dtype_bytes / tensor

    def bytes_held(self, tensor: int = 1, stages: int = 1) -> float:
        """Weight bytes in the memory of the fullest rank: all experts, and embedding or head.

        The first stage has the embedding, the last one the head; a single stage has both.
        """
        mlp = self.mlp_weights(self.experts) / tensor
        linear = (self.layers * self.attention_weights(tensor) + mlp) * self.weight_bytes
        share = -(-self.layers // stages) / self.layers  # some stages have one layer more
        ends = 1 if self.tied or stages > 1 else 2
        return linear * share + ends * self.head_weights * self.dtype_bytes / tensor

    def flops(self, tokens: float, context: float, sampled: float) -> float:
        """FLOPs of a step with ``tokens`` new tokens, each with ``context`` tokens before it on
        average. Logits are computed for ``sampled`` tokens only."""
        dense = self.layers * self.attention_weights() + self.mlp_weights(self.experts_per_token)
        attention = 4 * self.layers * self.heads * self.head_dim * context
        return tokens * (2 * dense + attention) + sampled * 2 * self.head_weights

    def kv_bytes_per_token(self, tensor: int = 1) -> float:
        """Bytes of one token's keys and values of all layers, in one of ``tensor`` ranks' cache."""
        heads = max(self.kv_heads / tensor, 1.0)
        return 2 * self.layers * heads * self.head_dim * self.dtype_bytes


def read(
    config: Mapping[str, Any], dtype: str = "auto"
) -> tuple[ModelShape | None, tuple[str, ...]]:
    """The shape in a config.json, and notes on what could not be read or is not modelled.

    ``dtype``: vLLM's flag. The shape is None if the layers' sizes are unknown.
    """
    text = config.get("text_config", config)
    unread = [
        f"{key}: {what} modelled as standard layers"
        for key, what in UNLIKE.items()
        if text.get(key)
    ]
    layers, hidden = number(text, "num_hidden_layers"), number(text, "hidden_size")
    heads = number(text, "num_attention_heads")
    if not layers or not hidden or not heads:
        missing = "num_hidden_layers, hidden_size or num_attention_heads"
        return None, (f"config.json has no {missing}: nothing can be predicted",)
    kv_heads = next(filter(None, (number(text, key) for key in KV_HEAD_KEYS)), None)
    name, size = _dtype(text, dtype, unread)
    shape = ModelShape(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads or heads,  # as in Hugging Face's transformers
        head_dim=number(text, "head_dim") or hidden // heads,
        intermediate=_intermediate(text, hidden, unread),
        vocabulary=number(text, "vocab_size") or 0,
        dtype=name,
        dtype_bytes=size,
        weight_bits=_weight_bits(config, 8.0 * size, unread),
        tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
        mlp_matrices=2 if text.get("model_type") in UNGATED else 3,
        **_experts(text, unread),
    )
    if not shape.vocabulary:
        unread.append("vocab_size: logits are not counted")
    return shape, tuple(unread)


def _dtype(text: Mapping[str, Any], wanted: str, unread: list[str]) -> tuple[str, int]:
    found = wanted if wanted != "auto" else str(text.get("dtype") or text.get("torch_dtype"))
    if found not in DTYPES:
        unread.append(f"dtype {found}: assumed 2 bytes")
        return "bfloat16", 2
    return DTYPES[found]


def _intermediate(text: Mapping[str, Any], hidden: int, unread: list[str]) -> int:
    found = number(text, "intermediate_size") or number(text, "n_inner")
    if not found:
        unread.append("intermediate_size: assumed 4 times hidden_size")
    return found or 4 * hidden


def _experts(text: Mapping[str, Any], unread: list[str]) -> dict[str, int]:
    experts = next(filter(None, (number(text, key) for key in EXPERT_KEYS)), None)
    if not experts:
        return {}
    keys = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts")
    chosen = next(filter(None, (number(text, key) for key in keys)), None)
    if not chosen:
        unread.append("num_experts_per_tok: assumed that each token uses all experts")
    width = number(text, "moe_intermediate_size") or number(text, "intermediate_size") or 0
    shared = number(text, "shared_expert_intermediate_size") or 0
    return {
        "experts": experts,
        "experts_per_token": min(chosen or experts, experts),
        "expert_intermediate": width,
        "shared": shared or width * (number(text, "n_shared_experts") or 0),
        "dense_layers": number(text, "first_k_dense_replace") or 0,
    }


def _weight_bits(config: Mapping[str, Any], plain: float, unread: list[str]) -> float:
    """Bits of a quantized weight. AWQ and GPTQ store for each group of weights in a column a scale
    of 16 bits and a zero point as wide as a weight."""
    settings = quantization.settings(config)
    method = str(settings.get("quant_method", "")).lower()
    if method in quantization.BITS:
        bits = float(settings.get("bits") or settings.get("w_bit") or 4)
        group = settings.get("group_size", settings.get("q_group_size", 128))
        # Without groups there is one scale per column, which is negligible.
        return bits + ((16 + bits) / group if isinstance(group, int) and group > 0 else 0.0)
    # bitsandbytes with 4 bits has a scale of 32 bits per block of 64 (QLoRA's paper, section 3).
    known = {"fp8": 8.0, "bitsandbytes": 4.5 if settings.get("load_in_4bit") else 8.0}
    found = known.get(method) or _compressed_bits(settings)
    if settings and not found:
        unread.append(f"quantization {method or 'unnamed'}: weights assumed not quantized")
    return found or plain


def _compressed_bits(settings: Mapping[str, Any]) -> float | None:
    """The weights' bits in compressed-tensors' settings, from the first group that has them."""
    groups = settings.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping) and (bits := number(weights, "num_bits")):
            size = number(weights, "group_size")
            return bits + 16 / size if size else float(bits)
    return None
