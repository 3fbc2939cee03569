"""`orchestrate image warm`: take the kernels that a node compiled, for other nodes like it.

What comes from a node is never unpacked here. It is read once, to see that it is no more than files
of known directories, and kept as one file under its sha256. A node is only asked if its host key is
certified, as for all else.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from orchestrator.cluster import kernels
from orchestrator.cluster.cluster import Cluster
from orchestrator.cluster.kernels import WarmCache
from orchestrator.core.errors import BadInput, UserError
from orchestrator.core.files import NEW
from orchestrator.core.sizes import human_size
from orchestrator.models.publish import sha256
from orchestrator.node import kernel_archive
from orchestrator.node.paths import KERNELS, PYTHON
from orchestrator.node.remote import PROBE_TIMEOUT
from orchestrator.profile import Node

#: Seconds for one archive over the network.
TIMEOUT = 600.0
#: Bytes that an archive may have beside its files' own: headers, names, padding.
OVERHEAD = 64 << 20


@dataclass(frozen=True)
class Warmed:
    """What was taken. ``fits``: nodes of its key; ``others``: by node, another key."""

    cache: WarmCache
    changed: bool
    fits: tuple[str, ...]
    others: Mapping[str, str]


def warm(cluster: Cluster, node: Node) -> Warmed:
    """Take the caches of ``node`` and give them to nodes of its key, at their next boot.

    Raises UserError where it has none, they are of another image, or are not what they should be.
    """
    profile = cluster.profile
    caches = profile.serving.compile_cache
    if caches is None:
        raise BadInput(
            f"{profile.where('serving')}: no compile_cache: nodes keep no compiled kernels",
            "Add serving.compile_cache; see: orchestrate doc keep-compiled-kernels",
        )
    if not cluster.driver.running(node):
        raise UserError(f"{node.name} is off", "Run: orchestrate up")
    home = kernels.shelf(profile.name)
    home.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=NEW, dir=home)
    archive = Path(name)
    try:
        _bring(cluster, node, handle, caches.max_size)
        key, files = _looked(cluster, node, archive, caches.max_size)
        digest = sha256(archive)
        before = {each.key: each for each in kernels.stored(profile.name)}.get(key)
        changed = before is None or before.sha256 != digest
        cache = WarmCache(key, digest, archive.stat().st_size, files, node.name, time.time())
        if changed:
            kernels.keep(profile.name, cache, archive)
        keys = _keys(cluster)
        return Warmed(
            cache if before is None or changed else before,
            changed,
            tuple(each for each, other in keys.items() if other == key),
            {each: other for each, other in keys.items() if other != key},
        )
    finally:
        archive.unlink(missing_ok=True)


def _bring(cluster: Cluster, node: Node, handle: int, limit: int) -> None:
    """The node's archive into an open file."""
    caches = cluster.profile.serving.compile_cache
    assert caches is not None
    want = kernels.wanted(cluster.profile, node, caches)
    # A module's text, not what the node has: it may be older, or changed.
    argv = [PYTHON, "-I", "-", "pack", json.dumps(want)]
    with os.fdopen(handle, "wb") as file, cluster.driver.network():
        cluster.remote(node).capture(
            argv,
            file,
            limit=limit + OVERHEAD,
            timeout=TIMEOUT,
            what="taking its compiled kernels",
            stdin=kernels.source(kernel_archive),
        )


def _looked(cluster: Cluster, node: Node, archive: Path, limit: int) -> tuple[str, int]:
    """The archive's key and number of files. Raises UserError where it cannot be used."""
    caches = cluster.profile.serving.compile_cache
    assert caches is not None
    variables = [cache.variable for cache in caches.directories]
    try:
        with archive.open("rb") as file:
            key, files, size = kernel_archive.checked(file, variables, limit)
    except kernel_archive.Refused as refused:
        raise UserError(
            f"{node.name}: its compiled kernels were refused: {refused}",
            "Nothing was kept. What runs on that node is not what should: look at it.",
        ) from None
    image, _, rest = key.partition("_")
    if image != cluster.image_id[:16]:
        raise UserError(
            f"{node.name} has kernels of another image: its key is {key},"
            f" nodes that boot now have {cluster.image_id[:16]}_{rest}",
            f"Restart it and serve the model once: orchestrate node restart {node.name}",
        )
    if not files:
        raise UserError(
            f"{node.name} has compiled nothing yet ({human_size(size)} in its caches)",
            "Serve the model once, then run this again: orchestrate up",
        )
    return key, files


def _keys(cluster: Cluster) -> dict[str, str]:
    """The key of each compute node that answers, by what its own link leads to."""
    found = {}
    with cluster.driver.network():
        for node in cluster.profile.compute_nodes:
            if cluster.driver.running(node):
                with suppress(UserError):
                    said = cluster.remote(node).run(["readlink", KERNELS], timeout=PROBE_TIMEOUT)
                    found[node.name] = said.out.strip().rpartition("/")[2]
    return found
