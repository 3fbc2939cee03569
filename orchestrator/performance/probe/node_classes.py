"""Runs in the engine's Python on a node: what vLLM's own classes make of a config.json, as JSON.

    python - ... ASKED      ASKED (JSON): {config, dtype, cache}: vLLM's --dtype, --kv-cache-dtype

The model is made on torch's "meta" device: it takes no memory, no weights, no accelerator. Nothing
is fetched, no code of the model's runs, and what vLLM writes is removed at the end.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

#: Where vLLM, and what it uses, would look for files and keep some.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
           "DO_NOT_TRACK": "1", "VLLM_LOGGING_LEVEL": "ERROR"}  # fmt: skip
OWN = ("HOME", "HF_HOME", "XDG_CACHE_HOME", "VLLM_CACHE_ROOT", "VLLM_CONFIG_ROOT",
       "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")  # fmt: skip
#: Characters of a refusal that are told.
SHOWN = 500
QUANTIZATION = ("quantization_config", "compression_config")


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    """A configuration without these keys, at both of its levels."""
    return {
        name: without(value, *keys) if name.endswith("_config") and isinstance(value, dict)
        else value for name, value in config.items() if name not in keys
    }  # fmt: skip


def engine_config(config: dict[str, Any], asked: dict[str, Any], own: Path) -> Any:
    """vLLM's configuration of a model that has nothing but its config.json."""
    from vllm.engine.arg_utils import EngineArgs  # type: ignore[import-not-found,unused-ignore]

    home = Path(tempfile.mkdtemp(dir=own))
    # Its own Python files are not here, and are not to be missed where vLLM has a class.
    (home / "config.json").write_text(json.dumps(without(config, "auto_map")))
    formats = {"dtype": asked["dtype"], "kv_cache_dtype": asked["cache"]}
    return EngineArgs(
        model=str(home), skip_tokenizer_init=True, load_format="dummy", enforce_eager=True,
        generation_config="vllm", trust_remote_code=False, **formats,
    ).create_engine_config()  # fmt: skip


def model_of(engine: Any, own: Path) -> Any:
    """The model on the meta device, as the only rank of its groups."""
    import torch  # type: ignore[import-not-found,unused-ignore]
    from vllm.config import (  # type: ignore[import-not-found,unused-ignore]
        set_current_vllm_config,
    )
    from vllm.distributed import (  # type: ignore[import-not-found,unused-ignore]
        ensure_model_parallel_initialized,
        init_distributed_environment,
    )
    from vllm.model_executor.model_loader.utils import (  # type: ignore[import-not-found,unused-ignore]
        initialize_model,
    )

    with set_current_vllm_config(engine):
        init_distributed_environment(1, 0, f"file://{own}/ranks", 0, "gloo")
        ensure_model_parallel_initialized(1, 1)
        usual = torch.get_default_dtype()
        torch.set_default_dtype(engine.model_config.dtype)
        try:
            with torch.device("meta"):
                return initialize_model(engine)
        finally:
            torch.set_default_dtype(usual)


def numbers(model: Any) -> Iterator[tuple[int, int, bool]]:
    """(numbers, bytes, whether an expert's) of each parameter, without the rows that only fill up
    a vocabulary."""
    seen: set[int] = set()
    for module in model.modules():
        rows = getattr(module, "num_embeddings_padded", None)
        stated = getattr(module, "org_vocab_size", rows)
        for name, each in module.named_parameters(recurse=False):
            if id(each) in seen:
                continue
            seen.add(id(each))
            count = each.numel()
            if rows and each.shape[0] == rows:
                count = count // rows * stated
            yield count, count * each.element_size(), name.startswith(("w13_", "w2_"))


def cache_of(engine: Any) -> dict[str, Any]:
    """Bytes of cache of each token by what bounds them, from the specification of each layer."""
    growing, windows, state = 0.0, dict[int, float](), 0
    for layer in engine.compilation_config.static_forward_context.values():
        asked = getattr(layer, "get_kv_cache_spec", None)
        if asked is None or getattr(layer, "kv_sharing_target_layer_name", None):
            continue
        spec = asked(engine)
        if spec is None or type(spec).__name__.startswith("Cross"):
            continue
        backend: Any = layer.get_attn_backend() if hasattr(layer, "get_attn_backend") else None
        if hasattr(backend, "customize_spec") and hasattr(spec, "num_kv_heads"):
            spec = backend.customize_spec(spec)
        # Pages are filled up where layers of other kinds have larger ones.
        sizes = (getattr(spec, f"{name}page_size_bytes", None) for name in ("unpadded_", "real_"))
        size = next(filter(None, sizes), spec.page_size_bytes)
        window = getattr(spec, "sliding_window", None) or getattr(
            spec, "attention_chunk_size", None
        )
        if hasattr(spec, "shapes"):
            state += size
        elif window:
            windows[window] = windows.get(window, 0.0) + size / spec.block_size
        else:
            growing += size / spec.block_size
    return {"growing": growing, "windows": windows, "state": state}


class LoggedError(logging.Handler):
    """What vLLM logs of an error and does not raise: a model's class that it cannot import."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.last = ""

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1]:
            lines = str(record.exc_info[1]).strip().splitlines()
            self.last = lines[-1] if lines else ""


def why(error: BaseException, heard: str) -> str:
    """An error in a line: of pydantic's, what the check said."""
    errors = getattr(error, "errors", None)
    text = str(errors()[0].get("msg")) if callable(errors) else str(error)
    text = text.removeprefix("Value error, ") or type(error).__name__
    return " ".join(f"{text} {heard}".split())[:SHOWN]


def answer(asked: dict[str, Any], own: Path) -> dict[str, Any]:
    """``stage``: what failed, with ``why``: the import, the configuration, the model, its cache."""
    found: dict[str, Any] = {"vllm": version("vllm"), "platform": "", "stage": "import"}
    heard = LoggedError()
    try:
        from vllm.platforms import current_platform  # type: ignore[import-not-found,unused-ignore]

        found["platform"] = current_platform.device_type
        logging.getLogger("vllm").addHandler(heard)
        found["stage"] = "configuration"
        engine = engine_config(asked["config"], asked, own)
        found["stage"] = "model"
        model = model_of(engine, own)
        found["weight_bytes"] = sum(size for _, size, _ in numbers(model))
        found["stage"] = "cache"
        found["cache"] = cache_of(engine)
        if engine.quant_config is not None:
            # Packed numbers are not counted: the same model in 16 bits has as many.
            plain = without(asked["config"], *QUANTIZATION)
            found["stage"] = "model without quantization"
            model = model_of(engine_config(plain, asked, own), own)
        found["parameters"] = sum(count for count, _, _ in numbers(model))
        found["experts"] = sum(count for count, _, expert in numbers(model) if expert)
        del found["stage"]
    except Exception as error:
        found["why"] = why(error, heard.last)
    return found


def main(asked: dict[str, Any]) -> None:
    os.nice(5)  # the node may serve
    with tempfile.TemporaryDirectory(prefix="orchestrate-classes-") as own:
        os.environ.update(OFFLINE | dict.fromkeys(OWN, own))
        found = answer(asked, Path(own))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[-1]))
