"""A model as `orchestrate model inspect` tells it: by its tensors where they are known, else by its
index, else by its config.json; and whether these agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.models import quantization
from orchestrator.models.reading import served, tensors
from orchestrator.models.reading.description import ModelDescription, describe
from orchestrator.models.reading.sources import ModelFiles

#: What two sources may differ by before it is said.
AGREES = 0.02


@dataclass(frozen=True)
class Inspection:
    """``found``: the tensors of its safetensors files, where there are any."""

    source: ModelFiles
    read: ModelDescription
    found: tensors.Tensors | None
    refused: tuple[str, ...]
    unread: tuple[str, ...]

    @property
    def by(self) -> str:
        """What the figures are of."""
        if self.found:
            return "headers of its safetensors files"
        return "config.json and its index" if self.source.total else "config.json"

    @property
    def parameters(self) -> int | None:
        if self.found:
            return self.found.parameters
        return self.read.parameters if self.read.layers else None

    @property
    def active_parameters(self) -> int | None:
        if self.found is None:
            return self.read.active_parameters if self.read.layers else None
        layer = next((each for each in self.read.layers if each.experts), None)
        idle = 1 - layer.chosen / layer.experts if layer else 0.0
        return round(self.found.parameters - idle * self.found.experts)

    @property
    def weight_bytes(self) -> int | None:
        """In memory: without layers that are not loaded, numbers of 32 bits as 16."""
        if self.found:
            return self.found.memory_bytes
        return self.read.weight_bytes if self.read.layers else None

    @property
    def disk_bytes(self) -> int | None:
        if self.found:
            return self.found.disk_bytes
        return self.source.total or (_on_disk(self.source.config, self.read) or None)

    def document(self) -> dict[str, Any]:
        """All of it for a program."""
        read = self.read
        growing, windows = read.cached()
        known = bool(read.layers)
        quantized = read.quantization
        return {
            "model": self.source.name,
            "revision": self.source.revision or None,
            "source": self.by,
            "architectures": served.architectures(self.source.config),
            "model_type": read.facts.type or None,
            "engine": f"vLLM {served.engine()['vllm']}",
            "parameters": self.parameters,
            "active_parameters": self.active_parameters,
            "parameters_beside_decoder": dict(read.others),
            "weight_bytes": self.weight_bytes,
            "weight_bytes_on_disk": self.disk_bytes,
            "kv_bytes_per_token": round(read.kv_bytes_per_token) if known else None,
            "kv_cache": {
                "bytes_per_number": read.cache_bytes,
                "growing_bytes_per_token": round(growing),
                "windows": {str(size): round(each) for size, each in windows.items()},
                "state_bytes_per_request": read.state_bytes,
            },
            "layers": len(read.layers),
            "context": read.context,
            "dtype": read.dtype,
            "quantization": {
                "method": quantized.method or None,
                "bits": quantized.bits,
                "formats": list(quantized.formats.all) or [quantized.bits],
                "group_size": quantized.group,
                "kept_in_16_bits": list(quantized.kept),
                "cache_bits": quantized.cache_bits,
            },
            "remote_code": served.remote_code(self.source.config),
            "unread": list(self.unread),
            "refused": list(self.refused),
        }


def inspect(
    source: ModelFiles, trusted: bool = False, formats: tuple[str, str] = ("auto", "auto")
) -> Inspection:
    """``trusted``: its own code may run; ``formats``: vLLM's --dtype and --kv-cache-dtype."""
    config = source.config
    read = describe(config, *formats)
    found = None
    if source.headers:
        bits = read.quantization.stored
        found = tensors.summed(source.headers, bits, len(read.layers), read.dtype_bytes)
    refused = list(served.refused(config, trusted))
    if source.names is not None and (why := served.no_weights(source.names)):
        refused.append(why)
    unread = [*read.unread, *served.unsure(config), *_beside(config, trusted)]
    if not read.layers:
        unread.insert(0, "config.json does not say the layers' number and width")
    if found and found.further:
        unread.append(
            f"{found.further:,} weights are in layers for multi-token prediction, which are on disk"
            " and not in these figures"
        )
    return Inspection(
        source, read, found, tuple(refused), (*unread, *_differences(source, read, found))
    )


def _beside(config: Mapping[str, Any], trusted: bool) -> Iterator[str]:
    """Code that is not needed, and is not brought."""
    code = served.remote_code(config)
    known = str(config.get("model_type") or "") in served.engine()["configs"]
    if code and trusted:
        yield f"its own code runs on the nodes: {', '.join(code)}"
    elif code and known:
        yield "it has code of its own, which vLLM does not need and which is not brought"


def _differences(
    source: ModelFiles, read: ModelDescription, found: tensors.Tensors | None
) -> Iterator[str]:  # fmt: skip
    if not read.layers:
        return
    if found:
        pair = ("parameters", found.parameters, read.parameters, "the files' headers")
    elif source.total:
        pair = ("bytes", source.total, _on_disk(source.config, read), "the index")
    else:
        return
    what, one, other, who = pair
    if abs(other - one) > AGREES * one:
        yield f"{who} and config.json differ: {one:,} and {other:,} {what}; the former count here"


def _on_disk(config: Mapping[str, Any], read: ModelDescription) -> int:
    """Bytes of the files by config.json: a model in 32 bits is twice as large there."""
    if not read.layers:
        return 0
    levels = (config, read.facts.part)
    named = {str(each.get(key)) for each in levels for key in ("dtype", "torch_dtype")}
    double = "float32" in named and not quantization.settings(config)
    return read.weight_bytes * (2 if double else 1)
