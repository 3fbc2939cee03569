"""What weights there are, by the headers of safetensors files: no weight is read.

A header names each tensor with its format and shape. What is stored is not what is counted: four
bits come packed in integers, with scales beside them.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from orchestrator.core.errors import BadInput

#: Bytes of a number by safetensors' names.
SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2,
         "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
         "F4": 0.5, "F6_E2M3": 0.75, "F6_E3M2": 0.75}  # fmt: skip
#: Names of tensors that are no weights: scales, zero points, orders, what is computed at the start.
BESIDE = re.compile(
    r"(scales?|scale_inv|scale_2|zeros|zero_point|g_idx|absmax|quant_map|weight_shape|inv_freq"
    r"|position_ids|masked_bias|input_amax|\.attn\.bias|scale_factor|_offset|quant_state\S*)$"
)
#: The most bytes of a header; safetensors itself allows no more.
LARGEST = 100 << 20
LAYER = re.compile(r"\blayers\.(\d+)\.")


@dataclass(frozen=True)
class Tensors:
    """``parameters`` of the model, ``experts`` of them in experts, ``further`` in layers that
    vLLM does not load for serving (of multi-token prediction). Bytes of all in the files, and in
    memory once numbers of 32 bits are made those of 16."""

    parameters: int
    experts: int
    further: int
    disk_bytes: int
    memory_bytes: int


def header(file: Path) -> dict[str, Any]:
    """A file's header. Raises BadInput where it has none."""
    with file.open("rb") as stream:
        start = stream.read(8)
        size = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        text = stream.read(size) if 0 < size <= LARGEST else b""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise BadInput(f"{file}: is no safetensors file: its header cannot be read")
    return found


def entries(found: Mapping[str, Any]) -> Iterable[tuple[str, str, list[int]]]:
    """(name, format, shape) of a header's tensors."""
    for name, entry in found.items():
        if name != "__metadata__" and isinstance(entry, Mapping):
            yield name, str(entry.get("dtype")), list(entry.get("shape") or ())


def summed(
    found: Iterable[tuple[str, str, list[int]]],
    bits: Callable[[str], float],
    layers: int,
    dtype_bytes: int,
) -> Tensors:
    """``bits``: of a tensor's weights if quantized; ``layers``: as many as config.json has."""
    parameters = experts = further = 0
    disk = memory = 0.0
    for name, dtype, shape in found:
        stored = prod(shape)
        size = stored * SIZES.get(dtype, 2)
        disk += size
        if beyond := _beyond(name, layers):
            further += _weights(name, dtype, stored, bits(name))
            continue
        weight = _weights(name, dtype, stored, bits(name))
        parameters += weight
        experts += weight if "experts." in name and "shared_expert" not in name else 0
        plain = dtype == "F32" and weight and not beyond
        memory += stored * dtype_bytes if plain else size
    return Tensors(parameters, experts, further, round(disk), round(memory))


def _beyond(name: str, layers: int) -> bool:
    """Whether a tensor is of a layer that config.json does not count, or of "mtp"."""
    match = LAYER.search(name)
    tower = re.search(r"vis|audio|encoder|sound", name)
    return name.startswith("mtp.") or bool(
        match and layers and not tower and int(match.group(1)) >= layers
    )


def _weights(name: str, dtype: str, stored: int, bits: float) -> int:
    if BESIDE.search(name):
        return 0
    if dtype in ("I32", "U32"):
        return round(stored * 32 / max(int(bits), 1))
    if dtype in ("U8", "I8") and bits < 8:
        return round(stored * 8 / max(int(bits), 1))
    return stored if dtype not in ("I64", "BOOL") else 0
