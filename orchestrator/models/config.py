"""What a model's config.json says about how it can be cut; what it does not say is not checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Keys that hold the number of experts, as vLLM looks for them.
EXPERT_KEYS = ("num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts")
KV_HEAD_KEYS = ("n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num")


def decoder(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part that describes the decoder: models that also see or hear have it below a key."""
    found: Mapping[str, Any] = config.get("text_config") or config
    return found


def number(config: Mapping[str, Any], key: str) -> int | None:
    """A positive whole number of config.json; None where it is missing or something else."""
    value: object = config.get(key)
    if isinstance(value, list) and value:
        value = value[0]  # one per layer; they are the same
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    return None


def has_experts(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a mixture of experts."""
    return any(number(config, key) for key in EXPERT_KEYS)


def tensor_misfit(config: Mapping[str, Any], size: int) -> str:
    """Why the model's layers cannot be spread over ``size``; empty where they can."""
    heads = number(config, "num_attention_heads")
    if heads and heads % size:
        return f"does not divide the model's {heads} attention heads"
    kv_heads = next(filter(None, (number(config, key) for key in KV_HEAD_KEYS)), None)
    if kv_heads and kv_heads % size and size % kv_heads:
        return f"neither divides the model's {kv_heads} key-value heads nor is a multiple of them"
    inner = number(config, "intermediate_size")
    # Of a model with experts this may be an expert's size, which need not be cut.
    if inner and inner % size and not has_experts(config):
        return f"does not divide the model's intermediate_size {inner}"
    return ""


def pipeline_misfit(config: Mapping[str, Any], stages: int) -> str:
    layers = number(config, "num_hidden_layers")
    if layers and stages > layers:
        return f"stages are more than the model's {layers} layers; allowed: 1 to {layers}, or auto"
    return ""


def inputs(config: Mapping[str, Any], size: int) -> dict[str, int]:
    """By layer, how long a linear layer's input is on each of ``size`` ranks: those of attention
    and MLP, of a model without experts. Layers that are cut by output read all of the hidden state.
    """
    hidden, heads = number(config, "hidden_size"), number(config, "num_attention_heads")
    width = number(config, "v_head_dim") or number(config, "head_dim")
    if not width and hidden and heads:
        width = hidden // heads
    inner = number(config, "intermediate_size") or number(config, "n_inner")
    found = {
        "hidden state": hidden,
        "attention output": heads * width // size if heads and width else None,
        "MLP output": inner // size if inner and not has_experts(config) else None,
    }
    return {layer: length for layer, length in found.items() if length}
