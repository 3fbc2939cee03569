"""In how many bits weights and cache are kept, by what a config.json says of its quantization."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

#: vLLM's names of number formats -> (torch's name, bytes of a number).
DTYPES = {
    "half": ("float16", 2),
    "float16": ("float16", 2),
    "bfloat16": ("bfloat16", 2),
    "float": ("float32", 4),
    "float32": ("float32", 4),
}
#: Words for formats of a number -> bits of a weight with its share of scales. OCP's microscaling
#: formats have a scale of 8 bits for 32 weights, NVFP4 one for 16.
WORDS = {
    "nvfp4": 4.5, "mxfp4": 4.25, "mxfp6": 6.25, "mxfp8": 8.25, "w4a16_awq": 4.15625,
    "int4_awq": 4.15625, "w4a8_awq": 4.15625, "w4a8_nvfp4_fp8": 4.5, "fp8": 8.0, "int8": 8.0,
    "fp8_pb_wo": 8.0, "fp8_per_channel_per_token": 8.0, "int8_sq": 8.0, "fp4": 4.5, "int4": 4.0,
    "uint4": 4.0, "int3": 3.0, "int2": 2.0, "fp8_e4m3": 8.0, "fp8_e5m2": 8.0, "float8": 8.0,
}  # fmt: skip
#: Methods whose weights have one width.
FIXED = {
    "fp8": 8.0, "fbgemm_fp8": 8.0, "deepseek_v4_fp8": 8.0, "experts_int8": 8.0, "mxfp8": 8.25,
    "mxfp4": 4.25, "gpt_oss_mxfp4": 4.25, "modelopt_mxfp8": 8.25, "modelopt_fp4": 4.5,
}  # fmt: skip
#: Methods that pack weights into integers, with a scale (16 bits) and a zero point for each group.
PACKED = ("gptq", "awq", "auto_gptq", "auto_awq", "gptq_marlin", "awq_marlin", "moe_wna16",
          "auto-round", "auto_round", "intel/auto-round", "inc", "humming")  # fmt: skip
#: Methods that quantize experts only.
EXPERTS_ONLY = ("mxfp4", "gpt_oss_mxfp4", "experts_int8")
#: Keys under which methods list what they leave in 16 bits.
KEPT_KEYS = ("modules_to_not_convert", "ignore", "ignored_layers", "exclude", "exclude_modules",
             "modules_to_not_quantize", "exclude_layers")  # fmt: skip
#: Modules that no method quantizes unless it says so.
NEVER = ("lm_head", "embed_tokens", "mlp.gate", "vision", "audio", "encoder", "sound", "conv")
#: Projections that a config.json names one by one and that count as one module here.
PARTS = {
    "mlp": ("gate_proj", "up_proj", "down_proj"),
    "mlp.experts": ("0.gate_proj", "0.up_proj", "0.down_proj"),
    "mlp.shared_experts": ("gate_proj", "up_proj", "down_proj"),
    "linear_attn": ("in_proj_qkv", "in_proj_z", "out_proj"),
    "mamba": ("in_proj", "out_proj"),
    "vision": ("blocks.0.attn.qkv",),
}
#: Other names of the same modules.
ALSO = {
    "mlp.experts": ("block_sparse_moe.experts", "mlp.experts", "feed_forward.experts"),
    "mamba": ("mixer", "mamba"),
    "mlp.shared_experts": ("mlp.shared_expert", "mlp.shared_experts", "shared_mlp"),
    "vision": ("visual", "vision_tower", "model.vision_tower", "vision_model", "model.visual"),
}


#: The class whose layers methods quantize; as a target it is all that no other target names.
CLASS = "Linear"
#: What stands before a decoder's layers, by the class that holds it.
BEFORE = re.compile(r"^(?:(?:model|language_model|text_model|thinker|llm|transformer)\.)*layers\.")


@dataclass(frozen=True)
class Formats:
    """Modules with formats of their own: bits by a module's name, or by patterns of which the
    first counts; ``rest``: of all others. None stands for modules that are not quantized."""

    named: Mapping[str, float | None] = field(default_factory=dict)
    patterns: tuple[tuple[str, float | None], ...] = ()
    rest: float | None = None

    def __bool__(self) -> bool:
        return bool(self.named or self.patterns)

    def of(self, names: Iterable[str]) -> float | None:
        """Bits of a module that has these names."""
        names = tuple(names)
        for name in names:
            if name in self.named:
                return self.named[name]
        return next((bits for pattern, bits in self.patterns
                     if any(_matches(pattern, name) for name in names)), self.rest)  # fmt: skip

    @property
    def all(self) -> tuple[float, ...]:
        """All bits, the usual ones first."""
        found = [*self.named.values(), *(bits for _, bits in self.patterns)]
        counted = Counter(bits for bits in found if bits)
        usual = [self.rest] if self.rest else []
        return tuple(dict.fromkeys([*usual, *(bits for bits, _ in counted.most_common())]))


@dataclass(frozen=True)
class Quantization:
    """``bits``: of a quantized weight with its share of scales; None where nobody can tell.

    ``kept``: patterns of modules that stay in 16 bits. ``cache_bits``: of a number in the cache;
    None for the model's own format. ``formats``: where modules differ; ``bits`` are the usual ones.
    """

    method: str
    bits: float | None
    group: int | None = None
    kept: tuple[str, ...] = ()
    cache_bits: float | None = None
    only_experts: bool = False
    formats: Formats = field(default_factory=Formats)

    def of(self, module: str, layer: int, plain: float) -> float:
        """Bits of a module's weights, of its parts on average; ``plain``: of one in 16 bits."""
        if not self.method or self.keeps(module, layer):
            return plain
        if not self.formats:
            return self.bits or plain
        parts = [self.formats.of(names) or plain for names in _parts(module, layer)]
        return sum(parts) / len(parts)

    def differs(self, module: str, layer: int) -> bool:
        """Whether a module's parts have formats of their own."""
        return len({self.formats.of(names) for names in _parts(module, layer)}) > 1

    def stored(self, tensor: str) -> float:
        """Bits of the weights that a file has under a tensor's name."""
        own = self.formats.of([_plain(tensor.rpartition(".")[0])]) if self.formats else None
        return own or self.bits or 16.0

    def keeps(self, module: str, layer: int = 0) -> bool:
        """Whether a module of a layer stays in 16 bits."""
        if self.only_experts and module != "mlp.experts":
            return True
        if module.startswith(NEVER) and not module.startswith("mlp.gate_"):
            return True
        return bool(self.kept) and any(
            _matches(pattern, name) for pattern in self.kept for name in _names(module, layer)
        )


def quantization(settings: Mapping[str, Any], plain: float, unread: list[str]) -> Quantization:
    """What settings say; ``plain``: bits of a weight that is not quantized."""
    if not settings:
        return Quantization("", plain)
    inner = settings.get("quantization")
    settings = {**settings, **inner} if isinstance(inner, Mapping) else settings
    method = str(settings.get("quant_method") or "").lower()
    if not method and ("quant_algo" in settings or "producer" in settings):
        method = "modelopt"
    bits, group = _bits(method, settings)
    own = _formats(settings, bits, unread)
    if own.all and own.all[0] != bits:
        bits, group = own.all[0], None
    kept = tuple(_plain(str(each)) for key in KEPT_KEYS for each in settings.get(key) or ())
    if bits is None:
        unread.append(f"quantization {method or 'unnamed'}: weights assumed not quantized")
        bits = plain
    if not kept and isinstance(settings.get("dynamic"), Mapping):
        kept = tuple(f"re:{rule[2:]}" for rule in settings["dynamic"] if rule.startswith("-:"))
    return Quantization(method, bits, group, kept, _cache(settings), method in EXPERTS_ONLY, own)


def _bits(method: str, settings: Mapping[str, Any]) -> tuple[float | None, int | None]:
    if method in PACKED:
        return _packed(settings)
    algorithm = str(settings.get("quant_algo") or "").lower()
    for rule in (*_mappings(settings.get("config_groups")), settings.get("global_quant_config")):
        if isinstance(rule, Mapping) and (found := _of_rule(rule, settings, algorithm)):
            return found
    for word in (settings.get("quant_algo"), settings.get("quant_type"),
                 settings.get("forward_dtype")):  # fmt: skip
        if isinstance(word, str) and (bits := _word(word)):
            return bits, _group(settings, None)
    if method == "bitsandbytes":  # 4 bits: a scale of 32 bits per block of 64 (QLoRA, section 3)
        return (4.5 if settings.get("load_in_4bit") else 8.0), None
    if method in FIXED:
        return FIXED[method], _group(settings, None)
    return None, None


def _formats(settings: Mapping[str, Any], bits: float | None, unread: list[str]) -> Formats:
    """Formats of single modules, as each method writes them down."""
    named: dict[str, float | None] = {}
    patterns: list[tuple[str, float | None]] = []

    def add(target: str, value: float | None) -> None:
        if target.startswith("re:") or "*" in target:
            patterns.append((target, value))
        else:
            named[_plain(target)] = value

    if isinstance(settings.get("config_groups"), Mapping):
        return _by_targets(settings, unread)
    if isinstance(layers := settings.get("quantized_layers"), Mapping):  # ModelOpt's
        for name, rule in layers.items():
            word = str(rule.get("quant_algo") if isinstance(rule, Mapping) else rule)
            add(str(name), _word(word))
            if _word(word) is None and word.lower() != "none":
                unread.append(f"quantization {word}: weights assumed not quantized")
        return Formats(named, tuple(patterns), None)
    if isinstance(layers := settings.get("layer_quant_config"), Mapping):  # Quark's
        for name, rule in layers.items():
            found = _of_rule(rule, settings, "") if isinstance(rule, Mapping) else None
            add(str(name), found[0] if found else None)
    if isinstance(layers := settings.get("dynamic"), Mapping):  # GPTQModel's
        for name, rule in layers.items():
            if isinstance(rule, Mapping) and not name.startswith("-:"):
                add(f"re:{name.removeprefix('+:')}", _packed({**settings, **rule})[0])
    if isinstance(layers := settings.get("extra_config"), Mapping):  # AutoRound's
        for name, rule in layers.items():
            if isinstance(rule, Mapping):
                wide = (_number(rule, "bits") or 0) >= 16
                target = f"re:.*(?:{name})" if re.search(r"[*+?^$()\[\]{}|\\]", name) else name
                add(target, None if wide else _packed({**settings, **rule})[0])
    return Formats(named, tuple(patterns), bits)


def _by_targets(settings: Mapping[str, Any], unread: list[str]) -> Formats:
    """compressed-tensors' and ModelOpt's groups: each says what it is for, all else stays in 16
    bits. A group that does not say it is for everything."""
    named: dict[str, float | None] = {}
    patterns: list[tuple[str, float | None]] = []
    rest: float | None = None
    algorithm = str(settings.get("quant_algo") or "").lower()
    for rule in _mappings(settings.get("config_groups")):
        found = _of_rule(rule, settings, algorithm)
        for target in map(str, rule.get("targets") or (CLASS,)):
            if target == CLASS:
                rest = rest or (found[0] if found else None)
            elif target.startswith("re:"):
                patterns.append((target, found[0] if found else None))
            elif "." in target:
                named.setdefault(_plain(target), found[0] if found else None)
            else:
                unread.append(f"quantization: layers of the class {target} are read as the others")
    return Formats(named, tuple(patterns), rest)


def _of_rule(
    rule: Mapping[str, Any], settings: Mapping[str, Any], algorithm: str
) -> tuple[float, int | None] | None:
    """(bits, group) of weights in a group of compressed-tensors, ModelOpt or Quark."""
    weights = rule.get("weights") or rule.get("weight")
    if isinstance(weights, list) and weights:
        weights = weights[0]
    if not isinstance(weights, Mapping):
        return None
    group = _group(weights, None)
    form = str(rule.get("format") or settings.get("format") or "")
    if "nvfp4" in (algorithm, form.split("-", maxsplit=1)[0]):
        return WORDS["nvfp4"], group or 16
    if bits := _number(weights, "num_bits"):
        small = str(weights.get("scale_dtype") or "")
        micro = bits == 4 and weights.get("type") == "float"
        scale = 8 if micro or "8" in small else 16
        return bits + (scale / group if group and group > 0 else 0.0), group
    if known := _word(str(weights.get("dtype") or "")):
        scale = 8 if str(weights.get("scale_format")) == "e8m0" else 16
        base = 4.0 if "fp4" in str(weights.get("dtype")).lower() else known
        return base + (scale / group if group and group > 0 else 0.0), group
    return None


def _packed(settings: Mapping[str, Any]) -> tuple[float, int | None]:
    packed = _number(settings, "bits", "w_bit", "weight_bits") or 4
    group = _group(settings, 128)
    return _with_scales(packed, group), group


def _mappings(found: object) -> Iterator[Mapping[str, Any]]:
    for value in found.values() if isinstance(found, Mapping) else ():
        if isinstance(value, Mapping):
            yield value


def _word(word: str) -> float | None:
    word = word.lower().replace("-", "_")
    if word in WORDS:
        return WORDS[word]
    best = max((each for each in WORDS if each in word), key=len, default=None)
    return WORDS[best] if best else None


def _with_scales(bits: int, group: int | None) -> float:
    """Without groups there is one scale per column, which is negligible."""
    return bits + ((16 + bits) / group if group and group > 0 else 0.0)


def _cache(settings: Mapping[str, Any]) -> float | None:
    """The cache's own format: compressed-tensors' and ModelOpt's, Quark's."""
    scheme = settings.get("kv_cache_scheme")
    if isinstance(scheme, Mapping) and (bits := _number(scheme, "num_bits")):
        return float(bits) if bits >= 8 else bits + 0.5
    word = settings.get("kv_cache_quant_algo") or (scheme if isinstance(scheme, str) else None)
    if isinstance(word, str) and word.lower() not in ("none", "auto", ""):
        return _word(word)
    own = settings.get("kv_cache_quant_config") or {}
    rules = [each for each in own.values() if isinstance(each, Mapping)]
    named = ("k_proj", "v_proj", "kv_proj")
    layers = settings.get("layer_quant_config") or {}
    rules += [each for key, each in layers.items() if str(key).endswith(named)]
    for rule in rules:
        outputs = rule.get("output_tensors") or rule.get("output")
        if isinstance(outputs, Mapping) and outputs.get("dtype"):
            return _word(str(outputs["dtype"]))
    return None


def cache_bytes(word: str) -> float | None:
    """Bytes of a number in the cache by --kv-cache-dtype; None where it is the model's own."""
    if word in ("auto", ""):
        return None
    if word in DTYPES:
        return float(DTYPES[word][1])
    bits = _word(word)
    return bits / 8 if bits else None


def _number(settings: Mapping[str, Any], *keys: str) -> int | None:
    found = (settings.get(key) for key in keys)
    return next((each for each in found if isinstance(each, int) and each > 0), None)


def _group(settings: Mapping[str, Any], default: int | None) -> int | None:
    for key in ("group_size", "q_group_size"):
        if isinstance(settings.get(key), int):
            return int(settings[key])
    return default


def _names(module: str, layer: int) -> Iterator[str]:
    for full in _full(module, layer):
        yield full
        for part in PARTS.get(module, ()):
            yield f"{full}.{part}"


def _parts(module: str, layer: int) -> Iterator[tuple[str, ...]]:
    """The names of each of a module's parts; of one without parts, its own."""
    for part in PARTS.get(module, ("",)):
        yield tuple(f"{full}.{part}".rstrip(".") for full in _full(module, layer))


def _full(module: str, layer: int) -> Iterator[str]:
    for name in ALSO.get(module, (module,)):
        yield name if module in ("lm_head", "vision") else f"model.layers.{layer}.{name}"


def _plain(name: str) -> str:
    """A module's name as a plain decoder has it, whatever holds the decoder."""
    return name if name.startswith("re:") else BEFORE.sub("model.layers.", name)


def _matches(pattern: str, name: str) -> bool:
    if pattern.startswith("re:"):
        try:
            return re.match(pattern[3:], name) is not None or (
                re.match(pattern[3:], f"model.{name}") is not None
            )
        except re.error:
            return False
    if "*" in pattern:
        return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")
    return f".{pattern}." in f".{name}."
