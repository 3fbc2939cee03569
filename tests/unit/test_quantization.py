"""What vLLM refuses about a quantized model, before it is served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.profiles import PROFILE, make_checkout

from orchestrator.core import paths
from orchestrator.core.errors import BadInput
from orchestrator.models import quantization
from orchestrator.models.profiles import load
from orchestrator.models.serving import resolve
from orchestrator.profile import Profile

REVISION = "0123456789abcdef0123456789abcdef01234567"
HUB = f"models:\n  big: {{repository: owner/big, revision: {REVISION}}}\nserving:\n"
#: As the two test models have them, by their model cards.
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({}, []),
        (GPTQ, []),
        (AWQ, []),
        (GPTQ | {"desc_act": True, "group_size": -1}, []),
        ({"quant_method": "fp8", "bits": 8, "sym": False}, []),
        (
            GPTQ | {"desc_act": True},
            [
                "gptq with desc_act true and groups of 128; take one with desc_act false"
                " (or a static order)"
            ],
        ),
        (
            GPTQ | {"dynamic": {"-:skip": {}, "+:mlp": {"desc_act": True}, "attn": {"bits": 8}}},
            [
                "gptq with desc_act true and groups of 128 (in the layers '+:mlp'); take one with"
                " desc_act false (or a static order)"
            ],
        ),
        (GPTQ | {"bits": 3}, ["gptq with 3 bits; take one with 4 or 8 bits"]),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            ["it does not read the quantization 'bitsandbytes'; take one with AWQ, GPTQ or fp8"],
        ),
        (
            {"quant_method": "hqq"},
            ["it does not read the quantization 'hqq'; take one with AWQ, GPTQ or fp8"],
        ),
        (
            {"group_size": 64, "bits": 4},
            [
                "its quantization has no quant_method, as in models for MLX; take one with AWQ or"
                " GPTQ"
            ],
        ),
        ({"quant_algo": "NVFP4", "producer": {"name": "modelopt"}}, []),
        ({"quant_method": "auto-round", "bits": 4}, []),
        (GPTQ | {"sym": False}, ["gptq that is not symmetric (sym false); take one with sym true"]),
        (
            {"quant_method": "AWQ", "w_bit": 8, "q_group_size": 128},
            ["awq with 8 bits; take one with 4 bits"],
        ),
    ],
)
def test_what_vllm_refuses(settings: dict[str, Any], refused: list[str]) -> None:
    assert list(quantization.refused(settings)) == refused


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose profile serves a model of the hub; returns where its files belong."""
    monkeypatch.setenv("ORCHESTRATE_CHECKOUT", str(tmp_path))
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    make_checkout(tmp_path, PROFILE.replace("serving:\n  model: tiny", f"{HUB}  model: big"))
    directory = paths.hub() / "owner/big" / REVISION
    directory.mkdir(parents=True)
    return directory


def profile() -> Profile:
    return load(Path("profiles/small.yml"))


def test_a_model_that_is_not_here_yet_passes(hub: Path) -> None:
    assert resolve(profile()).tensor == 2


@pytest.mark.parametrize("nested", [False, True])
def test_a_model_of_the_hub_is_read_before_it_is_served(hub: Path, nested: bool) -> None:
    settings: dict[str, Any] = {"quantization_config": GPTQ | {"desc_act": True}}
    config = {"text_config": settings} if nested else settings
    (hub / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput) as raised:
        resolve(profile())
    assert raised.value.message.startswith(
        "profiles/small.yml:37: serving.model: vLLM refuses the model big: gptq with desc_act true"
    )


def test_older_models_have_their_settings_in_a_file_of_their_own(hub: Path) -> None:
    (hub / "config.json").write_text("{}")
    (hub / "quantize_config.json").write_text('{"bits": 4, "group_size": 64, "desc_act": true}')
    with pytest.raises(BadInput, match="gptq with desc_act true and groups of 64"):
        resolve(profile())


@pytest.mark.parametrize(("value", "refused"), [("1", True), ("0", False), ("", False)])
def test_batch_invariance_needs_an_image_that_can(hub: Path, value: str, refused: bool) -> None:
    file = Path("profiles/small.yml")
    env = f'env: {{VLLM_BATCH_INVARIANT: "{value}"}}'
    file.write_text(file.read_text().replace("env: {}", env))
    (hub / "config.json").write_text(json.dumps({"quantization_config": AWQ}))
    assert resolve(profile()).tensor == 2
    Path("images/plain/image.yml").write_text(
        "capabilities:\n  no_batch_invariant_quantized: its kernels are not\n"
    )
    if refused:
        with pytest.raises(BadInput) as raised:
            resolve(profile())
        assert raised.value.message == (
            "profiles/small.yml:33: ray.env.VLLM_BATCH_INVARIANT: has no effect on this quantized "
            "model: its kernels are not; leave it out"
        )
    else:
        assert resolve(profile()).tensor == 2
    (hub / "config.json").write_text("{}")
    assert resolve(profile()).tensor == 2
