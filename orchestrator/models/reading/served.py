"""What vLLM refuses about a model, from its own lists (``engine.json``, read from the locked one).

Known before anything is downloaded or started.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

from orchestrator.models import quantization, wanted
from orchestrator.models.reading.facts import facts

#: Files of formats that are no weights for vLLM -> what they are, the most telling first.
FOREIGN = {
    "openvino_*": "OpenVINO's format",
    "*.xml": "OpenVINO's format",
    "*.gguf": "GGUF, llama.cpp's format",
    "ggml-*.bin": "GGML, llama.cpp's older format",
    "*vocabulary.*": "CTranslate2's format",
    "mlc-chat-config.json": "MLC's format",
    "adapter_config.json": "an adapter (LoRA), which needs the model that it was trained on",
    "*.onnx": "ONNX",
    "weights.npz": "MLX's format",
    "tf_model.h5": "TensorFlow's format",
    "flax_model.msgpack": "Flax's format",
    "model_index.json": "a diffusers pipeline",
    "*.mlmodelc": "Core ML's format",
    "*.mlpackage": "Core ML's format",
    "*.pte": "ExecuTorch's format",
    "*.tflite": "LiteRT's format",
    "*.task": "LiteRT's format",
    "*.litertlm": "LiteRT's format",
    "*.engine": "TensorRT's format",
    "*.nemo": "NeMo's format",
    "*.llamafile": "llamafile's format",
    "*.pth": "PyTorch's own format without a configuration",
}
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
        yield (
            f"it needs code of its own ({', '.join(code)}), which is never run unasked;"
            f" to allow it: {ALLOW}"
        )
    if trusted and (others := [file for file in code if "--" in file]):
        yield (
            f"it names code of another repository ({', '.join(others)}), at no fixed revision; copy"
            " that code into a repository with the model, and name it in auto_map without 'OWNER/'"
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


def remote_code(config: Mapping[str, Any]) -> list[str]:
    """The files that a configuration wants to run, of its repository or (with its name and two
    dashes) of another."""
    found = config.get("auto_map")
    named = found.values() if isinstance(found, Mapping) else ()
    classes = [one for each in named for one in (each if isinstance(each, list) else [each])]
    return sorted({f"{one.rpartition('.')[0]}.py" for one in classes if isinstance(one, str)})


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


def foreign(names: Collection[str]) -> str:
    """Of which format the files are that vLLM does not read; empty where it may read some."""
    if wanted.format_of(names):
        return ""
    parts = {part for name in names for part in name.split("/")}
    what = next((what for pattern, what in FOREIGN.items()
                 if any(fnmatch(part, pattern) for part in parts)), "")  # fmt: skip
    return f"its weights are in a format that vLLM does not read: {what}" if what else ""


def no_weights(names: Collection[str]) -> str:
    """Why none of the files are weights for vLLM; empty where there are some."""
    none = wanted.format_of(names) is None
    return foreign(names) or ("it has no weights (*.safetensors or *.bin)" if none else "")
