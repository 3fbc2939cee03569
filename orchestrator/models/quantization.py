"""What vLLM refuses about a quantized model, read from the model's own config before it is served.

vLLM says so too: minutes later, on another machine, and for one of them not at all.
Read from vLLM 0.30.0, whose quantization is the same Python on every kind of device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.core.errors import BadInput

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


def check(profile: Profile, config: Mapping[str, Any], capabilities: Mapping[str, str]) -> None:
    """Raises BadInput, with file, line and key, for the first thing that vLLM would refuse.

    ``config`` is the model's config.json; an empty one (the model is not here yet) passes.
    """
    quantized = settings(config)
    for text in refused(quantized):
        where = profile.where("serving", "model")
        raise BadInput(f"{where}: vLLM refuses the model {profile.serving.model}: {text}")
    for section, env in (("ray", profile.ray.env), ("serving", profile.serving.env)):
        if quantized and NO_BATCH_INVARIANT in capabilities and _is_on(env):
            where = profile.where(section, "env", BATCH_INVARIANT)
            reason = capabilities[NO_BATCH_INVARIANT]
            raise BadInput(
                f"{where}: has no effect on this quantized model: {reason}; leave it out"
            )


def settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The quantization settings of a config.json; empty where it is not quantized."""
    found = config.get("quantization_config")
    if not found:
        found = (config.get("text_config") or {}).get("quantization_config")
    return found if isinstance(found, Mapping) else {}


def refused(quantized: Mapping[str, Any]) -> Iterator[str]:
    """What vLLM refuses about quantization settings: what is wrong, and what to take instead."""
    method = str(quantized.get("quant_method", "")).lower()
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
    for pattern, rule in (quantized.get("dynamic") or {}).items():
        if isinstance(rule, Mapping) and not str(pattern).startswith("-:"):
            size, act = rule.get("group_size", group_size), rule.get("desc_act", desc_act)
            yield f" (in the layers {pattern!r})", size, act


def _is_on(env: Mapping[str, str]) -> bool:
    return env.get(BATCH_INVARIANT, "") not in OFF
