"""Write what transformers and vLLM say of model types: orchestrator/models/reading/*.json.

    tools/model_families.py VLLM [TYPE...]     with a Python that has torch and transformers

VLLM is the unpacked source or wheel of the locked vLLM, or the site-packages of an image that has
it (whose Python has torch and transformers, too); it is read, not imported. With TYPE, only
these are compared anew. transformers is the locked one. For each type
that vLLM's registry lists: the defaults that transformers fills in (but for those that it computes
from others), names and nested parts. Then orchestrator's own reading of the type's default
configuration is compared with transformers' own model, made without memory ("meta" device); a type
that stays further off than a percent says so (``off``), and so does every model of it.
"""

from __future__ import annotations

import ast
import itertools
import json
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))
os.environ["HF_HUB_OFFLINE"] = "1"
warnings.simplefilter("ignore")

import torch  # type: ignore[import-not-found,unused-ignore]  # noqa: E402
import transformers  # type: ignore[import-not-found,unused-ignore]  # noqa: E402
from transformers.models.auto import (  # type: ignore[import-not-found,unused-ignore]  # noqa: E402
    configuration_auto,
    modeling_auto,
)

from orchestrator.models.reading import facts, towers  # noqa: E402
from orchestrator.models.reading.description import describe  # noqa: E402

READING = PROJECT / "orchestrator" / "models" / "reading"
#: Percent that a reading may differ from transformers' own count.
ALLOWED = 1.0
SECONDS = 240
#: What no key of a configuration says, with where the locked transformers or vLLM says it.
STRUCTURE: dict[str, dict[str, Any]] = {
    kind: each["is"]
    for kind, each in json.loads((PROJECT / "tools" / "model_structure.json").read_text()).items()
}
#: What is tried, in this order, until a reading agrees.
Choice = tuple[dict[str, Any], str, tuple[Any, ...]]
CHOICES = {"matrices": (3, 2), "learned_positions": (False, True)}
TOWER_CHOICES = {"matrices": (2, 3), "positions": (True, False), "downsample": (False, True)}
ALONE = {"matrices": (2, 3), "positions": (True, False), "pooled": (False, True)}
#: What is not written down.
USUAL = {"learned_positions": False, "positions": True, "downsample": False, "pooled": False,
         "deep_joint": True}  # fmt: skip
#: What a type cannot be made without.
NEEDED: dict[str, dict[str, Any]] = {
    "nemotron": {"num_key_value_heads": 8},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
}


def main(vllm: Path, only: list[str]) -> None:
    engine = read_engine(vllm)
    aliases = engine.pop("aliases")
    write("engine.json", engine, ())
    classes = served({name.lower() for name in engine["architectures"]})
    types = facts.families()["types"]  # the very table that the reading looks into
    if not only:
        types.clear()
    for kind in sorted(classes) if not only else ():
        with limited(kind):
            collect(kind, types)
    for kind in sorted(types, key=lambda each: bool(types[each].get("parts"))):
        if only and kind not in only:
            continue
        types[kind]["off"] = True
        if kind not in classes:
            with limited(kind):
                alone(kind, types[kind])
            continue
        with limited(kind):
            names = classes.get(kind) or []
            if types[kind].get("parts"):
                names = sorted(names, key=lambda each: not each.endswith("Generation"))
            compare(kind, names[0] if names else "", types)
            if not types[kind].get("parts"):
                sparse(kind, types)
    for kind, names in classes.items():
        if kind in types:
            types[kind]["classes"] = names
    found = {"transformers": transformers.__version__, "aliases": aliases, "types": types}
    write("families.json", found, ("types",))


def read_engine(vllm: Path) -> dict[str, Any]:
    """vLLM's own lists: architectures, those it dropped, quantization methods."""
    registry = literals(vllm / "vllm/model_executor/models/registry.py")
    groups = ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS", "_EMBEDDING_MODELS",
              "_LATE_INTERACTION_MODELS", "_REWARD_MODELS", "_TOKEN_CLASSIFICATION_MODELS",
              "_SEQUENCE_CLASSIFICATION_MODELS", "_TRANSFORMERS_SUPPORTED_MODELS",
              "_TRANSFORMERS_BACKEND_MODELS")  # fmt: skip
    own = literals(vllm / "vllm/transformers_utils/config.py")["_CONFIG_REGISTRY"]
    methods = literals(vllm / "vllm/model_executor/layers/quantization/__init__.py")
    version = re.search(r"^Version: ([^\s+]+)", metadata(vllm), re.M)
    listed = {name for group in groups for name in registry.get(group, ())}
    classes = {name: kind for kind, name in configuration_auto.CONFIG_MAPPING_NAMES.items()}
    return {
        "vllm": version.group(1) if version else "",
        "architectures": sorted(listed),
        "fallback": sorted(generating() - listed - set(registry["_PREVIOUSLY_SUPPORTED_MODELS"])),
        "configs": sorted({*own, *configuration_auto.CONFIG_MAPPING}),
        "aliases": {
            name: classes[one]
            for name, one in sorted(own.items())
            if name not in configuration_auto.CONFIG_MAPPING and one in classes
        },
        "dropped": dict(sorted(registry["_PREVIOUSLY_SUPPORTED_MODELS"].items())),
        "elsewhere": dict(sorted(registry.get("_OOT_SUPPORTED_MODELS", {}).items())),
        "quantizations": sorted(methods["QuantizationMethods"]),
    }


def generating() -> set[str]:
    """transformers' classes that vLLM can try where it has none of its own."""
    tables = ("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT")
    named = [getattr(modeling_auto, f"MODEL_FOR_{each}_MAPPING_NAMES") for each in tables]
    found = [each for table in named for each in table.values()]
    return {one for each in found for one in (each if isinstance(each, tuple) else (each,))}


def metadata(vllm: Path) -> str:
    named = (f"vllm{end}-*.dist-info/METADATA" for end in ("", "_cpu"))
    files = (vllm / "PKG-INFO", *(file for each in named for file in vllm.glob(each)))
    return next((file.read_text() for file in files if file.is_file()), "")


def literals(file: Path) -> dict[str, Any]:
    """By name, a module's dictionaries (their keys, with values where those are plain) and the
    strings of a Literal."""
    found: dict[str, Any] = {}
    for node in ast.parse(file.read_text()).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        target = node.target if isinstance(node, ast.AnnAssign) else target
        if not isinstance(target, ast.Name):
            continue
        value = getattr(node, "value", None)
        if isinstance(value, ast.Dict):
            keys = [key.value for key in value.keys if isinstance(key, ast.Constant)]
            plain = [
                each.value if isinstance(each, ast.Constant) else None for each in value.values
            ]
            found[target.id] = dict(zip(keys, plain, strict=False))
        elif isinstance(value, ast.Call) and value.keywords:
            found[target.id] = {each.arg: each.value.value for each in value.keywords
                                if each.arg and isinstance(each.value, ast.Constant)}  # fmt: skip
        elif isinstance(value, ast.Subscript):
            found[target.id] = [each.value for each in ast.walk(value)
                                if isinstance(each, ast.Constant)]  # fmt: skip
    return found


def served(architectures: set[str]) -> dict[str, list[str]]:
    """By model type, transformers' classes that vLLM serves, in whatever case it writes them."""
    found: dict[str, list[str]] = {}
    for name in dir(modeling_auto):
        if re.fullmatch(r"MODEL_(FOR_\w+_)?MAPPING_NAMES", name):
            for kind, classes in getattr(modeling_auto, name).items():
                for one in classes if isinstance(classes, list | tuple) else (classes,):
                    if one.lower() in architectures and one not in found.setdefault(kind, []):
                        found[kind].append(one)
    generate = ("CausalLM", "Generation")
    return {kind: sorted(names, key=lambda each: not each.endswith(generate))
            for kind, names in found.items() if names}  # fmt: skip


def collect(kind: str, types: dict[str, Any], config: Any = None) -> None:
    """A type's defaults, names and nested parts, and the same of these."""
    if kind in types or kind not in configuration_auto.CONFIG_MAPPING:
        return
    made = configuration_auto.CONFIG_MAPPING[kind]
    plain = json_of(config or made())
    config = config or made()
    nested = {
        key: getattr(config, key)
        for key, value in plain.items()
        if isinstance(value, dict) and hasattr(getattr(config, key, None), "to_dict")
    }
    mapped = {name: own for name, own in (config.attribute_map or {}).items() if name in wanted()}
    entry: dict[str, Any] = {"defaults": defaults(made)}
    if pattern := plain.get("layer_types") or plain.get("layers_block_type"):
        entry["pattern"] = period(pattern)
    if isinstance(dense := plain.get("mlp_layer_types"), list):
        entry["dense_first"] = next((i for i, each in enumerate(dense) if each == "sparse"), 0)
    if mapped:
        entry["names"] = mapped
    if nested:
        entry["parts"] = {key: each.model_type for key, each in nested.items()}
        for below in ("vision_config", "audio_config", "text_config"):
            for key, each in nested.items():
                inner: Any = getattr(each, below, None)
                if hasattr(inner, "to_dict"):
                    entry["parts"][f"{key}.{below}"] = inner.model_type
                    collect(inner.model_type, types, inner)
    known = STRUCTURE.get(kind, {})
    entry["defaults"] |= known.get("defaults", {})
    types[kind] = {**known, **entry}
    for each in nested.values():
        if type(each).model_type:
            collect(each.model_type, types)


def wanted() -> set[str]:
    """The keys that the reading asks for."""
    source = "".join(file.read_text() for file in READING.glob("*.py"))
    asked = set(re.findall(r"\.(?:whole|get|flag|stated)\(\s*\"(\w+)\"", source))
    also = {name for names in facts.OTHER_NAMES.values() for name in names}
    return asked | also | set(facts.OTHER_NAMES) | {"model_type"} - {"layer_types"}


def json_of(config: Any) -> dict[str, Any]:
    """A configuration with all its keys; of a value for each layer that are all alike, one."""
    plain: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    for key, value in plain.items():
        if isinstance(value, list) and len(value) > 8 and all(isinstance(n, int) for n in value):
            plain[key] = value[0] if len(set(value)) == 1 else value
    return plain


def sparse(kind: str, types: dict[str, Any]) -> None:
    """Note what transformers computes and this reading does not, where that makes a difference:
    a config.json that leaves it out is then said to be estimated."""
    entry = types[kind]
    plain = json_of(configuration_auto.CONFIG_MAPPING[kind]())
    full, bare = describe(plain).parameters, describe({"model_type": kind}).parameters
    if full and 100 * abs(bare / full - 1) > ALLOWED:
        entry["derived"] = sorted(
            key for key, value in plain.items()
            if key in wanted() - {"model_type", "dtype"} and plain_value(value)
            and key not in entry["defaults"]
        )  # fmt: skip


def defaults(made: Any) -> dict[str, Any]:
    """Those that stay when others change: what is computed is left to the reading."""
    plain = json_of(made())
    own = {key: getattr(made, key, None) for key in wanted()}
    found = {key: value for key, value in {**own, **plain}.items()
             if key in wanted() and plain_value(value)}  # fmt: skip
    for name in ("layers_block_type", "tie_word_embeddings", "model_type", "dtype"):
        found.pop(name, None)
    for key in ("hidden_size", "num_attention_heads", "num_hidden_layers"):
        own = (made.attribute_map or {}).get(key, key)
        if isinstance(value := plain.get(own), int):
            try:
                other = json_of(made(**{own: 2 * value}))
            except Exception:  # it checks what fits; then nothing is learned
                continue
            found = {name: each for name, each in found.items()
                     if name == own or other.get(name) == each or name not in other}  # fmt: skip
    return found


def plain_value(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and len(value) <= 8 and all(isinstance(each, int) for each in value)
    return (isinstance(value, int | float) and value is not False) or isinstance(value, str)


def period(words: list[str]) -> list[str]:
    """The shortest turn that, repeated, gives the words (its last one may be cut)."""
    for size in range(1, len(words) + 1):
        if all(word == words[i % size] for i, word in enumerate(words)):
            return words[:size]
    return words


def compare(kind: str, name: str, types: dict[str, Any]) -> None:
    """Choose what agrees with transformers' own model, and note how far the best one is off."""
    made = configuration_auto.CONFIG_MAPPING[kind]
    cls = getattr(transformers, name, None)
    auto = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    cls = cls or getattr(transformers, str(auto), None)
    if cls is None:
        return
    entry = types[kind]
    if not entry.get("parts"):
        entry["tied"] = bool(getattr(made(), "tie_word_embeddings", False))
    needed = NEEDED.get(kind, {})
    variants = [counted(cls, made(**needed))]
    size = getattr(made(), "hidden_size", None)
    if isinstance(size, int) and not entry.get("parts"):
        try:
            variants.append(
                counted(cls, made(hidden_size=2 * size, tie_word_embeddings=False, **needed))
            )
        except Exception as error:
            print(f"{kind}: only its defaults are compared ({error})", file=sys.stderr)
    best = fit(
        choices(entry, types),
        lambda: max(abs(describe(config).parameters / count - 1) for config, count in variants),
    )
    entry.pop("off", None)
    if 100 * best > ALLOWED:
        entry["off"] = round(100 * best, 1)
    for part in entry.get("parts", {}).values() if 100 * best <= ALLOWED else ():
        if types.get(part, {}).get("off") is True:
            types[part].pop("off")  # it was compared with what it is a part of
    print(f"{kind}: {100 * best:.2f} % off", file=sys.stderr, flush=True)


def choices(entry: dict[str, Any], types: dict[str, Any]) -> list[Choice]:
    """What may be chosen for a type: of a model with a tower, what the tower is like."""
    if not entry.get("parts"):
        return [(entry, key, values) for key, values in CHOICES.items()]
    vision = types.get(entry["parts"].get("vision_config"), {})
    merging = "spatial_merge_size" in vision.get("defaults", {})
    fixed = vision.get("off") is not True  # it was compared alone
    found: list[Choice] = [
        (vision, key, (vision.get(key, values[0]),) if fixed else values)
        for key, values in TOWER_CHOICES.items()
        if key != "downsample" or merging
    ]
    return [*found, (entry, "deep_joint", (True, False))]


def fit(found: list[Choice], off: Callable[[], float]) -> float:
    """Choose what is least off, the first of what is equal; returns how far off that is."""
    best, chosen = float("inf"), tuple[Any, ...]()
    for picked in itertools.product(*(values for _, _, values in found)):
        for (where, key, _), value in zip(found, picked, strict=True):
            where[key] = value
        if round(seen := off(), 3) < round(best, 3):
            best, chosen = seen, picked
    for (where, key, _), value in zip(found, chosen, strict=True):
        where[key] = value
        if key != "matrices" and value == USUAL[key]:
            del where[key]
    return best


def alone(kind: str, entry: dict[str, Any]) -> None:
    """The same for a tower, which has neither words nor a head."""
    name = modeling_auto.MODEL_MAPPING_NAMES.get(kind)
    cls = getattr(transformers, str(name), None)
    config = configuration_auto.CONFIG_MAPPING[kind]()
    if cls is None or hasattr(config, "vocab_size") or hasattr(config, "spatial_merge_size"):
        return  # a merger belongs to its model, which is compared as a whole
    plain, count = counted(cls, config)
    found: list[Choice] = [(entry, key, values) for key, values in ALONE.items()]
    best = fit(found, lambda: abs(towers.stack(facts.of_part(plain, kind))[0] / count - 1))
    entry.pop("off", None)
    if 100 * best > ALLOWED:
        entry["off"] = round(100 * best, 1)
    print(f"{kind}: {100 * best:.2f} % off, alone", file=sys.stderr, flush=True)


def counted(cls: Any, config: Any) -> tuple[dict[str, Any], int]:
    for part in (config, *(each for each in vars(config).values() if hasattr(each, "to_dict"))):
        if not hasattr(part, "pad_token_id"):
            part.pad_token_id = None
    with torch.device("meta"):
        model = cls(config)
    sizes = {id(each): each.numel() for each in model.parameters()}
    plain = json_of(config)
    outside = model.get_output_embeddings()
    tied = outside is None or outside.weight is model.get_input_embeddings().weight
    for part in (plain, *(each for each in plain.values() if isinstance(each, dict))):
        part["tie_word_embeddings"] = tied  # the model's own says it in several places
    return plain, sum(sizes.values())


class limited:
    """Ends what takes too long or fails: some types make no model of their defaults."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __enter__(self) -> None:
        def end(*_: object) -> None:
            raise TimeoutError(f"{SECONDS} s")

        signal.signal(signal.SIGALRM, end)
        signal.alarm(SECONDS)

    def __exit__(self, kind: Any, error: Any, _: Any) -> bool:
        signal.alarm(0)
        if isinstance(error, Exception):
            print(f"{self.kind}: {type(error).__name__}: {error}"[:160], file=sys.stderr)
        return isinstance(error, Exception)


def write(name: str, document: dict[str, Any], spread: tuple[str, ...]) -> None:
    """One line a key; of those in ``spread``, one a key below, so that changes can be read."""
    lines = []
    for key, value in document.items():
        if key in spread:
            rows = ",\n".join(f'  "{each}": {json.dumps(entry, sort_keys=True)}'
                              for each, entry in sorted(value.items()))  # fmt: skip
            lines.append(f' "{key}": {{\n{rows}\n }}')
        else:
            lines.append(f' "{key}": {json.dumps(value)}')
    (READING / name).write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
