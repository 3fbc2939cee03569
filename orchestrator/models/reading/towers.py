"""What a model has beside its decoder: towers that see or hear, and what joins them to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.models.reading.facts import Facts, of_part

#: Parts of a config.json that are towers.
TOWERS = (
    "vision_config",
    "audio_config",
    "encoder_config",
    "sound_config",
    "thinker_config.vision_config",
    "thinker_config.audio_config",
)


def towers(config: Mapping[str, Any], family: Mapping[str, Any], hidden: int) -> dict[str, int]:
    """Weights by part, with what projects it to the decoder's ``hidden``."""
    found = {}
    for path in TOWERS:
        part: Any = config
        for step in path.split("."):
            part = part.get(step) if isinstance(part, Mapping) else None
        if isinstance(part, Mapping):
            f = of_part(part, family.get("parts", {}).get(path, ""))
            if size := tower(f, hidden, Facts(config, family)):
                found[path.split(".")[-1].removesuffix("_config")] = size
    return found


def tower(f: Facts, hidden: int, outer: Facts) -> int:
    """Weights of a transformer over patches or sound, and of what follows it."""
    size, width = stack(f)
    return size + _joint(f, width, hidden, outer) if size else 0


def stack(f: Facts) -> tuple[int, int]:
    """(weights, width) of a tower alone; nothing where its config does not say how deep."""
    depth = f.whole("num_hidden_layers") or f.whole("depth") or f.whole("encoder_layers")
    width = f.whole("embed_dim") if f.whole("mlp_ratio") else None  # Qwen2-VL names them so
    width = width or f.whole("hidden_size") or f.whole("d_model") or f.whole("width")
    depth = depth or f.whole("layers")
    if not depth or not width:
        return 0, 0
    inner = f.whole("intermediate_size") or f.whole("encoder_ffn_dim")
    if f.family.get("downsample"):  # GLM's names: the other width is its merger's
        inner = f.whole("out_hidden_size")
    if not inner:
        inner = int(width * (f.get("mlp_ratio") or 4))
    size: int = depth * (4 * width * width + f.family.get("matrices", 2) * width * inner)
    pooled = (
        f.family.get("pooled") and f.get("vision_use_head") is not False
    )  # SigLIP's: attention and MLP once more
    return size + _ends(f, width) + (size // depth if pooled else 0), width


def _ends(f: Facts, width: int) -> int:
    """What turns patches or sound into the first layer's input."""
    if bands := f.whole("num_mel_bins"):
        return 3 * width * (bands + width) + width * (f.whole("max_source_positions") or 0)
    patch = f.get("patch_size") or 0
    patch = patch[0] if isinstance(patch, list) else patch
    channels = f.whole("num_channels") or f.whole("in_channels") or 3
    size = width * channels * patch * patch * (f.whole("temporal_patch_size") or 1)
    places = f.whole("num_position_embeddings") or 0
    image = f.get("image_size")
    image = image[0] if isinstance(image, list) else image
    if not places and image and patch and f.family.get("positions", True):
        places = (image // patch) ** 2 + 1
    return size + width * places


def _joint(f: Facts, width: int, hidden: int, outer: Facts) -> int:
    """The projector: Qwen's merger of neighbours, else two linear layers."""
    if f.whole("num_mel_bins"):
        return width * hidden
    out = f.whole("out_hidden_size") or hidden
    if merge := f.whole("spatial_merge_size"):
        wide = width * merge * merge
        out = hidden if f.whole("embed_dim") and f.whole("mlp_ratio") else out
        if f.family.get("downsample"):  # GLM's: a convolution, then a gated MLP
            return wide * out + out * out + 3 * out * (f.whole("intermediate_size") or out)
        mergers = 1 + len(f.get("deepstack_visual_indexes") or ())
        return mergers * (wide * wide + wide * out)
    first = width
    if ratio := outer.get("downsample_ratio"):  # InternVL: neighbours side by side
        first = width * round(1 / ratio) ** 2
    merged = (outer.whole("spatial_merge_size") or 0) ** 2 * width * width  # Mistral's
    deep = outer.family.get("deep_joint", True)
    return merged + first * hidden + (hidden * hidden if deep else 0)
