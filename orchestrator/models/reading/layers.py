"""A decoder layer by layer: the weights of each module, and what each layer keeps of each token.

Biases and norms are left out: together they are less than a thousandth of the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from orchestrator.models.reading import mixers
from orchestrator.models.reading.facts import Facts, number

#: Words of transformers and vLLM for what a layer does with other tokens -> ours.
KINDS = {
    "full_attention": "full", "attention": "full", "global_attention": "full", "global": "full",
    "full": "full", "sliding_attention": "sliding", "sliding": "sliding", "local": "sliding",
    "local_attention": "sliding", "swa": "sliding", "chunked_attention": "chunked",
    "linear_attention": "linear", "linear": "linear", "kda": "linear", "gdn": "linear",
    "mamba": "mamba", "mamba2": "mamba", "conv": "conv", "short_conv": "conv", "hybrid": "both",
    "mlp": "none", "moe": "none", "dense": "none",
}  # fmt: skip
#: Letters of Nemotron-H's pattern: one thing a layer, (mixing, MLP).
LETTERS = {"M": ("mamba", ""), "*": ("full", ""), "-": ("none", "dense"), "E": ("none", "sparse")}
#: Words of layer_types that are such layers of one thing.
SINGLE = {"mlp": "dense", "dense": "dense", "moe": "sparse"}


@dataclass(frozen=True)
class Cache:
    """What a layer keeps of each token: ``width`` numbers for each of ``heads`` heads.

    ``window``: of how many tokens at most; 0 for all. ``shared``: one copy on each rank (MLA).
    ``beside``: bytes of an index, in a format of its own.
    """

    heads: int
    width: int
    window: int = 0
    shared: bool = False
    beside: int = 0


@dataclass
class DecoderLayer:
    """``modules``: weights by the module's usual name; of ``mlp.experts`` those of all experts, of
    which each token passes ``chosen`` of ``experts``. ``state``: what does not grow."""

    modules: dict[str, int] = field(default_factory=dict)
    experts: int = 0
    chosen: int = 0
    cache: Cache | None = None
    state: mixers.MixerState = field(default_factory=mixers.MixerState)

    @property
    def weights(self) -> int:
        return sum(self.modules.values())

    @property
    def active(self) -> float:
        idle = self.modules.get("mlp.experts", 0)
        return self.weights - idle + (idle * self.chosen / self.experts if self.experts else 0)


def layers(f: Facts, unread: list[str]) -> list[DecoderLayer]:
    """All layers of a decoder; empty where config.json does not say how many or how wide."""
    count, hidden = depth(f), f.whole("hidden_size")
    if not count or not hidden or not (f.whole("num_attention_heads") or _only_mamba(f)):
        return []
    turns = _turns(f, count, unread)
    sparse = _sparse(f, count)
    blocks = f.get("block_configs")
    if blocks and not (
        isinstance(blocks, list)
        and len(blocks) >= count
        and all(isinstance(each, dict) for each in blocks)
    ):
        unread.append("block_configs: not one for each layer, so not read")
        blocks = None
    found = []
    for index, (kind, mlp) in enumerate(turns):
        layer = DecoderLayer()
        if blocks:
            _block(f, layer, hidden, blocks[index])
        else:
            _mix(f, layer, hidden, index, kind, count, unread)
            wanted = mlp if mlp is not None else "sparse" if sparse[index] else "dense"
            _mlp(f, layer, hidden, index, wanted, unread)
        found.append(layer)
    return found


def depth(f: Facts) -> int:
    """How many layers: as config.json says, else as many as it names."""
    named = f.get("hybrid_pattern") or f.get("layer_types")
    return f.whole("num_hidden_layers") or (len(named) if isinstance(named, list | str) else 0)


def _only_mamba(f: Facts) -> bool:
    return bool(f.whole("mamba_d_state")) and not f.whole("num_key_value_heads")


def _turns(f: Facts, count: int, unread: list[str]) -> list[tuple[str, str | None]]:
    """By layer, (mixing, MLP); an MLP of None is what the model's other keys say."""
    pattern = f.get("hybrid_pattern")
    if isinstance(pattern, str) and set(pattern) <= set(LETTERS):
        return [LETTERS[letter] for letter in pattern]
    named = f.get("layer_types")
    if isinstance(named, list) and len(named) >= count:
        return [_turn(f, str(word), unread) for word in named[:count]]
    kinds = _rule(f, count)
    if kinds is None:
        default = f.family.get("pattern")
        cut = f.whole("sliding_window_pattern") or f.whole("_sliding_window_pattern")
        if cut and (f.whole("sliding_window") or f.whole("attention_chunk_size")):
            default = ["sliding_attention"] * (cut - 1) + ["full_attention"]
        if default:
            return [_turn(f, default[i % len(default)], unread) for i in range(count)]
        kinds = ["mamba" if _only_mamba(f) else _slides(f)] * count
    return [(kind, "" if kind == "mamba" and _only_mamba(f) else None) for kind in kinds]


def _turn(f: Facts, word: str, unread: list[str]) -> tuple[str, str | None]:
    kind = KINDS.get(word)
    if kind is None:
        if "compress" in word or "sparse" in word:
            unread.append(f"layer_types: {word!r} is read as attention over all tokens")
        else:
            unread.append(f"layer_types: {word!r} is not known; read as full attention")
        kind = "full"
    if kind in ("sliding", "chunked") and not _window(f, kind):
        kind = "full"
    if kind == "linear" and f.family.get("mamba2"):  # transformers' newer word for it
        kind = "mamba"
    single = bool(f.family.get("single"))
    return kind, SINGLE.get(word, "" if single else None)


def _slides(f: Facts) -> str:
    return "sliding" if _window(f, "sliding") else "full"


def _window(f: Facts, kind: str) -> int:
    if kind == "chunked":
        return f.whole("attention_chunk_size") or 0
    if f.get("use_sliding_window") is False:
        return 0
    return f.whole("sliding_window") or 0


def _rule(f: Facts, count: int) -> list[str] | None:
    """The layers' kinds by rules of single families; None where there is none."""
    every = range(count)
    linear = f.get("linear_attn_config")
    named = f.get("full_attn_idxs") or f.get("attn_layer_indices")
    if isinstance(linear, dict) and linear.get("full_attn_layers"):
        named = [each - 1 for each in linear["full_attn_layers"]]  # counted from 1
    if isinstance(named, list):
        other = "linear" if linear else "conv" if f.get("full_attn_idxs") else "mamba"
        return ["full" if i in named else other for i in every]
    for key, words in (("attn_type_list", ("linear", "full")),
                       ("hybrid_layer_pattern", ("full", "sliding"))):  # fmt: skip
        marks = f.get(key)
        if isinstance(marks, list) and len(marks) >= count:
            return [words[1] if marks[i] else words[0] for i in every]
    if period := f.whole("attn_layer_period"):
        offset = f.get("attn_layer_offset") or 0
        return ["full" if i % period == offset else "mamba" for i in every]
    for key, other in (("full_attention_interval", "linear"),
                       ("global_attn_every_n_layers", "sliding")):  # fmt: skip
        step = f.whole(key)
        if step and (other == "linear" or _window(f, other)):
            return ["full" if (i + 1) % step == 0 else other for i in every]
    return None


def _sparse(f: Facts, count: int) -> list[bool]:
    """Which layers have experts."""
    every = range(count)
    if (f.whole("num_experts") or 0) < 2:
        return [False] * count
    if isinstance(named := f.stated("mlp_layer_types"), list) and len(named) >= count:
        return [word == "sparse" for word in named[:count]]
    if isinstance(marks := f.get("moe_layer_freq"), list) and len(marks) >= count:
        return [bool(mark) for mark in marks]
    named = f.stated("moe_layers")
    if isinstance(words := f.get("moe_layers_enum"), str) and words:
        named = [int(each) for each in words.split(",")]
    if isinstance(named, list):
        return [i in named for i in every]
    return [_is_sparse(f, i, count) for i in every]


def _is_sparse(f: Facts, index: int, count: int) -> bool:
    """The same by steps: every n-th layer, after some that are dense."""
    if period := f.whole("expert_layer_period"):
        return bool(index % period == (f.get("expert_layer_offset") or 0))
    first, last = f.get("moe_layer_start_index"), f.get("moe_layer_end_index")
    if first is not None:
        first = min(first) if isinstance(first, list) else first
        last = max(last) if isinstance(last, list) else last
        last = count - 1 if last in (None, -1) else last
        return first <= index <= last and (index + 1) % (f.whole("moe_layer_interval") or 1) == 0
    dense = f.get("num_dense_layers")
    dense = f.family.get("dense_first", 0) if dense is None else dense
    dense = min(dense) if isinstance(dense, list) else dense
    if index < dense or index in (f.get("mlp_only_layers") or ()):
        return False
    if step := f.whole("interleave_moe_layer_step") or f.whole("decoder_sparse_step"):
        return (index + 1) % step == 0
    return bool(index % (f.whole("moe_layer_freq") or 1) == 0)


def _mix(
    f: Facts, layer: DecoderLayer, hidden: int, index: int, kind: str, count: int, unread: list[str]
) -> None:  # fmt: skip
    """The part of a layer that looks at other tokens."""
    if kind in ("full", "sliding", "chunked", "both"):
        if f.whole("kv_lora_rank"):
            _latent(f, layer, hidden)
            if not f.whole("v_head_dim") or not f.whole("qk_nope_head_dim"):
                text = "kv_lora_rank without v_head_dim and qk_nope_head_dim: weights are missing"
                unread.extend([text] if text not in unread else [])
        else:
            _attention(f, layer, hidden, index, kind, count)
    if kind == "linear" and f.whole("mamba_d_state"):
        kind = "mamba"  # newer transformers' word for both
    if kind in ("mamba", "both") or f.family.get("both"):
        layer.modules["mamba"], layer.state = mixers.mamba(f, hidden)
    elif kind == "linear":
        layer.modules["linear_attn"], layer.state = mixers.linear(f, hidden, unread)
    elif kind == "conv":
        layer.modules["conv"] = 4 * hidden * hidden
        layer.state = mixers.MixerState(hidden * (f.whole("conv_L_cache") or 3))


def _attention(
    f: Facts, layer: DecoderLayer, hidden: int, index: int, kind: str, count: int
) -> None:
    slides = kind in ("sliding", "chunked")
    heads = f.whole("num_attention_heads", index) or 1
    heads = f.whole("num_attention_heads_per_layer", index) or heads
    kv, width = kv_heads(f, index), head_dim(f, heads)
    if slides:
        heads = f.whole("swa_num_attention_heads") or heads
        kv = f.whole("swa_num_key_value_heads") or kv
        width = f.whole("swa_head_dim") or width
    elif f.whole("global_head_dim"):
        width = f.whole("global_head_dim") or width
        if f.flag("attention_k_eq_v"):
            kv = f.whole("num_global_key_value_heads") or kv
    value = f.whole("swa_v_head_dim" if slides else "v_head_dim") or width
    same = f.flag("attention_k_eq_v") and not slides
    gates = f.family.get("output_gate") or (f.stated("attn_output_gate") and 1) or 0
    query = hidden * heads * width
    if low := f.whole("share_q_dim"):  # Step3: queries by way of a narrower one
        query = low * (hidden + heads * width)
    layer.modules["self_attn.q_proj"] = query * (2 if gates == 1 else 1)
    layer.modules["self_attn.o_proj"] = hidden * heads * value
    shares = index >= count - (f.whole("num_kv_shared_layers") or 0)
    if not shares:
        layer.modules["self_attn.k_proj"] = hidden * kv * width
        layer.modules["self_attn.v_proj"] = 0 if same else hidden * kv * value
        layer.cache = Cache(kv, width + value, _window(f, kind) if slides else 0)


def _latent(f: Facts, layer: DecoderLayer, hidden: int) -> None:
    """Attention whose keys and values are kept compressed (MLA), with DeepSeek's indexer."""
    heads = f.whole("num_attention_heads") or 1
    rank, rope = f.whole("kv_lora_rank") or 0, f.whole("qk_rope_head_dim") or 0
    nope, value = f.whole("qk_nope_head_dim") or 0, f.whole("v_head_dim") or 0
    query = heads * (nope + rope)
    if low := f.whole("q_lora_rank"):
        layer.modules["self_attn.q_a_proj"] = hidden * low
        layer.modules["self_attn.q_b_proj"] = low * query
    else:
        layer.modules["self_attn.q_proj"] = hidden * query
    layer.modules["self_attn.kv_a_proj_with_mqa"] = hidden * (rank + rope)
    layer.modules["self_attn.kv_b_proj"] = rank * heads * (nope + value)
    layer.modules["self_attn.o_proj"] = hidden * heads * value
    if f.family.get("expands"):  # vLLM keeps this one's keys and values as they are
        layer.cache = Cache(heads, 2 * (nope + rope))
    else:
        layer.cache = Cache(1, rank + rope, shared=True)
    if (index := f.whole("index_n_heads")) and (low := f.whole("q_lora_rank")):
        width = f.whole("index_head_dim") or 128
        layer.modules["self_attn.indexer"] = low * index * width + hidden * (width + index)
        layer.cache = replace(layer.cache, beside=width + 4)  # fp8, with one scale
    if f.family.get("twice"):  # LongCat: two attentions and two dense MLPs a layer
        layer.modules = {name: 2 * size for name, size in layer.modules.items()}
        layer.cache = Cache(1, 2 * (rank + rope), shared=True)


def kv_heads(f: Facts, index: int = 0) -> int:
    heads = f.whole("num_attention_heads", index) or 1
    if f.flag("multi_query") and not f.flag("new_decoder_architecture"):
        return 1
    return f.whole("num_key_value_heads", index) or heads


def head_dim(f: Facts, heads: int) -> int:
    return f.whole("head_dim") or (f.whole("hidden_size") or 0) // heads


def _mlp(
    f: Facts, layer: DecoderLayer, hidden: int, index: int, wanted: str, unread: list[str]
) -> None:  # fmt: skip
    if not wanted:
        return
    matrices = f.family.get("matrices", 3)
    width = f.whole("intermediate_size", index)
    if f.flag("block_auto_adjust_ff_dim") and width:  # LFM2 rounds up two thirds
        multiple = f.whole("block_multiple_of") or 256
        scaled = int((f.get("block_ffn_dim_multiplier") or 1.0) * int(2 * width / 3))
        width = multiple * -(-scaled // multiple)
    if wanted == "dense" or f.family.get("beside"):
        dense = f.whole("intermediate_size_mlp") or f.whole("dense_intermediate_size") or width
        if f.family.get("matrices") is None and f.whole("ffn_hidden_size") == dense and dense:
            matrices = 3
        if not dense:
            if not f.family:
                unread.append("intermediate_size: assumed 4 times hidden_size")
            dense = 4 * hidden
        double = f.flag("use_double_wide_mlp") and "self_attn.k_proj" not in layer.modules
        size = matrices * hidden * dense * (2 if double else 1)
        layer.modules["mlp"] = size * (2 if f.family.get("twice") else 1)
    if wanted != "sparse":
        return
    layer.experts = f.whole("num_experts") or 0
    layer.chosen = min(f.whole("num_experts_per_tok", index) or 0, layer.experts)
    if not layer.chosen:
        text = "num_experts_per_tok: assumed that each token uses all experts"
        unread.extend([text] if text not in unread else [])
        layer.chosen = layer.experts
    each = f.whole("moe_intermediate_size", index) or width or 0
    inside = f.whole("moe_latent_size") or hidden
    layer.modules["mlp.experts"] = layer.experts * matrices * inside * each
    layer.modules["mlp.gate"] = layer.experts * hidden
    if inside != hidden:
        layer.modules["mlp.latent"] = 2 * hidden * inside
    shared = f.whole("shared_intermediate_size") or 0
    if not shared:
        shared = each * (f.whole("num_shared_experts", index) or f.family.get("shared", 0))
    layer.modules["mlp.shared_experts"] = matrices * hidden * shared


def _block(f: Facts, layer: DecoderLayer, hidden: int, block: dict[str, dict[str, object]]) -> None:
    """A layer that NVIDIA's search found: its own number of key-value heads and its own width."""
    heads = f.whole("num_attention_heads") or 1
    width = head_dim(f, heads)
    attention, ffn = block.get("attention") or {}, block.get("ffn") or {}
    group = number(attention.get("n_heads_in_group"))
    if attention.get("replace_with_linear"):
        layer.modules["self_attn.linear"] = hidden * hidden
    elif not attention.get("no_op"):
        kv = heads // group if group else kv_heads(f)
        layer.modules["self_attn.q_proj"] = hidden * heads * width
        layer.modules["self_attn.kv_proj"] = 2 * hidden * kv * width
        layer.modules["self_attn.o_proj"] = hidden * heads * width
        layer.cache = Cache(kv, 2 * width)
    if ffn.get("replace_with_linear"):
        layer.modules["mlp"] = hidden * hidden
    elif not ffn.get("no_op"):
        factor = ffn.get("ffn_mult")
        wide = int(2 * factor * hidden / 3) if isinstance(factor, int | float) else 0
        wide = number(ffn.get("intermediate_size")) or 256 * -(-wide // 256)
        layer.modules["mlp"] = 3 * hidden * wide


def counts(found: Sequence[DecoderLayer]) -> tuple[int, float]:
    """Weights of all layers, and of those which one token passes."""
    return sum(layer.weights for layer in found), sum(layer.active for layer in found)
