"""Flags and variables of `vllm serve`, as a profile writes them: which are not the profile's."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.profile.existing import AttachedServing
from orchestrator.profile.serving import Serving

#: The flag for what runs an engine's ranks.
EXECUTOR = "distributed-executor-backend"
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
    "data-parallel-size": "use serving.data_parallel",
    "dp": "use serving.data_parallel",
    EXECUTOR: "use serving.executor",
    "nnodes": "use serving.executor",
    "node-rank": "use serving.executor",
    "master-addr": "use serving.executor",
    "master-port": "use serving.executor",
    "headless": "use serving.executor",
    "api-key": "'orchestrate up' generates the key; no profile contains it",
    "config": "set the flags here instead of in another file",
}
#: Variables that carry secrets or belong to the cluster.
MANAGED_VARIABLES = frozenset(
    {"VLLM_API_KEY", "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
    | {"VLLM_CONFIG_ROOT"}
)


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


def given(args: Mapping[str, object], flag: str) -> tuple[str, object] | None:
    """The key that sets a flag and its value; None where none does."""
    return next(((key, args[key]) for key in args if flag_name(key) == flag), None)


def deciding(serving: Serving | AttachedServing) -> dict[str, object]:
    """The flags that an engine's speed depends on, by which measured engines are told apart: the
    profile's own, and its executor where that is not the default."""
    if isinstance(serving, Serving) and not serving.by_ray:
        return {**serving.args, EXECUTOR: serving.executor}
    return dict(serving.args)


def number_formats(args: Mapping[str, object]) -> tuple[str, str]:
    """The values of --dtype and --kv-cache-dtype: "auto" where the model's own count."""
    found = (given(args, flag) for flag in ("dtype", "kv-cache-dtype"))
    dtype, cache = (str(each[1]) if each else "auto" for each in found)
    return dtype, cache


def trusts_code(args: Mapping[str, object]) -> bool:
    """Whether the model's own Python code may run on the nodes."""
    key, value = given(args, "trust-remote-code") or ("", False)
    return value is True and not key.startswith("no")


def wants_native(args: Mapping[str, object]) -> bool:
    """Whether vLLM is told to read Mistral's own format."""
    found = (given(args, flag) for flag in ("load-format", "config-format"))
    return any(each and str(each[1]).lower() == "mistral" for each in found)
