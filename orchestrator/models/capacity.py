"""Whether a model has room in its nodes' memory, known before anything is sent there.

A node makes sure of it itself before the first byte comes (``holds`` in resources.py). This is for
people who write a profile.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.core import paths
from orchestrator.core.nodeset import fold, grouped
from orchestrator.core.sizes import human_size
from orchestrator.image import MANIFEST
from orchestrator.models import hub

if TYPE_CHECKING:
    from orchestrator.models.catalog import Model
    from orchestrator.profile.model import Node, Profile

#: What is written on a node is in a tmpfs, which takes this part of memory (images/initrd/init
#: mounts it with the kernel's own limit, half).
WRITABLE = 0.5


def misfits(profile: Profile, model: int, image: int, memory: Mapping[str, int]) -> Iterator[str]:
    """Why the model does not fit, a line for nodes alike.

    ``model`` and ``image`` in bytes; ``memory``: bytes by node, of those where it is known. What
    vLLM itself takes is not counted.
    """
    if profile.serving.model_cache != "memory":
        return
    store = profile.ray.object_store_memory
    taken = model + image + store
    for size, names in grouped(memory).items():
        told = f"{fold(names)}: {profile.serving.model} takes {human_size(model)} of memory"
        if model > size * WRITABLE:
            most = human_size(size * WRITABLE)
            yield f"{told}, but files may take {most} at most, half of the node's memory"
        elif taken > size:
            parts = f"the image {human_size(image)}, Ray's object store {human_size(store)}"
            yield f"{told}, {parts}: {human_size(taken)} of {human_size(size)}"


#: What to do about all of them.
ADVICE = "serving.model_cache: disk keeps model and image on a disk of the node"


def of_nodes(profile: Profile, seen: Mapping[str, int]) -> dict[str, int]:
    """Bytes of memory by compute node: as the node said, else as the profile demands it."""
    found = {node.name: seen.get(node.name) or _demanded(profile, node)
             for node in profile.compute_nodes}  # fmt: skip
    return {name: size for name, size in found.items() if size}


def _demanded(profile: Profile, node: Node) -> int | None:
    return profile.hardware[node.hardware].memory if node.hardware else None


def of_model(model: Model) -> int:
    """Bytes of its files on this machine; 0 where they are not here."""
    if model.repository:
        return sum(int(entry["size"]) for entry in hub.manifest(model.directory).values())
    made = paths.state() / "models" / model.name
    return sum(file.stat().st_size for file in made.glob("*") if file.is_file())


def of_image(image: Path | None) -> int:
    """Bytes of memory that a built image's layers take on a node without a disk for them."""
    if image is None:
        return 0
    layers = json.loads((image / MANIFEST).read_text())["layers"]
    trees = sum(int(layer["verity"]["size"]) for layer in layers if "verity" in layer)
    return sum(int(layer["size"]) for layer in layers) + trees
