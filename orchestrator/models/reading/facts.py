"""One config.json under one set of names: nested parts found, old names and defaults resolved.

What transformers fills in by itself (``families.json``, made by tools/model_families.py from the
version that the image locks) is filled in here as well, so that a sparse config.json reads as the
engine reads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from orchestrator.models.nested import TEXT_KEYS

Config = Mapping[str, Any]

#: Names that no attribute_map of transformers has: of models with code of their own.
OTHER_NAMES = {
    "num_hidden_layers": ("num_layers", "n_layers", "n_layer", "num_decoder_layers"),
    "hidden_size": ("n_embd", "n_embed", "d_model", "dim"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads"),
    "num_key_value_heads": ("num_kv_heads", "n_kv_heads", "n_head_kv", "multi_query_group_num",
                            "num_attention_groups", "attn_config.kv_n_heads"),
    "head_dim": ("kv_channels", "attention_head_dim"),
    "intermediate_size": ("ffn_hidden_size", "n_inner", "ffn_dim", "ffn_config.ffn_hidden_size",
                          "hidden_dim"),
    "vocab_size": ("padded_vocab_size",),
    "max_position_embeddings": ("seq_length", "n_positions", "max_seq_len", "max_sequence_length",
                                "model_max_length", "n_ctx"),
    "num_experts": ("num_local_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts",
                    "ffn_config.moe_num_experts", "moe.num_experts"),
    "num_experts_per_tok": ("num_experts_per_token", "moe_topk", "moe_top_k", "top_k_experts",
                            "moe_k", "ffn_config.moe_top_k", "num_selected_experts",
                            "experts_per_token", "moe.num_experts_per_tok"),
    "moe_intermediate_size": ("expert_ffn_hidden_size", "moe_ffn_hidden_size",
                              "expert_intermediate_size", "moe.expert_hidden_dim",
                              "intermediate_size_expert"),
    "num_shared_experts": ("n_shared_experts", "moe_num_shared_experts", "num_shared_expert"),
    "shared_intermediate_size": ("shared_expert_intermediate_size", "share_expert_dim",
                                 "moe_shared_expert_intermediate_size"),
    "num_dense_layers": ("first_k_dense_replace", "moe_layer_num_skipped", "n_dense_layers"),
    "layer_types": ("layers_block_type", "layer_type_list"),
    "hybrid_pattern": ("hybrid_override_pattern",),
    "mamba_ssm_dtype": ("mamba_ssm_cache_dtype",),
    "mamba_d_state": ("ssm_state_size", "state_size", "mamba_state_dim"),
    "mamba_d_conv": ("conv_kernel", "mamba_conv_kernel_size", "conv_kernel_size"),
    "mamba_expand": ("expand",),
    "mamba_n_heads": ("mamba_num_heads",),
    "mamba_d_head": ("mamba_head_dim",),
    "mamba_n_groups": ("n_groups", "mamba_ngroups"),
    "mamba_dt_rank": ("time_step_rank",),
    "sliding_window": ("sliding_window_size", "attention_window_size"),
}  # fmt: skip


#: Names of types that are a type of transformers in all but name.
OTHER_TYPES = {"RefinedWeb": "falcon", "RefinedWebModel": "falcon", "kimi_k2": "deepseek_v3"}


@cache
def families() -> dict[str, Any]:
    """What transformers says by model type, and vLLM's further names for them: {transformers,
    aliases, types}."""
    found: dict[str, Any] = json.loads((Path(__file__).parent / "families.json").read_text())
    return found


def number(value: object) -> int | None:
    """A positive whole number; None for all else."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and value > 0 else None  # type: ignore[operator,return-value]


def family_of(kind: str) -> dict[str, Any]:
    """What is known of a model type; empty for one of a model with code of its own."""
    aliases = {**families()["aliases"], **OTHER_TYPES}
    found: dict[str, Any] = families()["types"].get(aliases.get(kind, kind), {})
    return found


@dataclass(frozen=True)
class Facts:
    """A part of a config.json, read by the names of transformers' newer models.

    ``family``: what is known of its model type; empty where transformers has no such type.
    """

    part: Config
    family: Mapping[str, Any]

    @property
    def type(self) -> str:
        return str(self.part.get("model_type") or "")

    def names(self, key: str) -> tuple[str, ...]:
        """All names under which models say the same, the most likely first."""
        own = self.family.get("names", {}).get(key)
        return (*((own,) if own else ()), key, *OTHER_NAMES.get(key, ()))

    def stated(self, key: str) -> Any:
        """What config.json itself says, by any of the key's names; None where it does not."""
        for name in self.names(key):
            if (value := _deep(self.part, name)) is not None:
                return value
        return None

    def get(self, key: str) -> Any:
        """What config.json says, else transformers' default. A stated null is no default."""
        if (value := self.stated(key)) is not None:
            return value
        names = self.names(key)
        if any(name in self.part for name in names):
            return None
        defaults = self.family.get("defaults") or {}
        return next((defaults[name] for name in names if name in defaults), None)

    def whole(self, key: str, layer: int | None = None) -> int | None:
        """A positive whole number; of a list, the layer's."""
        value = self.get(key)
        if isinstance(value, list) and value:
            value = value[min(layer or 0, len(value) - 1)]
        return number(value)

    def flag(self, key: str) -> bool:
        return bool(self.get(key))


def facts(config: Config) -> Facts:
    """The language model's part of a config.json, wherever it is nested."""
    part = config
    for key in text_path(config):
        part = part[key]
    kind = str(part.get("model_type") or "")
    if part is not config:
        kind = kind or _nested_type(config)
        outer = {key: config[key] for key in ("tie_word_embeddings",) if key in config}
        part = {**outer, **part, "model_type": kind}
    return Facts(part, family_of(kind))


def of_part(part: Config, kind: str) -> Facts:
    """Another part, as a tower: of the type that it says, else of the one that its model has."""
    kind = str(part.get("model_type") or kind)
    return Facts({**part, "model_type": kind}, family_of(kind))


def parts(config: Config) -> Iterator[tuple[str, Config]]:
    """All nested parts of a config.json by their names, those of parts included."""
    for key, value in config.items():
        if isinstance(value, Mapping) and key.endswith(("_config", "_cfg", "llm", "vision", "moe")):
            yield key, value
            yield from parts(value)


def text_path(config: Config, depth: int = 0) -> tuple[str, ...]:
    """The keys to the part with the layers of the language model; none where that is all of it."""
    key = next((key for key in TEXT_KEYS if isinstance(config.get(key), Mapping)), None)
    return (key, *text_path(config[key], depth + 1)) if key and depth < 4 else ()


def _nested_type(config: Config) -> str:
    """The type of a nested language model that does not say its own."""
    for level in (config, *(value for _, value in parts(config))):
        family = family_of(str(level.get("model_type")))
        if nested := family.get("parts", {}).get("text_config"):
            return str(nested)
    return ""


def _deep(part: Config, name: str) -> Any:
    value: Any = part
    for step in name.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    return value
