"""What vLLM refuses about a model, from its own lists (``engine.json``, read from the locked one).

Known before anything is downloaded or started.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

from orchestrator.models import quantization
from orchestrator.models.reading.facts import facts

#: Files of formats that are no weights for vLLM -> what they are, the most telling first.
FOREIGN = {
    "openvino_model.*": "OpenVINO's format",
    "openvino_*.xml": "OpenVINO's format",
    "*.gguf": "GGUF, llama.cpp's format",
    "adapter_config.json": "an adapter (LoRA), which needs the model that it was trained on",
    "*.onnx": "ONNX",
    "weights.npz": "MLX's format",
    "tf_model.h5": "TensorFlow's format",
    "flax_model.msgpack": "Flax's format",
    "model_index.json": "a diffusers pipeline",
    "*.mlmodelc": "Core ML's format",
    "*.pte": "ExecuTorch's format",
    "*.pth": "PyTorch's own format without a configuration",
}
CTRANSLATE2 = {"model.bin", "vocabulary.json", "vocabulary.txt", "shared_vocabulary.json",
               "shared_vocabulary.txt", "source_vocabulary.json"}  # fmt: skip
WEIGHTS = (".safetensors", ".bin", ".pt")
ALLOW = (
    "read that code, then set serving.args: trust-remote-code: true; 'orchestrate model pull'"
    " brings the code of the pinned revision and keeps its hashes"
)


@cache
def engine() -> dict[str, Any]:
    """vLLM's lists: {vllm, architectures, dropped, elsewhere, quantizations, configs, fallback}."""
    found: dict[str, Any] = json.loads((Path(__file__).parent / "engine.json").read_text())
    return found


def refused(config: Mapping[str, Any], trusted: bool = False) -> Iterator[str]:
    """Why vLLM does not serve a model, by its config.json; ``trusted``: its own code may run."""
    version = engine()["vllm"]
    named = architectures(config)
    known = set(engine()["architectures"])
    code = remote_code(config)
    if named and not known & set(named) and not set(named) & set(engine()["fallback"]):
        name = named[0]
        if name in engine()["dropped"]:
            yield f"{name}: vLLM served it until {engine()['dropped'][name]}, {version} does not"
        elif name in engine()["elsewhere"]:
            yield f"{name}: only with a plugin of vLLM: {engine()['elsewhere'][name]}"
        elif not code:
            yield f"{name}: not among the architectures that vLLM {version} serves"
    if needs_code(config) and not trusted:
        what = ", ".join(sorted(set(code.values())))
        yield (
            f"it needs code of its own ({what}), which is never run unasked; to allow it: {ALLOW}"
        )
    yield from quantization.refused(quantization.settings(config))


def needs_code(config: Mapping[str, Any]) -> bool:
    """Whether vLLM has no configuration of its own for it, so that its repository's code runs."""
    return bool(remote_code(config)) and str(config.get("model_type")) not in engine()["configs"]


def architectures(config: Mapping[str, Any]) -> list[str]:
    """Those that config.json names, else those of its type."""
    named = config.get("architectures")
    if isinstance(named, list) and named:
        return [str(each) for each in named]
    return []


def remote_code(config: Mapping[str, Any]) -> dict[str, str]:
    """What config.json wants to run of its repository: class -> file."""
    found = config.get("auto_map")
    pairs = found.items() if isinstance(found, Mapping) else ()
    return {
        str(name): f"{str(value[0] if isinstance(value, list) else value).rsplit('.', 1)[0]}.py"
        for name, value in pairs
    }


def unsure(config: Mapping[str, Any]) -> Iterator[str]:
    """What cannot be told of whether vLLM serves it."""
    named = architectures(config)
    if not named:
        own = facts(config).family.get("classes") or []
        if not set(own) & set(engine()["architectures"]):
            yield "architectures: config.json names none, so whether vLLM serves it is not known"
    elif not set(named) & set(engine()["architectures"]) and (
        set(named) & set(engine()["fallback"])
    ):
        yield f"{named[0]}: vLLM has no class of its own for it, and tries transformers' own"


def foreign(names: Sequence[str]) -> str:
    """Of which format the files are that vLLM does not read; empty where it may read some."""
    if len(CTRANSLATE2 & set(names)) >= 2:
        return "its weights are in CTranslate2's format, which vLLM does not read"
    beside = ("openvino_", "training_args", "adapter_")
    if any(name.endswith(WEIGHTS) and not name.startswith(beside) for name in names):
        return ""
    what = next((what for pattern, what in FOREIGN.items()
                 if any(fnmatch(name, pattern) for name in names)), "")  # fmt: skip
    return f"its weights are in a format that vLLM does not read: {what}" if what else ""


def no_weights(names: Sequence[str]) -> str:
    """Why none of the files are weights for vLLM; empty where there are some."""
    none = not any(name.endswith(WEIGHTS) for name in names)
    return foreign(names) or ("it has no weights (*.safetensors or *.bin)" if none else "")
