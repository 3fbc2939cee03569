"""Compiled kernels that outlive a boot: what nodes are told of them, and their kept archives.

On the node: node/kernel_cache.py. Taking an archive from a node: cluster/warm.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.core import paths
from orchestrator.core.files import write_json
from orchestrator.core.templating import render
from orchestrator.node import kernel_archive, kernel_cache
from orchestrator.node.paths import CACHE, ETC, KERNELS, KERNELS_IN_MEMORY, PYTHON
from orchestrator.node.resources import Resource, Step, service

if TYPE_CHECKING:
    from orchestrator.profile import Node, Profile
    from orchestrator.profile.serving import CompileCache

UNIT = "orchestrate-kernels.service"
CONFIG = f"{ETC}/kernels.json"
#: Below the web server's root, and below its address.
SHELF = "kernels"


@dataclass(frozen=True)
class WarmCache:
    """An archive of compiled kernels that nodes of its key are given."""

    key: str
    sha256: str
    size: int
    files: int
    node: str
    #: When it was taken, in seconds since 1970.
    time: float

    @property
    def file(self) -> str:
        return f"{self.sha256}.tar"


def environment(profile: Profile, node: Node) -> dict[str, str]:
    """The variables by which programs on a compute node find their caches."""
    caches = profile.serving.compile_cache
    if caches is None or profile.is_control(node):
        return {}
    found: dict[str, str] = {}
    for cache in caches.directories:
        found |= {cache.variable: f"{KERNELS}/{cache.variable}", **cache.env}
    return found


def resources(
    profile: Profile, node: Node, warm: Sequence[WarmCache], server: str
) -> Iterable[Resource]:
    """What brings a compute node's caches to where programs look. ``server``: a web address."""
    caches = profile.serving.compile_cache
    if caches is None:
        return
    config = wanted(profile, node, caches) | {
        "warm": [
            {"key": each.key, "sha256": each.sha256, "size": each.size,
             "url": f"{server}/{SHELF}/{each.file}"}
            for each in warm
        ],
    }  # fmt: skip
    code = f"{ETC}/kernel_cache.py"
    files = {
        CONFIG: json.dumps(config, indent=1) + "\n",
        code: source(kernel_cache),
        f"{ETC}/kernel_archive.py": source(kernel_archive),
        f"/etc/systemd/system/{UNIT}": render(UNIT, python=PYTHON, code=code, config=CONFIG),
    }
    yield from service(Step.BASE, UNIT, files)


def wanted(profile: Profile, node: Node, caches: CompileCache) -> dict[str, Any]:
    """What kernel_cache.py and kernel_archive.py are told of a node."""
    kind = profile.hardware.get(node.hardware or "")
    return {
        "variables": [cache.variable for cache in caches.directories],
        "account": profile.users.service,
        "cards": [card.id for card in kind.pci] if kind else [],
        "max_bytes": caches.max_size,
        "disk": CACHE,
        "memory": KERNELS_IN_MEMORY,
        "link": KERNELS,
    }


def source(module: Any) -> str:
    """A module's text, as nodes get it."""
    return Path(module.__file__).read_text(encoding="utf-8")


def shelf(cluster: str) -> Path:
    """Where a cluster's archives are served from."""
    return paths.served(cluster) / SHELF


def stored(cluster: str) -> tuple[WarmCache, ...]:
    """The archives that nodes are given, by key; those whose file is gone are not."""
    try:
        found = json.loads(_record(cluster).read_text())
    except FileNotFoundError:
        return ()
    caches = sorted((WarmCache(**each) for each in found), key=lambda cache: cache.key)
    return tuple(each for each in caches if (shelf(cluster) / each.file).is_file())


def keep(cluster: str, cache: WarmCache, archive: Path) -> None:
    """Give ``archive`` to nodes of its key, instead of the one before."""
    archive.chmod(0o644)  # the web server is nobody in particular
    archive.replace(shelf(cluster) / cache.file)
    others = [each for each in stored(cluster) if each.key != cache.key]
    _write(cluster, [*others, cache])


def forget(cluster: str, images: Iterable[str] = ()) -> list[WarmCache]:
    """Remove the archives of all images but these (ids); returns them."""
    kept_keys = tuple(f"{image[:16]}_" for image in images)
    before = stored(cluster)
    gone = [each for each in before if not each.key.startswith(kept_keys)] if kept_keys else before
    if gone or not before:
        _write(cluster, [each for each in before if each not in gone])
    return list(gone)


def _write(cluster: str, caches: Sequence[WarmCache]) -> None:
    """Write the record, then remove every file that it does not name."""
    if caches or _record(cluster).exists():
        write_json(_record(cluster), [asdict(each) for each in caches])
    named = {each.file for each in caches}
    home = shelf(cluster)
    for file in home.iterdir() if home.is_dir() else ():
        if file.name not in named:
            file.unlink()


def _record(cluster: str) -> Path:
    return paths.cluster(cluster) / "kernels.json"
