"""`model inspect`: a directory, a file and a repository of the hub, by what is known best."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.hub import NEWEST, REPOSITORY, REVISION
from support.hub_box import Box, boxed

from orchestrator.cli.model import model
from orchestrator.models.reading import sources
from orchestrator.models.reading.inspection import inspect

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 4,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 32,
    "vocab_size": 128,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}
ATTENTION = {"q_proj": [64, 64], "k_proj": [32, 64], "v_proj": [32, 64], "o_proj": [64, 64]}
#: Of all experts in a layer, and of all of the model.
EXPERTS = 4 * 3 * 64 * 32
TOTAL = 2 * (sum(a * b for a, b in ATTENTION.values()) + EXPERTS + 4 * 64) + 2 * 128 * 64


def safetensors(tensors: dict[str, tuple[str, list[int]]], size: int = 0) -> bytes:
    """A file with a header that is right, and bytes that nobody reads."""
    header = {name: {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]}
              for name, (dtype, shape) in tensors.items()}  # fmt: skip
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


def tensors(dtype: str = "BF16", layers: int = 2) -> dict[str, tuple[str, list[int]]]:
    found = {"model.embed_tokens.weight": (dtype, [128, 64]), "lm_head.weight": (dtype, [128, 64])}
    for layer in range(layers):
        base = f"model.layers.{layer}"
        for name, shape in ATTENTION.items():
            found[f"{base}.self_attn.{name}.weight"] = (dtype, shape)
        found[f"{base}.mlp.gate.weight"] = (dtype, [4, 64])
        for expert in range(4):
            for name in ("gate_proj", "up_proj", "down_proj"):
                found[f"{base}.mlp.experts.{expert}.{name}.weight"] = (dtype, [32, 64])
    return found


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "state"))


def directory(path: Path, files: dict[str, bytes]) -> Path:
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


def files(weights: bytes | None = None, **changed: object) -> dict[str, bytes]:
    config = json.dumps(CONFIG | changed).encode()
    return {"config.json": config, "model.safetensors": weights or safetensors(tensors())}


def told(*words: str) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(model, ["inspect", *words, "--json"])
    return result.exit_code, json.loads(result.stdout)


def test_headers_count_and_agree_with_config_json(tmp_path: Path) -> None:
    home = directory(tmp_path / "model", files())
    code, found = told(str(home))
    assert code == 0
    assert found["source"] == "headers of its safetensors files"
    assert found["parameters"] == TOTAL
    assert found["active_parameters"] == TOTAL - 2 * EXPERTS * 3 // 4
    assert found["weight_bytes"] == found["weight_bytes_on_disk"] == 2 * TOTAL
    assert found["kv_bytes_per_token"] == 2 * 2 * 2 * 16 * 2
    assert found["unread"] == found["refused"] == []


def test_float32_in_files_is_half_in_memory(tmp_path: Path) -> None:
    home = directory(tmp_path / "model", files(safetensors(tensors("F32")), torch_dtype="float32"))
    found = inspect(sources.of_directory(home))
    assert found.figure("weight_bytes_on_disk") == 4 * TOTAL
    assert found.figure("weight_bytes") == 2 * TOTAL


def test_layers_of_multi_token_prediction_are_on_disk_only(tmp_path: Path) -> None:
    home = directory(tmp_path / "model", files(safetensors(tensors(layers=3))))
    found = inspect(sources.of_directory(home))
    layer = (TOTAL - 2 * 128 * 64) // 2
    assert found.figure("parameters") == TOTAL
    assert found.figure("weight_bytes_on_disk") == 2 * (TOTAL + layer)
    assert f"{layer:,} weights are in layers for multi-token prediction" in found.unread[0]


def test_packed_weights_are_counted_without_their_scales(tmp_path: Path) -> None:
    packed = {
        "model.layers.0.mlp.down_proj.qweight": ("I32", [4, 64]),
        "model.layers.0.mlp.down_proj.scales": ("F16", [1, 64]),
        "model.layers.0.mlp.down_proj.qzeros": ("I32", [1, 8]),
        "model.layers.0.mlp.down_proj.g_idx": ("I32", [32]),
        "model.layers.0.mlp.up_proj.weight_packed": ("U8", [32, 32]),
        "model.layers.0.mlp.up_proj.weight_scale": ("F8_E4M3", [32, 4]),
    }
    awq = {"quant_method": "awq", "bits": 4, "group_size": 32}
    home = directory(tmp_path / "model", files(safetensors(packed), quantization_config=awq))
    assert inspect(sources.of_directory(home)).figure("parameters") == 4 * 8 * 64 + 32 * 32 * 2


def test_sources_that_differ_are_said(tmp_path: Path) -> None:
    home = directory(tmp_path / "model", files(vocab_size=1280))
    code, document = told(str(home))
    headers = "headers of its safetensors files"
    assert [each["figure"] for each in document["differences"]] == ["parameters", "weight_bytes"]
    wider = TOTAL + 2 * 64 * (1280 - 128)
    assert document["differences"][0]["sources"] == {headers: TOTAL, "config.json": wider}
    text = f"parameters differ: {TOTAL:,} by {headers}, {wider:,} by config.json"
    assert (code, document["unread"][0]) == (0, f"{text}; the first counts here")
    assert document["origins"]["parameters"] == headers
    assert document["origins"]["kv_bytes_per_token"] == "config.json"
    index = {"metadata": {"total_size": 1000}, "weight_map": {"a": "pytorch_model-1.bin"}}
    other = directory(
        tmp_path / "bin",
        {
            "config.json": json.dumps(CONFIG).encode(),
            "pytorch_model.bin.index.json": json.dumps(index).encode(),
            "pytorch_model-1.bin": b"",
        },
    )
    found = inspect(sources.of_directory(other))
    assert found.figure("weight_bytes_on_disk") == 1000
    (difference,) = found.document()["differences"]
    assert (difference["figure"], difference["sources"]["its index"]) == (
        "weight_bytes_on_disk",
        1000,
    )
    assert "differ: 1,000 by its index, " in found.document()["unread"][-1]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["openvino_model.bin", "openvino_model.xml", "openvino_tokenizer.bin"], "OpenVINO"),
        (["model.bin", "vocabulary.json"], "CTranslate2"),
        (["model-Q4_K_M.gguf"], "GGUF"),
        (["adapter_config.json", "adapter_model.safetensors"], "an adapter (LoRA)"),
        (["model.onnx"], "ONNX"),
        (["README.md"], "it has no weights"),
    ],
)
def test_formats_that_are_none_of_vllms(tmp_path: Path, names: list[str], words: str) -> None:
    content = {"config.json": json.dumps(CONFIG).encode()} | {
        name: safetensors({}) if name.endswith(".safetensors") else b"{}" for name in names
    }
    code, found = told(str(directory(tmp_path / "model", content)))
    assert code == 1
    assert words in found["refused"][0]


def test_mistrals_own_format_is_a_model(tmp_path: Path) -> None:
    params = {"dim": 64, "n_layers": 2, "head_dim": 16, "hidden_dim": 128, "n_heads": 4,
              "n_kv_heads": 2, "vocab_size": 128}  # fmt: skip
    weights = safetensors({"tok_embeddings.weight": ("BF16", [128, 64])})
    home = directory(
        tmp_path / "model",
        {"params.json": json.dumps(params).encode(), "consolidated.safetensors": weights},
    )
    found = inspect(sources.of_directory(home))
    assert not found.refused
    layer = 2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128
    assert found.read.parameters == 2 * layer + 2 * 128 * 64


def test_modelopts_separate_file_is_read(tmp_path: Path) -> None:
    own = {"producer": {"name": "modelopt"},
           "quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"}}  # fmt: skip
    home = directory(
        tmp_path / "model", files() | {"hf_quant_config.json": json.dumps(own).encode()}
    )
    _, found = told(str(home))
    assert found["quantization"]["method"] == "modelopt"
    assert (found["quantization"]["bits"], found["kv_cache"]["bytes_per_number"]) == (4.5, 1.0)


def test_its_own_code_is_said_and_never_asked_for(tmp_path: Path) -> None:
    code: dict[str, Any] = {
        "auto_map": {"AutoConfig": "configuration_some.SomeConfig"},
        "model_type": "some",
        "architectures": ["SomeForCausalLM"],
    }
    status, found = told(str(directory(tmp_path / "model", files(**code))))
    assert status == 1
    assert found["remote_code"] == ["configuration_some.py"]
    assert "never run unasked" in found["refused"][0]
    assert "trust-remote-code" in found["refused"][0]


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    shards = {
        "model-00001-of-00002.safetensors": dict(list(tensors().items())[:9]),
        "model-00002-of-00002.safetensors": dict(list(tensors().items())[9:]),
    }
    named = {name: file for file, each in shards.items() for name in each}
    index = {"metadata": {"total_size": 2 * TOTAL}, "weight_map": named}
    with boxed(tmp_path) as found:
        found.hub.files = {
            "config.json": json.dumps(CONFIG).encode(),
            "model.safetensors.index.json": json.dumps(index).encode(),
            "model.safetensors": b"the same weights once more",
            **{file: safetensors(each, 300_000) for file, each in shards.items()},
        }
        found.hub.large = tuple(shards)
        yield found


def test_a_repository_is_read_by_ranges_once(box: Box) -> None:
    words = ("inspect", REPOSITORY, "--revision", REVISION)
    found = box.json(*words)
    assert (found["parameters"], found["revision"]) == (TOTAL, REVISION)
    shards = {(name, span) for name, span in box.hub.gets if name.endswith(".safetensors")}
    assert {name for name, _ in shards} == set(box.hub.large)
    assert all(span == "bytes=0-100000" for _, span in shards)
    box.hub.gets.clear()
    box.hub.tokens.clear()
    assert box.json(*words) == found
    assert not box.hub.gets  # what a commit holds is kept
    assert not box.hub.tokens


def test_a_branch_is_one_question_and_a_model_of_a_profile_its_pin(box: Box) -> None:
    assert box.json("inspect", REPOSITORY)["revision"] == NEWEST
    found = box.json("inspect", "big", "--profile", box.root / "profiles/small.yml")
    assert (found["model"], found["revision"]) == (REPOSITORY, REVISION)
    layouts = {(each["tensor"], each["pipeline"]): each for each in found["layouts"]}
    assert layouts[1, 1] == {"tensor": 1, "pipeline": 1, "possible": True, "why_not": None,
                              "memory": []}  # fmt: skip
    assert found["memory_not_known"] == ["left", "right"]


def test_a_repository_that_is_not_there_is_explained(box: Box) -> None:
    box.hub.refuse = (404, "RepoNotFound")
    done = box.run("inspect", "owner/other")
    assert done.returncode == 1
    assert "the hub has no such repository, or it is private" in done.stderr


def test_code_comes_only_where_the_profile_trusts_it(box: Box) -> None:
    box.hub.files["custom.py"] = b"import os"
    assert box.pull("big").returncode == 0
    assert not (box.home / "custom.py").exists()
    profile = box.root / "profiles/small.yml"
    text = profile.read_text()
    profile.write_text(text.replace("{dtype: half}", "{dtype: half, trust-remote-code: true}"))
    done = box.pull("big")
    assert done.returncode == 0, done.stderr
    assert (box.home / "custom.py").read_bytes() == b"import os"
    manifest = json.loads((box.home / ".orchestrate.json").read_text())["files"]
    assert manifest["custom.py"]["sha256"] == hashlib.sha256(b"import os").hexdigest()


def test_a_pull_of_another_format_says_which(box: Box) -> None:
    box.hub.files = {
        "config.json": b"{}",
        "openvino_model.bin": b"",
        "openvino_model.xml": b"",
        "openvino_tokenizer.bin": b"",
    }
    done = box.pull("big")
    assert done.returncode == 1
    assert "a format that vLLM does not read: OpenVINO's format" in done.stderr
    assert not box.hub.gets
