"""A model as `orchestrate model inspect` tells it: by its tensors where they are known, else by
vLLM's own classes, by its index, by its config.json; and whether these agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.models import quantization
from orchestrator.models.reading import served, tensors
from orchestrator.models.reading.classes import EngineSays
from orchestrator.models.reading.description import ModelDescription, describe, held
from orchestrator.models.reading.sources import ModelFiles

#: What two sources may differ by before it is said.
AGREES = 0.02
#: The figures that more than one source may have.
FIGURES = ("parameters", "weight_bytes", "weight_bytes_on_disk", "kv_bytes_per_token",
           "state_bytes_per_request")  # fmt: skip


#: The sources of figures beside vLLM's classes.
HEADERS, INDEX, CONFIG = "headers of its safetensors files", "its index", "config.json"


@dataclass(frozen=True)
class Inspection:
    """``found``: the tensors of its safetensors files; ``engine``: what vLLM's classes say; where
    there are any."""

    source: ModelFiles
    read: ModelDescription
    found: tensors.Tensors | None
    engine: EngineSays | None
    refused: tuple[str, ...]
    unread: tuple[str, ...]

    def sources(self, figure: str) -> dict[str, float]:
        """A figure by each source that has it, those who know best first."""
        read, found, engine = self.read, self.found, self.engine
        by: dict[str, float | None] = {}
        if found:
            by[HEADERS] = {
                "parameters": found.parameters, "weight_bytes": found.memory_bytes,
                "weight_bytes_on_disk": found.disk_bytes,
            }.get(figure)  # fmt: skip
        elif figure == "weight_bytes_on_disk":
            by[INDEX] = self.source.total
        if engine:
            known = engine.growing is not None
            tokens = read.stated_context
            by[engine.name] = {
                "parameters": engine.parameters, "weight_bytes": engine.weight_bytes,
                "kv_bytes_per_token":
                    held(engine.growing or 0.0, engine.windows, tokens) / tokens if known else None,
                "state_bytes_per_request": engine.state if known else None,
            }.get(figure)  # fmt: skip
        if read.layers and not (found and figure == "weight_bytes_on_disk"):
            by[CONFIG] = {
                "parameters": read.parameters, "weight_bytes": read.weight_bytes,
                "weight_bytes_on_disk": _on_disk(self.source.config, read),
                "kv_bytes_per_token": read.kv_bytes_per_token,
                "state_bytes_per_request": read.state_bytes,
            }[figure]  # fmt: skip
        return {who: value for who, value in by.items() if value is not None}

    def origin(self, figure: str) -> str | None:
        """Who says the figure that counts."""
        return next(iter(self.sources(figure)), None)

    def figure(self, name: str) -> int | None:
        value = next(iter(self.sources(name).values()), None)
        return None if value is None else round(value)

    def differences(self) -> Iterator[tuple[str, dict[str, int]]]:
        """Figures of which a source says another one than the source that counts."""
        for name in FIGURES:
            by = {who: round(value) for who, value in self.sources(name).items()}
            counts = next(iter(by.values()), 0)
            if any(abs(each - counts) > AGREES * counts for each in by.values()):
                yield name, by

    @property
    def active_parameters(self) -> int | None:
        """Without the experts that a token does not choose."""
        counted = self.found
        every, experts = (counted.parameters, counted.experts) if counted else (None, 0)
        if every is None and self.engine:
            every, experts = self.engine.parameters, self.engine.experts
        if every is None:
            return self.read.active_parameters if self.read.layers else None
        if experts and not self.read.layers:
            return None
        layer = next((each for each in self.read.layers if each.experts), None)
        idle = 1 - layer.chosen / layer.experts if layer else 0.0
        return round(every - idle * experts)

    def document(self) -> dict[str, Any]:
        """All of it for a program."""
        read = self.read
        engine = self.engine
        if engine and engine.growing is not None:
            growing, windows = engine.growing, engine.windows
        else:
            growing, windows = read.cached()
        quantized = read.quantization
        return {
            "model": self.source.name,
            "revision": self.source.revision or None,
            "source": self.origin("parameters"),
            "origins": {name: self.origin(name) for name in FIGURES},
            "differences": [{"figure": name, "sources": by} for name, by in self.differences()],
            "architectures": served.architectures(self.source.config),
            "model_type": read.facts.type or None,
            "engine": f"vLLM {served.engine()['vllm']}",
            "parameters": self.figure("parameters"),
            "active_parameters": self.active_parameters,
            "parameters_beside_decoder": dict(read.others),
            "weight_bytes": self.figure("weight_bytes"),
            "weight_bytes_on_disk": self.figure("weight_bytes_on_disk"),
            "kv_bytes_per_token": self.figure("kv_bytes_per_token"),
            "kv_cache": {
                "bytes_per_number": read.cache_bytes,
                "growing_bytes_per_token": round(growing),
                "windows": {str(size): round(each) for size, each in windows.items()},
                "state_bytes_per_request": self.figure("state_bytes_per_request") or 0,
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
            "engine_classes": engine.document() if engine else None,
            "unread": [*self.unread, *map(_told, self.differences())],
            "refused": list(self.refused),
        }


def inspect(
    source: ModelFiles,
    trusted: bool = False,
    formats: tuple[str, str] = ("auto", "auto"),
    engine: EngineSays | None = None,
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
    if engine:
        refused += filter(None, [engine.refused])
        unread += filter(None, [engine.unread])
    if not read.layers:
        unread.insert(0, "config.json does not say the layers' number and width")
    if found and found.further:
        unread.append(
            f"{found.further:,} weights are in layers for multi-token prediction, which are on disk"
            " and not in these figures"
        )
    return Inspection(source, read, found, engine, tuple(refused), tuple(unread))


def _beside(config: Mapping[str, Any], trusted: bool) -> Iterator[str]:
    """Code that is not needed, and is not brought."""
    code = served.remote_code(config)
    known = str(config.get("model_type") or "") in served.engine()["configs"]
    if code and trusted:
        yield f"its own code runs on the nodes: {', '.join(code)}"
    elif code and known:
        yield "it has code of its own, which vLLM does not need and which is not brought"


def _told(difference: tuple[str, dict[str, int]]) -> str:
    name, by = difference
    said = ", ".join(f"{value:,} by {who}" for who, value in by.items())
    return f"{name.replace('_', ' ')} differ: {said}; the first counts here"


def _on_disk(config: Mapping[str, Any], read: ModelDescription) -> int:
    """Bytes of the files by config.json: a model in 32 bits is twice as large there."""
    if not read.layers:
        return 0
    levels = (config, read.facts.part)
    named = {str(each.get(key)) for each in levels for key in ("dtype", "torch_dtype")}
    double = "float32" in named and not quantization.settings(config)
    return read.weight_bytes * (2 if double else 1)
