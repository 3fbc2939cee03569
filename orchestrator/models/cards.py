"""What a profile asks of its accelerators that they cannot compute, found before anything starts.

The limits are data of the profile (``hardware.KIND.capabilities``), each with the card's reason and
with what works instead. What vLLM makes of a model and its flags was read in vLLM 0.30.0. Of nodes
of several kinds each has to be able to: ranks may lie on any node with accelerators.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.core.source import Loc
from orchestrator.models import config as shape
from orchestrator.models import flags, quantization
from orchestrator.models.reading.description import describe

if TYPE_CHECKING:
    from orchestrator.profile.hardware import Capabilities, Limit
    from orchestrator.profile.model import Profile

#: vLLM's names of number formats that are not torch's own.
DTYPES = {"half": "float16", "float": "float32"}
BACKEND, BACKEND_CONFIG = "attention-backend", "attention-config"

Found = Iterator[tuple[Loc, str]]


def problems(profile: Profile, config: Mapping[str, Any]) -> Found:
    """(where, text) of all that is refused, but for the sizes of ranks (``rank_misfit``).

    ``config`` is the model's config.json; of an empty one (the model is not here yet) only the
    profile's own flags are checked.
    """
    for kind, limits in kinds(profile).items():
        yield from _experts(profile, kind, limits, config)
        yield from _dtype(profile, kind, limits, config)
        yield from _attention(profile, kind, limits)
        yield from _packed(profile, kind, limits, config)


def kinds(profile: Profile) -> dict[str, Capabilities]:
    """The limits of each kind of machine that may hold a rank, by its name in ``hardware``."""
    serving = [node.hardware for node in profile.compute_nodes if node.accelerators]
    return {kind: profile.hardware[kind].capabilities for kind in serving if kind}


def rank_misfit(profile: Profile, config: Mapping[str, Any], size: int) -> str:
    """Why kernels for packed weights do not take what a rank of ``size`` holds; empty where they
    do."""
    sizes = {one.group for one in quantization.packed(quantization.settings(config))}
    if not sizes:
        return ""
    groups = sorted(each for each in sizes if each and each > 0)
    for kind, limits in kinds(profile).items():
        if limit := limits.packed_sizes:
            for layer, length in shape.inputs(config, size).items():
                for step in (limit.multiple, *groups):
                    if length % step:
                        what = f"gives each rank {length} values of the {layer}"
                        return f"{what}, no multiple of {step}; {kind}: {limit.reason}"
    return ""


def _experts(profile: Profile, kind: str, limits: Capabilities, config: Mapping[str, Any]) -> Found:
    if limits.no_fp64 and shape.has_experts(config):
        what = f"{profile.serving.model}: a model with experts"
        yield ("serving", "model"), _refused(what, kind, limits.no_fp64)


def _dtype(profile: Profile, kind: str, limits: Capabilities, config: Mapping[str, Any]) -> Found:
    limit = limits.dtypes
    key, value = flags.given(profile.serving.args, "dtype") or ("dtype", "auto")
    if limit is None or (value == "auto" and not config):
        return
    if value == "auto":
        dtype = describe(config).dtype
        what = f"is not set; {dtype}, the format of {profile.serving.model},"
    else:
        dtype = DTYPES.get(str(value), str(value))
        what = f"'{value}'"
    if dtype not in limit.only:
        yield ("serving", "args", key), _refused(what, kind, limit)


def _attention(profile: Profile, kind: str, limits: Capabilities) -> Found:
    limit, (key, backend) = limits.attention_backends, _backend(profile.serving.args)
    if limit is None or (backend or "").upper() in limit.only:
        return
    what = f"'{backend}'" if backend else "is not set; vLLM's own choice"
    yield ("serving", "args", key), _refused(what, kind, limit)


def _backend(args: Mapping[str, object]) -> tuple[str, str | None]:
    """The key that names the attention backend, and its value; None where vLLM chooses."""
    for flag in (BACKEND, f"{BACKEND_CONFIG}.backend"):
        if found := flags.given(args, flag):
            return found[0], str(found[1])
    for flag in (BACKEND_CONFIG, "ac"):
        if found := flags.given(args, flag):
            try:
                return found[0], json.loads(str(found[1])).get("backend")
            except (ValueError, AttributeError, RecursionError):
                return found[0], str(found[1])
    return BACKEND, None


def _packed(profile: Profile, kind: str, limits: Capabilities, config: Mapping[str, Any]) -> Found:
    quantized = quantization.settings(config)
    method = quantized.get("quant_method")
    for one in quantization.packed(quantized):
        where = f" (in the layers {one.layers!r})" if one.layers else ""
        model = f"{profile.serving.model}: {method}"
        bits, sizes = limits.weight_bits, limits.packed_sizes
        if bits and one.bits is not None and one.bits not in bits.only:
            what = f"{model} with {one.bits} bits{where}"
            yield ("serving", "model"), _refused(what, kind, bits)
        if sizes and one.group is not None and one.group != -1 and one.group % sizes.multiple:
            what = f"{model} with groups of {one.group}{where}"
            yield ("serving", "model"), _refused(what, kind, sizes)


def _refused(what: str, kind: str, limit: Limit) -> str:
    return f"{what} is not possible on {kind}: {limit.reason}; use {limit.instead}"
