"""What a model is, by its config.json alone: sizes, cache, context, quantization."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.models import quantization as refusing
from orchestrator.models.reading import formats
from orchestrator.models.reading.facts import Facts, facts, family_of
from orchestrator.models.reading.layers import DecoderLayer, counts, layers
from orchestrator.models.reading.towers import TOWERS, towers

#: Tokens that are computed but not settled: two of vLLM's batches of 2048, its default for a
#: server (it schedules one while the other runs). They are kept beside a window.
IN_FLIGHT = 4096


@dataclass(frozen=True)
class ModelDescription:
    """A model. ``tied``: whether the head is the embedding. ``others``: weights by part that are in
    no layer, as a tower that sees. ``unread``: what was not understood, a sentence each."""

    facts: Facts
    layers: tuple[DecoderLayer, ...]
    vocabulary: int
    tied: bool
    dtype: str
    dtype_bytes: int
    quantization: formats.Quantization
    cache_bytes: float
    others: Mapping[str, int] = field(default_factory=dict)
    unread: tuple[str, ...] = ()

    @property
    def hidden(self) -> int:
        return self.facts.whole("hidden_size") or 0

    @property
    def head(self) -> int:
        """Weights of the output head; the embedding has as many."""
        return self.vocabulary * self.hidden

    @property
    def ends(self) -> int:
        return self.head * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        return counts(self.layers)[0] + self.ends + sum(self.others.values())

    @property
    def active_parameters(self) -> int:
        return round(counts(self.layers)[1]) + self.ends + sum(self.others.values())

    @property
    def context(self) -> int | None:
        return self.facts.whole("max_position_embeddings")

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights in the format that they are kept in."""
        others = self.ends + sum(self.others.values())
        return round(self.layer_bytes() + self.dtype_bytes * others)

    def layer_bytes(self, touched: float | None = None) -> float:
        """Bytes of the layers' weights, of their experts only ``touched`` in each layer."""
        plain = 8.0 * self.dtype_bytes
        total = 0.0
        for index, layer in enumerate(self.layers):
            for name, size in layer.modules.items():
                part = 1.0
                if touched is not None and name == "mlp.experts" and layer.experts:
                    part = min(touched / layer.experts, 1.0)
                total += size * part * self.quantization.of(name, index, plain) / 8
        return total

    def cached(self, tensor: int = 1) -> tuple[float, dict[int, float]]:
        """(bytes that each further token takes, bytes a token by the window that bounds them), of
        all layers on one of ``tensor`` ranks."""
        growing, windows = 0.0, dict[int, float]()
        for layer in self.layers:
            if (kept := layer.cache) is None:
                continue
            heads = kept.heads if kept.shared else max(kept.heads / tensor, 1.0)
            size = heads * kept.width * self.cache_bytes + kept.beside
            if kept.window:
                windows[kept.window] = windows.get(kept.window, 0.0) + size
            else:
                growing += size
        return growing, windows

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes of cache for each token, of all ranks together."""
        return self.kv_bytes()

    def kv_bytes(self, tensor: int = 1) -> float:
        """Bytes of cache for each token, in one of ``tensor`` ranks' cache: of a request as long as
        the context that config.json states, as vLLM reserves them. Without a stated context every
        layer keeps every token."""
        return self.held(self.stated_context, tensor) / self.stated_context

    @property
    def stated_context(self) -> int:
        stated = self.facts.stated("max_position_embeddings")
        return stated if isinstance(stated, int) and stated > 0 else 1

    def held(self, tokens: float, tensor: int = 1, beside: int = IN_FLIGHT) -> float:
        """Bytes of cache of a request of so many tokens in one of ``tensor`` ranks' cache.
        ``beside``: tokens in flight that layers with a window keep beside the tokens before."""
        return held(*self.cached(tensor), tokens, beside)

    @property
    def state_bytes(self) -> int:
        """Bytes that a request takes however long it is: of Mamba and linear attention.

        As vLLM's accelerators keep them. Its processor backend has recurrences in 32 bits where
        the processor has AVX-512's BF16 (vllm/platforms/cpu.py of 0.30).
        """
        named = str(self.facts.stated("mamba_ssm_dtype")).removeprefix("torch.")
        recurrent = formats.DTYPES.get(named, ("", self.dtype_bytes))[1]
        states = [layer.state for layer in self.layers]
        return round(
            sum(each.window for each in states) * self.dtype_bytes
            + sum(each.recurrent for each in states) * recurrent
        )


def held(
    growing: float, windows: Mapping[int, float], tokens: float, beside: int = IN_FLIGHT
) -> float:
    """Bytes of cache of so many tokens, by what each takes, for ever or in a window."""
    seen = {window: min(window - 1 + beside, tokens) for window in windows}
    return growing * tokens + sum(size * seen[window] for window, size in windows.items())


def describe(
    config: Mapping[str, Any], dtype: str = "auto", cache: str = "auto"
) -> ModelDescription:
    """Read a config.json. ``dtype`` and ``cache``: vLLM's flags --dtype and --kv-cache-dtype."""
    unread: list[str] = []
    f = facts(config)
    found = layers(f, unread)
    name, size = _dtype(config, f, dtype, unread)
    quantized = formats.quantization(refusing.settings(config), 8.0 * size, unread)
    wanted = formats.cache_bytes(cache)
    if wanted is None:
        wanted = quantized.cache_bits / 8 if quantized.cache_bits else float(size)
    vocabulary = f.whole("vocab_size") or 0
    if found and not vocabulary:
        unread.append("vocab_size: logits are not counted")
    hidden = f.whole("hidden_size") or 0
    outer = family_of(str(config.get("model_type")))
    others = {**_extra(f, hidden), **towers(config, outer, hidden)} if found else {}
    unread += _doubts(config, f, others)
    unread += [
        f"quantization: the parts of {name} have formats of their own, and their mean is read"
        for name in ("linear_attn", "mamba")
        if any(name in each.modules and quantized.differs(name, i) for i, each in enumerate(found))
    ]
    return ModelDescription(
        f, tuple(found), vocabulary, _tied(config, f), name, size, quantized, wanted, others,
        tuple(dict.fromkeys(unread)),
    )  # fmt: skip


def _tied(config: Mapping[str, Any], f: Facts) -> bool:
    for level in (f.part, config):
        if isinstance(level.get("tie_word_embeddings"), bool):
            return bool(level["tie_word_embeddings"])
    return bool(f.family.get("tied", False))


def _dtype(
    config: Mapping[str, Any], f: Facts, wanted: str, unread: list[str]
) -> tuple[str, int]:  # fmt: skip
    """The numbers' format as vLLM takes it: of float32 it makes the platform's 16 bits."""
    found = wanted
    if wanted == "auto":
        levels = (f.part, config)
        named = (level.get("dtype") or level.get("torch_dtype") for level in levels)
        found = str(next(filter(None, named), "float32")).removeprefix("torch.")
        if found == "float32":
            return "bfloat16", 2
    if found not in formats.DTYPES:
        unread.append(f"dtype {found}: assumed 2 bytes")
        return "bfloat16", 2
    return formats.DTYPES[found]


def _extra(f: Facts, hidden: int) -> dict[str, int]:
    """Weights of a decoder that are in no layer and are neither embedding nor head."""
    count = f.whole("num_hidden_layers") or 0
    found = {}
    if narrow := f.whole("hidden_size_per_layer_input"):
        rows = f.whole("vocab_size_per_layer_input") or 0
        found["per_layer_embeddings"] = count * narrow * (rows + 3 * hidden)
    if inputs := f.whole("altup_num_inputs"):
        rank = f.whole("laurel_rank") or 0
        found["altup"] = 2 * (inputs - 1) * hidden * hidden + count * 2 * rank * hidden
    if f.family.get("learned_positions"):
        found["positions"] = hidden * (f.whole("max_position_embeddings") or 0)
    return found


def _doubts(config: Mapping[str, Any], f: Facts, others: Mapping[str, int]) -> list[str]:
    """Why the counts may be wrong, by what was compared with transformers' own models."""
    found = []
    if not f.type:
        found.append("model_type is missing: read as a plain decoder")
    elif not f.family:
        found.append(f"model_type {f.type}: not among transformers' models, so read by its keys")
    elif (off := f.family.get("off")) is not None:
        how = "could not be compared with transformers' own model" if off is True else (
            f"this reading differs from transformers' own model by up to {off} %")  # fmt: skip
        found.append(f"model_type {f.type}: {how}")
    left_out = [key for key in f.family.get("derived", ()) if f.stated(key) is None]
    if left_out:
        found.append(f"config.json leaves out {', '.join(left_out)}: they are estimated")
    for path in TOWERS:
        name = path.removesuffix("_config").split(".")[-1].removesuffix("_config")
        part = config.get(path) if "." not in path else None
        if isinstance(part, Mapping) and name not in others:
            found.append(f"{path}: its weights are not counted")
    outer = family_of(str(config.get("model_type")))
    if (off := outer.get("off")) is not None and outer is not f.family and others:
        found.append(f"the parts beside the decoder are estimated ({config.get('model_type')})")
    return found
