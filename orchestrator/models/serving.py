"""How the model is spread over the accelerators, and the words of ``vllm serve``.

vLLM would refuse a wrong size too, but minutes later and on another machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from orchestrator.core import paths
from orchestrator.core.errors import BadInput
from orchestrator.models import catalog, quantization

if TYPE_CHECKING:
    from orchestrator.profile.model import Profile

#: Keys of a model's config.json that hold its number of experts, as vLLM looks for them.
EXPERT_KEYS = ("num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts")
KV_HEAD_KEYS = ("n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num")
#: The capability that says why an image cannot spread experts.
NO_EXPERT_PARALLEL = "no_expert_parallel"

#: Flags that the profile's own keys decide (or nothing may): flag -> what to do instead.
MANAGED_FLAGS = {
    "model": "use serving.model",
    "served-model-name": "use serving.model",
    "host": "vLLM listens on its address on ray.network",
    "port": "use serving.port",
    "uds": "use serving.port",
    "tensor-parallel-size": "use serving.tensor_parallel",
    "tp": "use serving.tensor_parallel",
    "pipeline-parallel-size": "use serving.pipeline_parallel",
    "pp": "use serving.pipeline_parallel",
    "enable-expert-parallel": "use serving.expert_parallel",
    "ep": "use serving.expert_parallel",
    "data-parallel-size": "a profile serves one copy of the model",
    "dp": "a profile serves one copy of the model",
    "distributed-executor-backend": "the backend is always ray",
    "api-key": "'orchestrate up' generates the key; no profile contains it",
    "config": "set the flags here instead of in another file",
}
#: Variables that carry secrets or belong to the cluster.
MANAGED_VARIABLES = frozenset(
    {"VLLM_API_KEY", "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
)


@dataclass(frozen=True)
class Layout:
    """How one copy of the model lies on the cluster."""

    #: Over how many accelerators each layer is spread.
    tensor: int
    #: Into how many stages the layers are cut.
    pipeline: int
    #: Whether whole experts are spread, instead of slices of each.
    expert: bool
    #: How many accelerators the compute nodes have together.
    accelerators: int

    @property
    def used(self) -> int:
        """How many of the accelerators the model lies on."""
        return self.tensor * self.pipeline


def resolve(profile: Profile) -> Layout:
    """The layout of the profile's model on its image.

    Raises BadInput as ``layout`` does, and where vLLM would refuse the model's quantization.
    """
    config = catalog.served(profile).config
    cannot = capabilities(profile.image)
    quantization.check(profile, config, cannot)
    return layout(profile, config, cannot)


def capabilities(image: str) -> dict[str, str]:
    """What serving cannot do on an image: name -> reason, from its ``image.yml``."""
    import yaml

    file = paths.checkout() / "images" / image / "image.yml"
    document = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    return dict(document.get("capabilities") or {})


def layout(
    profile: Profile, model_config: Mapping[str, Any], capabilities: Mapping[str, str]
) -> Layout:
    """Sizes for the profile's ``serving``, checked against the accelerators and the model.

    ``auto`` sizes: of all pairs that fit, the one that uses the most accelerators; of those, the
    one with the larger tensor size, because only that makes a single answer faster. So with one
    pipeline stage the tensor size is the number of accelerators where the model can be cut that
    way, else the largest smaller one. ``expert_parallel: auto`` is true where the model has
    experts, the image can spread them and there is more than one rank to spread them over.

    What config.json does not say is not checked. Raises BadInput (with file, line and key) where
    a given size contradicts the accelerators, the model or the image.
    """
    config = model_config.get("text_config", model_config)
    serving = profile.serving
    total = sum(node.accelerators for node in profile.compute_nodes)
    tensor, pipeline = serving.tensor_parallel, serving.pipeline_parallel
    if tensor != "auto" and (why := tensor_misfit(config, tensor)):
        fits = [str(size) for size in range(1, total + 1) if not tensor_misfit(config, size)]
        _refuse(profile, "tensor_parallel", f"{tensor} {why}; allowed: {', '.join(fits)} or auto")
    if pipeline != "auto" and (why := pipeline_misfit(config, pipeline)):
        _refuse(profile, "pipeline_parallel", f"{pipeline} {why}")
    pairs = [
        (t, p)
        for t in ([tensor] if tensor != "auto" else range(1, total + 1))
        for p in ([pipeline] if pipeline != "auto" else range(1, total + 1))
        if t * p <= total and not tensor_misfit(config, t) and not pipeline_misfit(config, p)
    ]
    if not pairs:
        _refuse_too_large(profile, total)
    tensor, pipeline = max(pairs, key=lambda pair: (pair[0] * pair[1], pair[0]))
    expert = _expert(profile, config, capabilities, tensor)
    return Layout(tensor, pipeline, expert, total)


def vllm_argv(profile: Profile, model_dir: str | Path, layout: Layout) -> list[str]:
    """The words after vLLM's executable. The API key is not among them: it goes by VLLM_API_KEY."""
    serving = profile.serving
    argv = ["serve", str(model_dir), "--served-model-name", serving.model]
    argv += ["--host", profile.ray_address(profile.server), "--port", str(serving.port)]
    argv += ["--tensor-parallel-size", str(layout.tensor)]
    argv += ["--pipeline-parallel-size", str(layout.pipeline)]
    argv += ["--enable-expert-parallel"] if layout.expert else []
    argv += ["--distributed-executor-backend", "ray"]
    for name, value in serving.args.items():
        if isinstance(value, bool):
            argv.append(f"--{name}" if value else f"--no-{name}")
        else:
            argv += [f"--{name}", str(value)]
    return argv


def flag_name(key: str) -> str:
    """A flag's name as vLLM compares it: underscores are dashes, and ``no-`` is the same flag."""
    return key.replace("_", "-").removeprefix("no-")


def managed(flag: str) -> str:
    """What to do instead of setting ``flag``; empty where it is free.

    Beginnings of a managed flag count too, since argparse takes them for the flag, and so do all
    further ones of data parallelism.
    """
    if flag.startswith("data-parallel"):
        flag = "data-parallel-size"
    return next((text for name, text in MANAGED_FLAGS.items() if name.startswith(flag)), "")


def tensor_misfit(config: Mapping[str, Any], size: int) -> str:
    """Why the model's layers cannot be spread over ``size``; empty where they can."""
    heads = number(config, "num_attention_heads")
    if heads and heads % size:
        return f"does not divide the model's {heads} attention heads"
    kv_heads = next(filter(None, (number(config, key) for key in KV_HEAD_KEYS)), None)
    if kv_heads and kv_heads % size and size % kv_heads:
        return f"neither divides the model's {kv_heads} key-value heads nor is a multiple of them"
    inner = number(config, "intermediate_size")
    # Of a model with experts this may be an expert's size, which need not be cut.
    if inner and inner % size and not has_experts(config):
        return f"does not divide the model's intermediate_size {inner}"
    return ""


def pipeline_misfit(config: Mapping[str, Any], stages: int) -> str:
    layers = number(config, "num_hidden_layers")
    if layers and stages > layers:
        return f"stages are more than the model's {layers} layers; allowed: 1 to {layers}, or auto"
    return ""


def has_experts(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a mixture of experts."""
    return any(number(config, key) for key in EXPERT_KEYS)


def number(config: Mapping[str, Any], key: str) -> int | None:
    """A positive whole number of config.json; None where it is missing or something else."""
    value: object = config.get(key)
    if isinstance(value, list) and value:
        value = value[0]  # one per layer; they are the same
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    return None


def _expert(
    profile: Profile, config: Mapping[str, Any], capabilities: Mapping[str, str], tensor: int
) -> bool:
    obstacles = list(_expert_obstacles(profile, config, capabilities, tensor))
    wanted = profile.serving.expert_parallel
    if wanted is True and obstacles:
        text = f"true is not possible: {'; '.join(obstacles)}; allowed: false or auto"
        _refuse(profile, "expert_parallel", text)
    return wanted is not False and not obstacles


def _expert_obstacles(
    profile: Profile, config: Mapping[str, Any], capabilities: Mapping[str, str], tensor: int
) -> Iterator[str]:
    if not has_experts(config):
        yield f"the model {profile.serving.model} has no experts"
    if NO_EXPERT_PARALLEL in capabilities:
        yield f"the image {profile.image} does not support it: {capabilities[NO_EXPERT_PARALLEL]}"
    if tensor == 1:
        yield "expert parallelism needs two or more tensor-parallel ranks; there is one"


def _refuse_too_large(profile: Profile, total: int) -> NoReturn:
    tensor, pipeline = profile.serving.tensor_parallel, profile.serving.pipeline_parallel
    key = "pipeline_parallel" if tensor == "auto" else "tensor_parallel"
    sizes = [str(size) for size in (tensor, pipeline) if size != "auto"]
    needed = " x ".join(sizes)
    text = f"needs {needed} accelerators, the compute nodes have {total}; make it smaller, or auto"
    _refuse(profile, key, text)


def _refuse(profile: Profile, key: str, text: str) -> NoReturn:
    raise BadInput(f"{profile.where('serving', key)}: {text}")
