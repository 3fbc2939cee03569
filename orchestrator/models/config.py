"""How a model can be cut, by its config.json; what it does not say is not checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.models import quantization
from orchestrator.models.reading.facts import facts
from orchestrator.models.reading.layers import depth, head_dim, kv_heads

Config = Mapping[str, Any]


def context_of(config: Config) -> int | None:
    """The most tokens of a request; None where nobody says."""
    return facts(config).whole("max_position_embeddings")


def has_experts(config: Config) -> bool:
    """Whether a config.json is of a mixture of experts."""
    return (facts(config).whole("num_experts") or 0) > 1


def tensor_misfit(config: Config, size: int) -> str:
    """Why the model's layers cannot be spread over ``size``; empty where they can."""
    found = facts(config)
    heads = found.whole("num_attention_heads")
    if heads and heads % size:
        return f"does not divide the model's {heads} attention heads"
    compressed = found.whole("kv_lora_rank")  # one copy on each rank
    keys = kv_heads(found) if heads and not compressed else 0
    if keys and keys % size and size % keys:
        return f"neither divides the model's {keys} key-value heads nor is a multiple of them"
    for key, what in (("mamba_n_heads", "Mamba"), ("linear_num_value_heads", "linear attention")):
        if (count := found.whole(key)) and count % size:
            return f"does not divide the model's {count} heads of {what}"
    inner = found.whole("intermediate_size")
    # Of a model with experts this may be an expert's size, which need not be cut.
    if inner and inner % size and not has_experts(config):
        return f"does not divide the model's intermediate_size {inner}"
    return ""


def group_misfit(config: Config, size: int, experts: bool = False) -> str:
    """Why a rank of ``size`` would cut a group or block of quantized weights; empty where not.

    ``experts``: whether experts are cut as well, as they are unless whole ones are spread.
    """
    if size == 1:
        return ""
    settings = quantization.settings(config)
    groups = {one.group for one in quantization.packed(settings) if (one.group or 0) > 0}
    groups |= set(quantization.blocks(settings))
    for layer, length in _cut(config, size, experts):
        for group in sorted(each for each in groups if each):
            if length % group:
                return (
                    f"gives each rank {length:g} values of the {layer}, no multiple of the"
                    f" quantization's groups of {group}"
                )
    return ""


def _cut(config: Config, size: int, experts: bool) -> Iterator[tuple[str, float]]:
    yield from ((layer, length) for layer, length in inputs(config, size).items()
                if layer != "hidden state")  # fmt: skip
    found = facts(config)
    if experts and has_experts(config):
        width = found.whole("moe_intermediate_size") or found.whole("intermediate_size")
        if width:
            yield "experts' output", width / size


def pipeline_misfit(config: Config, stages: int) -> str:
    layers = depth(facts(config))
    if layers and stages > layers:
        return f"stages are more than the model's {layers} layers; allowed: 1 to {layers}, or auto"
    return ""


def inputs(config: Config, size: int) -> dict[str, int]:
    """By layer, how long a linear layer's input is on each of ``size`` ranks: those of attention
    and MLP, of a model without experts. Layers that are cut by output read all of the hidden state.
    """
    found = facts(config)
    hidden, heads = found.whole("hidden_size"), found.whole("num_attention_heads")
    width = found.whole("v_head_dim") or (head_dim(found, heads) if heads else 0)
    inner = found.whole("intermediate_size")
    lengths = {
        "hidden state": hidden,
        "attention output": heads * width // size if heads and width else None,
        "MLP output": inner // size if inner and not has_experts(config) else None,
    }
    return {layer: length for layer, length in lengths.items() if length}
