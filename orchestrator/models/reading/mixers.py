"""Layers without attention: state space (Mamba) and linear attention; their weights and state."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.models.reading.facts import Facts


@dataclass(frozen=True)
class MixerState:
    """Numbers that a request keeps however long it is: of the convolution's window, in the model's
    format; and of the recurrence, in a format of its own."""

    window: int = 0
    recurrent: int = 0


def mamba(f: Facts, hidden: int) -> tuple[int, MixerState]:
    """(weights, state) of a Mamba layer: version 2 where it has heads, else 1."""
    state, kernel = f.whole("mamba_d_state") or 16, f.whole("mamba_d_conv") or 4
    heads = f.whole("mamba_n_heads")
    inner = f.whole("mamba_d_ssm") or int((f.get("mamba_expand") or 2) * hidden)
    if heads and (width := f.whole("mamba_d_head")) and not f.whole("mamba_d_ssm"):
        inner = heads * width
    if not heads and f.family.get("mamba2"):
        heads = inner // (f.whole("mamba_d_head") or 64)
    if heads:
        mixed = inner + 2 * (f.whole("mamba_n_groups") or 1) * state
        weights = hidden * (inner + mixed + heads) + mixed * kernel + inner * hidden
        return weights, MixerState(mixed * (kernel - 1), inner * state)
    rank = f.whole("mamba_dt_rank") or -(-hidden // 16)
    weights = hidden * 2 * inner + inner * kernel + inner * (rank + 2 * state)
    weights += rank * inner + inner * state + inner * hidden
    return weights, MixerState(inner * (kernel - 1), inner * state)


def linear(f: Facts, hidden: int, unread: list[str]) -> tuple[int, MixerState]:
    """(weights, state) of linear attention: gated delta rule, Kimi's, lightning."""
    if heads := f.whole("linear_num_value_heads"):
        key = (f.whole("linear_num_key_heads") or heads) * (f.whole("linear_key_head_dim") or 128)
        width = f.whole("linear_value_head_dim") or 128
        value = heads * width
        kernel = f.whole("linear_conv_kernel_dim") or 4
        mixed = 2 * key + value
        weights = hidden * (mixed + value + 2 * heads) + mixed * kernel + value * hidden
        state = heads * width * (f.whole("linear_key_head_dim") or 128)
        return weights, MixerState(mixed * (kernel - 1), state)
    own = f.get("linear_attn_config")
    given = own if isinstance(own, dict) else {}
    heads = given.get("num_heads") or f.whole("linear_num_heads")
    if heads:
        width = given.get("head_dim") or f.whole("linear_head_dim") or 128
        all_heads = heads * width
        low = 2 * width * (hidden + all_heads)  # the gates: down to one head's width, and up
        weights = 4 * hidden * all_heads + low + hidden * heads + 3 * all_heads * 4
        return weights, MixerState(3 * all_heads * 3, heads * width * width)
    heads = f.whole("num_attention_heads") or 1
    width = f.whole("head_dim") or hidden // heads
    if not f.type.startswith("minimax"):
        text = "linear attention: its sizes are not in config.json; read as lightning attention"
        unread.extend([text] if text not in unread else [])
    return 5 * hidden * heads * width, MixerState(0, heads * width * width)
