"""Which files of a repository are brought: the weights once, with what belongs to them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.core.errors import BadInput
from orchestrator.models import wanted
from orchestrator.models.reading import served

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
HF = ["config.json", "tokenizer.json"]
MISTRAL = ["params.json", "tekken.json", "consolidated.safetensors"]


def brought(there: list[str], native: bool = False) -> set[str]:
    form = wanted.format_of(there, native)
    assert form
    return {*wanted.beside(there, form), *wanted.weights(there, form)}


#: What is there, and what of it is brought, for models without an index.
KINDS = {
    "no second format": (
        ["config.json", "a.safetensors", "b.bin", "x.gguf", "onnx/a.json", "m.py", "vocab.txt"],
        {"config.json", "a.safetensors", "vocab.txt"},
    ),
    "nor its index": (
        ["config.json", "model.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json"],
        {"config.json", "model.safetensors"},
    ),
    "bin where there is nothing else, none of training": (
        ["config.json", "b.bin", "training_args.bin", "optimizer.bin", "optimizer.pt", "x.gguf"],
        {"config.json", "b.bin"},
    ),
    "pt where there is no bin either": (
        ["config.json", "weights.pt", "optimizer.pt", "scheduler.pt"],
        {"config.json", "weights.pt"},
    ),
    "parts before what is none of theirs": (
        [*HF, *SHARDS, "extra.safetensors", "original/consolidated.00.pth", "original/params.json"],
        {*HF, *SHARDS},
    ),
    "one file before its parts": (
        [*HF, *SHARDS, "model.safetensors"],
        {*HF, "model.safetensors"},
    ),
    "parts where there is an index of them": (
        [*HF, *SHARDS, "model.safetensors", "model.safetensors.index.json"],
        {*HF, *SHARDS, "model.safetensors.index.json"},
    ),
    "a variant": (
        [*HF, "model.safetensors", "model.fp16.safetensors"],
        {*HF, "model.safetensors"},
    ),
    "another number format": (
        [*HF, "model.fp8.safetensors", "model.safetensors"],
        {*HF, "model.safetensors"},
    ),
    "parts of a variant, both ways to write it": (
        [
            *(*HF, *SHARDS),
            *("model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"),
            *("model-00001-of-00002.bf16.safetensors", "model-00002-of-00002.bf16.safetensors"),
            "model.safetensors.index.fp16.json",
        ],
        {*HF, *SHARDS},
    ),
    "of several precisions one of 16 bits": (
        [*HF, "model.fp32.safetensors", "model.fp16.safetensors", "model.fp8.safetensors"],
        {*HF, "model.fp16.safetensors"},
    ),
    "what is whole before what is not": (
        [*HF, "model-00001-of-00003.safetensors", *SHARDS],
        {*HF, *SHARDS},
    ),
    "a precision of bin": (
        ["config.json", "pytorch_model.bin", "pytorch_model.fp16.bin"],
        {"config.json", "pytorch_model.bin"},
    ),
    "names of one's own, all that there are": (
        [*HF, "gptq_model-4bit-128g.safetensors", "rest.safetensors"],
        {*HF, "gptq_model-4bit-128g.safetensors", "rest.safetensors"},
    ),
    "an adapter beside the model": (
        [*HF, "model.safetensors", "adapter_config.json", "adapter_model.safetensors"],
        {*HF, "model.safetensors", "adapter_config.json"},
    ),
    "Mistral's own weights beside others": (
        [*HF, *SHARDS, *MISTRAL],
        {*HF, *SHARDS, "params.json", "tekken.json"},
    ),
    "Mistral's own where only it has a tokenizer": (
        ["config.json", *SHARDS, "model.safetensors.index.json", *MISTRAL],
        {"config.json", *MISTRAL},
    ),
    "Mistral's own alone": (MISTRAL, set(MISTRAL)),
    "Mistral's own, with its SentencePiece": (
        ["params.json", "tokenizer.model.v3", "consolidated.safetensors"],
        {"params.json", "tokenizer.model.v3", "consolidated.safetensors"},
    ),
    "Mistral's own in parts": (
        [*MISTRAL[:2], "consolidated-00001-of-00002.safetensors",
         "consolidated-00002-of-00002.safetensors"],
        {*MISTRAL[:2], "consolidated-00001-of-00002.safetensors",
         "consolidated-00002-of-00002.safetensors"},
    ),
    "CTranslate2's beside safetensors": (
        [*HF, "model.safetensors", "model.bin", "vocabulary.json"],
        {*HF, "model.safetensors", "vocabulary.json"},
    ),
    "OpenVINO's beside bin": (
        ["config.json", "pytorch_model.bin", "openvino_model.bin", "openvino_model.xml"],
        {"config.json", "pytorch_model.bin"},
    ),
    "hidden files and directories": (
        [*HF, "model.safetensors", ".x.safetensors", "fp16/model.safetensors"],
        {*HF, "model.safetensors"},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("there", "those"), KINDS.values(), ids=KINDS)
def test_the_weights_come_once(there: list[str], those: set[str]) -> None:
    assert brought(there) == those
    assert brought(there[::-1]) == those  # whatever their order


def test_mistrals_own_format_comes_where_the_profile_wants_it() -> None:
    assert brought([*HF, *SHARDS, *MISTRAL], native=True) == {*HF, *MISTRAL}


FOREIGN = {
    "OpenVINO": ["openvino_model.bin", "openvino_model.xml", "openvino_tokenizer.bin"],
    "OpenVINO's format": ["language.bin", "language.xml"],
    "CTranslate2": ["model.bin", "vocabulary.json"],
    "CTranslate2's format": ["model.bin", "source_vocabulary.txt", "target_vocabulary.txt"],
    "GGUF": ["model-Q4_K_M.gguf", "mmproj-F16.gguf"],
    "GGML": ["ggml-model-q4_0.bin"],
    "an adapter (LoRA)": ["adapter_config.json", "adapter_model.safetensors"],
    "ONNX": ["onnx/model.onnx", "onnx/model_q4.onnx"],
    "MLX": ["weights.npz"],
    "MLC": ["mlc-chat-config.json", "params_shard_0.bin", "params_shard_1.bin"],
    "diffusers": ["model_index.json", "unet/diffusion_pytorch_model.safetensors"],
    "Core ML": ["model.mlpackage/Data/weights/weight.bin"],
}


@pytest.mark.parametrize(("what", "there"), FOREIGN.items(), ids=FOREIGN)
def test_formats_that_vllm_does_not_read_are_named(what: str, there: list[str]) -> None:
    assert what in served.foreign([*HF, *there])
    assert not served.foreign([*HF, *there, "model.safetensors"])


@pytest.mark.parametrize(
    ("named", "lacking"),
    [
        (SHARDS, []),
        ([*SHARDS, "other.safetensors"], ["other.safetensors"]),
        (["../../etc/passwd"], ["../../etc/passwd"]),
        ([".orchestrate.json", "config.json"], [".orchestrate.json", "config.json"]),
        (["sub/model.safetensors"], ["sub/model.safetensors"]),
    ],
)
def test_an_index_names_weights_that_are_there(
    named: list[str], lacking: list[str], tmp_path: Path
) -> None:
    there = [*HF, *SHARDS, "model.safetensors", ".orchestrate.json", "sub/model.safetensors"]
    index = tmp_path / wanted.SAFETENSORS.index
    index.write_text(json.dumps({"weight_map": {str(n): name for n, name in enumerate(named)}}))
    assert wanted.indexed(index, there, wanted.SAFETENSORS) == (sorted(named), lacking)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}',
     '{"weight_map": {"a": []}}', '{"weight_map": "x"}'],
)  # fmt: skip
def test_what_is_no_index_is_said(text: str, tmp_path: Path) -> None:
    index = tmp_path / wanted.SAFETENSORS.index
    index.write_text(text)
    with pytest.raises(BadInput, match=r"index\.json"):
        wanted.indexed(index, SHARDS, wanted.SAFETENSORS)


def test_parts_without_an_index_are_counted() -> None:
    assert wanted.lacking_parts(SHARDS) == []
    assert wanted.lacking_parts(SHARDS[:1]) == ["model in 2 parts (1 of them are there)"]
