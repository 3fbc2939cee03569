"""A plugin of vLLM, on the first node of a copy: the copy's ranks go to its own nodes.

vLLM asks Ray for accelerators anywhere. Where several copies, or models, share one Ray, what starts
anew would take another one's node. ORCHESTRATE_NODES has the address of each rank's node, in order.
"""

from __future__ import annotations

import os
from typing import Any

#: How much of a node's own resource a bundle asks for: only a node with that address has any.
PART = 0.001


def pinned(bundles: list[dict[str, float]], addresses: list[str]) -> list[dict[str, float]]:
    """The bundles of a placement group, each on its node."""
    return [
        {**bundle, f"node:{address}": PART}
        for bundle, address in zip(bundles, addresses, strict=True)
    ]


def register() -> None:
    if not (named := os.environ.get("ORCHESTRATE_NODES")):
        return  # in a rank, which asks for nothing
    import ray.util  # type: ignore[import-not-found, unused-ignore]

    asked = ray.util.placement_group

    def placement_group(bundles: list[dict[str, float]], *args: Any, **words: Any) -> Any:
        return asked(pinned(bundles, named.split(",")), *args, **words)

    ray.util.placement_group = placement_group
