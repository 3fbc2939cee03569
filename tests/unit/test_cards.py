"""What a profile asks of cards that cannot compute it: refused before anything starts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.profiles import CONFIG, PROFILE, make_checkout

from orchestrator.core import paths
from orchestrator.core.document import DocumentError
from orchestrator.models.profiles import load
from orchestrator.models.serving import resolve

#: What the A770's profile says of it.
LIMITS = yaml.safe_load((Path(__file__).parents[2] / "profiles/0.1.yml").read_text())["hardware"][
    "a770"
]["capabilities"]
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128}
SHAPE = CONFIG | {"hidden_size": 1024, "intermediate_size": 2048, "torch_dtype": "float16"}
ARGS = {"dtype": "half", "attention-backend": "TRITON_ATTN"}


def refused(
    root: Path,
    config: dict[str, Any],
    args: dict[str, Any] = ARGS,
    kinds: tuple[str, ...] = ("arc", "arc"),
    tensor: int | str = "auto",
) -> list[str]:
    """Each problem of a profile whose nodes are of these kinds: ``KEY: TEXT``."""
    document = yaml.safe_load(PROFILE)
    document["hardware"] = {"arc": {"capabilities": LIMITS}, "other": {}}
    for node, kind in zip(document["compute_nodes"], kinds, strict=True):
        node["hardware"] = kind
    document["serving"] |= {"args": args, "tensor_parallel": tensor}
    file = make_checkout(root, yaml.safe_dump(document, sort_keys=False), config)
    try:
        resolve(load(file))
    except DocumentError as error:
        assert all(problem.line > 1 for problem in error.problems)
        return [f"{problem.key}: {problem.text}" for problem in error.problems]
    return []


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATE_CHECKOUT", str(tmp_path))


@pytest.mark.parametrize("quantized", [None, GPTQ, AWQ, GPTQ | {"group_size": -1}])
def test_what_the_card_can_do_passes(quantized: dict[str, Any] | None, tmp_path: Path) -> None:
    assert (
        refused(tmp_path, SHAPE | ({"quantization_config": quantized} if quantized else {})) == []
    )


@pytest.mark.parametrize(
    ("change", "key", "what", "instead"),
    [
        (
            {"num_local_experts": 8},
            "serving.model",
            "a model with experts",
            "a model without experts",
        ),
        (
            {"quantization_config": GPTQ | {"bits": 8}},
            "serving.model",
            "gptq with 8 bits",
            "a model with 4 bits",
        ),
        (
            {"quantization_config": GPTQ | {"dynamic": {"mlp": {"bits": 8}}}},
            "serving.model",
            "gptq with 8 bits (in the layers 'mlp')",
            "a model with 4 bits",
        ),
        (
            {"quantization_config": AWQ | {"group_size": 16}},
            "serving.model",
            "awq with groups of 16",
            "a model with groups of 32, 64 or 128",
        ),
        (
            {
                "quantization_config": {
                    "quant_method": "compressed-tensors",
                    "format": "pack-quantized",
                    "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "int"}}},
                }
            },
            "serving.model",
            "compressed-tensors with 8 bits (in the layers 'group_0')",
            "a model with 4 bits",
        ),
    ],
)
def test_models_that_the_card_cannot_compute(
    change: dict[str, Any], key: str, what: str, instead: str, tmp_path: Path
) -> None:
    (problem,) = refused(tmp_path, SHAPE | change)
    assert problem.startswith(f"{key}: tiny: {what} is not possible on arc: ")
    assert problem.endswith(f"; use {instead}")


def test_an_order_of_activations_is_refused_on_every_card(tmp_path: Path) -> None:
    config = SHAPE | {"quantization_config": GPTQ | {"desc_act": True}}
    (problem,) = refused(tmp_path, config, kinds=("other", "other"))
    assert "gptq with desc_act true and groups of 128" in problem


@pytest.mark.parametrize(
    ("args", "own", "what"),
    [
        ({"dtype": "bfloat16"}, "float16", "'bfloat16'"),
        ({"dtype": "auto"}, "bfloat16", "is not set; bfloat16, the format of tiny,"),
        ({}, "bfloat16", "is not set; bfloat16, the format of tiny,"),
        # vLLM takes the platform's first format for these, which is bfloat16.
        ({}, "float32", "is not set; bfloat16, the format of tiny,"),
        ({}, None, "is not set; bfloat16, the format of tiny,"),
        ({}, "float16", ""),
        ({"dtype": "half"}, "bfloat16", ""),
        ({"dtype": "float32"}, "bfloat16", ""),
    ],
)
def test_number_formats(args: dict[str, Any], own: str | None, what: str, tmp_path: Path) -> None:
    args |= {"attention-backend": "TRITON_ATTN"}
    found = refused(tmp_path, SHAPE | {"torch_dtype": own}, args)
    assert [text.partition(" is not possible on arc")[0] for text in found] == (
        [f"serving.args.dtype: {what}"] if what else []
    )
    assert all(text.endswith("; use dtype: half") for text in found)


@pytest.mark.parametrize(
    ("args", "key"),
    [
        ({}, "attention-backend"),
        ({"attention-backend": "FLASH_ATTN"}, "attention-backend"),
        ({"attention_backend": "flash_attn"}, "attention_backend"),
        ({"attention-config": '{"backend": "FLASH_ATTN"}'}, "attention-config"),
        ({"attention-config.backend": "FLASH_ATTN"}, "attention-config.backend"),
        ({"attention-config": '{"backend": "TRITON_ATTN"}'}, None),
        ({"attention-config.backend": "TRITON_ATTN"}, None),
        ({"attention_backend": "triton_attn"}, None),
    ],
)
def test_attention_backends(args: dict[str, Any], key: str | None, tmp_path: Path) -> None:
    found = refused(tmp_path, SHAPE, args | {"dtype": "half"})
    assert [text.partition(": ")[0] for text in found] == ([f"serving.args.{key}"] if key else [])
    assert all(text.endswith("; use attention-backend: TRITON_ATTN") for text in found)


def test_all_is_said_at_once(tmp_path: Path) -> None:
    config = SHAPE | {"num_experts": 8, "quantization_config": GPTQ | {"desc_act": True, "bits": 8}}
    found = refused(tmp_path, config, {"dtype": "bfloat16"}, tensor=3)
    assert [text.partition(":")[0] for text in found] == [
        "serving.model",
        "serving.model",
        "serving.model",
        "serving.args.attention-backend",
        "serving.args.dtype",
        "serving.tensor_parallel",
    ]


def test_the_weakest_of_several_kinds_counts(tmp_path: Path) -> None:
    (problem,) = refused(tmp_path, SHAPE, ARGS | {"dtype": "bfloat16"}, kinds=("other", "arc"))
    assert "is not possible on arc" in problem


def test_a_kind_that_holds_no_rank_does_not_count(tmp_path: Path) -> None:
    document = yaml.safe_load(PROFILE)
    document["hardware"] = {"arc": {"capabilities": LIMITS}}
    document["control"]["hardware"] = "arc"
    document["compute_nodes"][1] |= {"hardware": "arc", "accelerators": 0}
    file = make_checkout(tmp_path, yaml.safe_dump(document), SHAPE | {"torch_dtype": "bfloat16"})
    assert resolve(load(file)).tensor == 1


def test_what_is_not_known_yet_is_not_judged(tmp_path: Path) -> None:
    assert refused(tmp_path, {}, {"attention-backend": "TRITON_ATTN"}) == []


# Over 2 ranks 8 heads of 24 values are 96 each, and the MLP has 2816 / 2 = 1408 = 11 x 128.
ODD = {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 24, "hidden_size": 1024}


def test_ranks_get_what_kernels_take(tmp_path: Path) -> None:
    config = SHAPE | ODD | {"quantization_config": GPTQ | {"group_size": 64}}
    (problem,) = refused(tmp_path, config, tensor=2)
    assert problem.startswith(
        "serving.tensor_parallel: 2 gives each rank 96 values of the attention output, no multiple"
        " of 64; arc: "
    )
    assert problem.endswith("; allowed: 1 or auto")


def test_auto_takes_what_fits(tmp_path: Path) -> None:
    config = SHAPE | ODD | {"quantization_config": GPTQ | {"group_size": 64}}
    assert refused(tmp_path, config) == []
    assert resolve(load(tmp_path / "profiles/small.yml")).tensor == 1


def test_the_same_is_free_where_nothing_is_packed(tmp_path: Path) -> None:
    assert refused(tmp_path, SHAPE | ODD, tensor=2) == []


def test_a_model_that_fits_no_number_of_ranks(tmp_path: Path) -> None:
    config = SHAPE | {"intermediate_size": 1000, "quantization_config": GPTQ | {"group_size": -1}}
    (problem,) = refused(tmp_path, config)
    assert problem.startswith(
        "serving.tensor_parallel: no size is possible; 1 gives each rank 1000 values of the MLP"
        " output, no multiple of 32"
    )


#: By the sizes in their public config.json files.
MISTRAL = {
    "num_attention_heads": 48, "num_key_value_heads": 8, "head_dim": 128, "hidden_size": 6144,
    "intermediate_size": 16384, "num_hidden_layers": 56, "torch_dtype": "float16",
    "quantization_config": AWQ,
}  # fmt: skip
GEMMA = {
    "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256, "hidden_size": 2048,
    "intermediate_size": 16384, "num_hidden_layers": 18, "torch_dtype": "float16",
    "quantization_config": GPTQ,
}  # fmt: skip


@pytest.mark.parametrize("config", [MISTRAL, GEMMA], ids=["mistral-small", "gemma-2b"])
@pytest.mark.parametrize("tensor", [1, 2])
def test_the_two_models_of_the_a770s_profile_fit(
    config: dict[str, Any], tensor: int, tmp_path: Path
) -> None:
    assert refused(tmp_path, config, tensor=tensor) == []


def test_a_pulled_model_is_judged_by_profile_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "state"))
    real = Path(__file__).parents[2]
    monkeypatch.setenv("ORCHESTRATE_CHECKOUT", str(real))
    profile = load(real / "profiles/0.1.yml")
    entry = profile.models[profile.serving.model]
    home = paths.hub() / entry.repository / str(entry.revision)
    home.mkdir(parents=True)
    (home / "config.json").write_text(json.dumps(SHAPE | {"n_routed_experts": 64}))
    with pytest.raises(
        DocumentError, match=r"0\.1\.yml:\d+: serving\.model: .* a model with experts"
    ):
        resolve(profile)


@pytest.mark.parametrize("verb", ["profile check", "plan", "up"])
def test_nothing_is_started_nor_asked_for(verb: str, tmp_path: Path) -> None:
    """Not even an image: there is none here."""
    refused(tmp_path, SHAPE | {"num_experts": 8}, {"dtype": "bfloat16"})
    file = str(tmp_path / "profiles/small.yml")
    words = [*verb.split(), file] if verb == "profile check" else [verb, "--profile", file]
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", *words],
        env={"ORCHESTRATE_CHECKOUT": str(tmp_path), "ORCHESTRATE_STATE": str(tmp_path / "state"),
             "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    lines = [line for line in done.stderr.splitlines() if "small.yml:" in line]
    assert len(lines) == 3, done.stderr
    assert all("is not possible on arc" in line for line in lines)
    if verb != "plan":  # whose exit code 2 means that something differs
        assert done.returncode == 2
    assert not (tmp_path / "state").exists()
