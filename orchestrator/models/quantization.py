"""What vLLM refuses about a quantized model, read from the model's own config before it is served.

vLLM says so too: minutes later, on another machine, and for one of them not at all.
Read from vLLM 0.30.0, whose quantization is the same Python on every kind of device.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.core.source import Loc
from orchestrator.models.nested import TEXT_KEYS

if TYPE_CHECKING:
    from orchestrator.profile.model import Profile

#: The variable that asks for results which do not depend on what is computed together.
BATCH_INVARIANT = "VLLM_BATCH_INVARIANT"
#: The capability that says why an image's quantized layers do not heed it.
NO_BATCH_INVARIANT = "no_batch_invariant_quantized"
#: Values of a variable that vLLM reads as "no": it takes bool(int(value)).
OFF = ("", "0")
#: The widths that vLLM reads, by method: a GPTQ model's have to be symmetric.
BITS = {"gptq": (4, 8), "awq": (4,)}
#: Names that models give to methods of vLLM's list.
OTHER_NAMES = {"auto-round", "auto_round", "intel/auto-round"}
#: Keys of settings that vLLM knows without a name of their method.
NAMELESS = ("quant_algo", "producer")


@dataclass(frozen=True)
class Packed:
    """Weights of a few bits, several in one integer: of which layers, and their groups.

    ``layers``: empty for all that have no rule of their own. ``bits`` and ``group`` are None where
    the settings do not say them; a group of -1 is a whole column.
    """

    layers: str
    bits: int | None
    group: int | None


def problems(
    profile: Profile, config: Mapping[str, Any], capabilities: Mapping[str, str]
) -> Iterator[tuple[Loc, str]]:
    """(where, text) of all that vLLM would refuse, whatever the accelerators are.

    ``config`` is the model's config.json; of an empty one (the model is not here yet) nothing is.
    """
    quantized = settings(config)
    for section, env in (("ray", profile.ray.env), ("serving", profile.serving.env)):
        if quantized and NO_BATCH_INVARIANT in capabilities and _is_on(env):
            reason = capabilities[NO_BATCH_INVARIANT]
            text = f"has no effect on this quantized model: {reason}; leave it out"
            yield (section, "env", BATCH_INVARIANT), text


def settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The quantization settings of a config.json; empty where it is not quantized."""
    for key in ("quantization_config", "compression_config", "quantization"):
        if isinstance(found := config.get(key), Mapping) and found:
            return found
    nested = (value for key, value in config.items() if key in TEXT_KEYS)
    return next((found for value in nested if isinstance(value, Mapping)
                 if (found := settings(value))), {})  # fmt: skip


@cache
def listed() -> frozenset[str]:
    """The methods that the locked vLLM lists (tools/model_families.py wrote them down)."""
    file = Path(__file__).parent / "reading" / "engine.json"
    return frozenset(json.loads(file.read_text())["quantizations"])


def refused(quantized: Mapping[str, Any]) -> Iterator[str]:
    """What vLLM refuses about quantization settings: what is wrong, and what to take instead."""
    method = str(quantized.get("quant_method") or "").lower()
    if quantized and not method and not any(key in quantized for key in NAMELESS):
        text = "its quantization has no quant_method, as in models for MLX"
        yield f"{text}; take one with AWQ or GPTQ"
    if method and method not in {*listed(), *OTHER_NAMES}:
        yield f"it does not read the quantization {method!r}; take one with AWQ, GPTQ or fp8"
    if method not in BITS:
        return
    bits = quantized.get("bits", quantized.get("w_bit"))
    if isinstance(bits, int) and bits not in BITS[method]:
        allowed = " or ".join(map(str, BITS[method]))
        yield f"{method} with {bits} bits; take one with {allowed} bits"
    if method == "gptq":
        yield from _gptq(quantized)


def _gptq(quantized: Mapping[str, Any]) -> Iterator[str]:
    if quantized.get("sym") is False:
        yield "gptq that is not symmetric (sym false); take one with sym true"
    for rule, group_size, desc_act in _gptq_rules(quantized):
        # With one group a column (-1), the order of activations makes no difference.
        if desc_act and group_size != -1:
            yield (
                f"gptq with desc_act true and groups of {group_size}{rule}; take one with desc_act"
                " false (or a static order)"
            )


def _gptq_rules(quantized: Mapping[str, Any]) -> Iterator[tuple[str, object, object]]:
    """(which layers, group size, desc_act): of all, then of those with rules of their own."""
    group_size, desc_act = quantized.get("group_size"), quantized.get("desc_act", False)
    yield "", group_size, desc_act
    for pattern, rule in _mappings(quantized.get("dynamic")):
        if not pattern.startswith("-:"):
            size, act = rule.get("group_size", group_size), rule.get("desc_act", desc_act)
            yield f" (in the layers {pattern!r})", size, act


def packed(quantized: Mapping[str, Any]) -> Iterator[Packed]:
    """The widths and groups of AWQ, GPTQ, AutoRound and compressed-tensors' packed weights, which
    run on the same kernels; nothing of other formats."""
    method = str(quantized.get("quant_method", "")).lower()
    if method == "compressed-tensors":
        for name, rule in _mappings(quantized.get("config_groups")):
            weights, form = rule.get("weights"), rule.get("format", quantized.get("format"))
            if form == "pack-quantized" and isinstance(weights, Mapping):
                size = _whole(weights.get("group_size"))
                yield Packed(name, _whole(weights.get("num_bits")), -1 if size is None else size)
    elif method in (*BITS, "auto-round", "auto_round"):
        bits = _whole(quantized.get("bits", quantized.get("w_bit")))
        group = _whole(quantized.get("group_size", quantized.get("q_group_size")))
        yield Packed("", bits, group)
        for pattern, rule in _mappings(quantized.get("dynamic")):
            if not pattern.startswith("-:"):
                yield Packed(
                    pattern,
                    _whole(rule.get("bits", bits)),
                    _whole(rule.get("group_size", group)),
                )


def blocks(quantized: Mapping[str, Any]) -> Iterator[int]:
    """The sides of blocks that have one scale together, in fp8 by blocks."""
    sides = quantized.get("weight_block_size")
    yield from (side for side in sides or () if isinstance(side, int) and side > 1)


def _mappings(found: object) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, value in found.items() if isinstance(found, Mapping) else ():
        if isinstance(value, Mapping):
            yield str(name), value


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _is_on(env: Mapping[str, str]) -> bool:
    return env.get(BATCH_INVARIANT, "") not in OFF
