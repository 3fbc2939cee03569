"""Where a model's own small files are: on the hub at a commit, in a directory, or one file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.core import paths
from orchestrator.core.document import read_json
from orchestrator.core.errors import BadInput
from orchestrator.core.files import write_json
from orchestrator.models import hub_listing, wanted
from orchestrator.models.hub_errors import explained
from orchestrator.models.reading import tensors

CONFIG, NATIVE = wanted.CONFIG, wanted.NATIVE_CONFIG
#: Where quantization is when it is not in config.json -> its method; ModelOpt's names its own.
QUANTIZATION = {
    "hf_quant_config.json": "modelopt",
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
}
INDEXES = ("model.safetensors.index.json", "consolidated.safetensors.index.json",
           "pytorch_model.bin.index.json")  # fmt: skip
SMALL = (CONFIG, NATIVE, *QUANTIZATION, *INDEXES)
#: Names that Mistral's own params.json has for a tower -> transformers' type of it.
TOWER = "pixtral"
JOBS = 8

Header = list[tuple[str, str, list[int]]]


@dataclass(frozen=True)
class ModelFiles:
    """What is known of a model's files. ``names``: None where only a config.json is there;
    ``headers``: the tensors, where its weights are safetensors; ``total``: bytes by the index."""

    name: str
    revision: str
    config: Mapping[str, Any]
    names: tuple[str, ...] | None = None
    headers: Header = field(default_factory=list)
    total: int | None = None


def of_file(file: Path) -> ModelFiles:
    """A config.json alone."""
    return ModelFiles(str(file), "", _object(file))


def of_directory(home: Path) -> ModelFiles:
    """A model's directory. Raises BadInput where it holds no model's configuration."""
    names = tuple(sorted(path.name for path in home.iterdir() if path.is_file()))
    small = {name: _object(home / name) for name in SMALL if name in names}
    found: Header = []
    for name in _weights(names, small):
        if (home / name).is_file():
            found += tensors.entries(tensors.header(home / name))
    return ModelFiles(str(home), "", _config(small, str(home), names), names, found, _total(small))


def configuration(home: Path) -> Mapping[str, Any]:
    """What a directory's small files say of the model; empty where it has no configuration."""
    names = (CONFIG, NATIVE, *QUANTIZATION)
    small = {name: _object(home / name) for name in names if (home / name).is_file()}
    return _config(small, str(home), ()) if CONFIG in small or NATIVE in small else {}


def of_hub(repository: str, revision: str) -> ModelFiles:
    """A repository of the hub at a branch, tag or commit: what is small, and headers by ranges.

    What a commit holds never changes, so it is kept. Raises UserError where the hub refuses.
    """
    commit = revision
    if not hub_listing.BLOB.fullmatch(revision):
        commit = hub_listing.commit_of(repository, revision)
    kept = paths.cache() / "models" / repository / f"{commit}.json"
    try:
        known = json.loads(kept.read_text())
        found = [(name, dtype, shape) for name, dtype, shape in known["headers"]]
        small, names = known["small"], tuple(known["names"])
    except (OSError, ValueError, KeyError, TypeError):
        names, small, found = _asked(repository, commit)
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, {"names": names, "small": small, "headers": found})
    config = _config(small, f"{repository} at {commit[:12]}", names)
    return ModelFiles(repository, commit, config, names, found, _total(small))


def _asked(repository: str, commit: str) -> tuple[tuple[str, ...], dict[str, Any], Header]:
    files = {file.path for file in hub_listing.listed(repository, commit).files}
    names = tuple(sorted(name for name in files if "/" not in name))

    def read(name: str) -> Any:
        with explained(repository, commit):
            return json.loads(hub_listing.content(repository, name, commit))

    def tensors_of(name: str) -> Header:
        return hub_listing.tensors_of(repository, name, commit)

    with ThreadPoolExecutor(JOBS) as pool:
        wanted = [name for name in SMALL if name in names]
        small = dict(zip(wanted, pool.map(read, wanted), strict=True))
        shards = [name for name in _weights(names, small) if name in files]
        headers = [each for found in pool.map(tensors_of, shards) for each in found]
    return names, small, headers


def _weights(names: tuple[str, ...], small: Mapping[str, Any]) -> list[str]:
    """The safetensors files that are the model: by its index, else by their names."""
    form = wanted.format_of(names)
    if form is None or form.pickle:
        return []
    weights = small.get(form.index, {}).get("weight_map")
    if isinstance(weights, Mapping):
        return sorted(set(map(str, weights.values())))
    return wanted.weights(names, form)


def _total(small: Mapping[str, Any]) -> int | None:
    for index in INDEXES:
        size = (small.get(index, {}).get("metadata") or {}).get("total_size")
        if isinstance(size, int | float):
            return int(size)
    return None


def _config(small: Mapping[str, Any], what: str, names: tuple[str, ...]) -> Mapping[str, Any]:
    """config.json with the quantization that is in a file of its own, or Mistral's params.json."""
    if CONFIG in small:
        config = dict(small[CONFIG])
    elif NATIVE in small:
        config = _native(small[NATIVE])
    else:
        from orchestrator.models.reading.served import no_weights

        raise BadInput(
            f"{what} holds no model for vLLM: there is no config.json",
            no_weights(names) or "Name a repository, a directory or a config.json of a model.",
        )
    for name, method in QUANTIZATION.items():
        if name in small and "quantization_config" not in config:
            config["quantization_config"] = {"quant_method": method, **small[name]}
    return config


def _native(params: Mapping[str, Any]) -> dict[str, Any]:
    """Mistral's own file in the words of config.json."""
    config: dict[str, Any] = {"model_type": "mistral", "dtype": "bfloat16", **params}
    config["architectures"] = ["MistralForCausalLM"]
    config["tie_word_embeddings"] = bool(params.get("tied_embeddings", False))
    if isinstance(params.get("moe"), Mapping):
        config |= {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}
    if isinstance(seen := params.get("vision_encoder"), Mapping):
        config["architectures"] = ["PixtralForConditionalGeneration"]
        config["vision_config"] = {"model_type": TOWER, **seen}
    return config


def _object(file: Path) -> Mapping[str, Any]:
    found = read_json(file)
    if not isinstance(found, dict):
        raise BadInput(f"{file}:1: does not hold an object", 'Allowed: {"key": value, ...}')
    return found
