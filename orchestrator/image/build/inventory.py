"""The state of images on this machine (lock, inputs, build), and how to remove them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator import image
from orchestrator.core import paths
from orchestrator.image import downloads, lockfile, spec, store
from orchestrator.image.lockfile import File


@dataclass(frozen=True)
class ImageState:
    """One image's state on this machine. Sizes are in bytes, without the ``unsized`` missing files
    of unknown size."""

    name: str
    description: str
    lock: Literal["none", "stale", "ok"]
    inputs: int
    inputs_size: int
    missing: tuple[str, ...]
    missing_size: int
    unsized: int
    path: Path | None
    ident: str | None
    size: int


def state(name: str) -> ImageState:
    """The state of the image ``name``. Without Nix, all of its inputs count as missing."""
    described, lock = spec.load(name), lockfile.read(name)
    wanted = store.paths_of(lock) if lock else {}
    absent = store.missing(wanted) if shutil.which("nix-store") else set(wanted)
    lacking = [wanted[path] for path in wanted if path in absent]
    path = store.built(name)
    return ImageState(
        name=name,
        description=described.description,
        lock="none" if lock is None else "stale" if lockfile.is_stale(lock, described) else "ok",
        inputs=len(wanted),
        inputs_size=_size(wanted.values()),
        missing=tuple(file.file if file else "the seed" for file in lacking),
        missing_size=_size(lacking),
        unsized=sum(file is not None and file.size is None for file in lacking),
        path=path,
        ident=image.ident(path) if path and (path / image.MANIFEST).exists() else None,
        size=_tree_size(path) if path else 0,
    )


def _size(files: Iterable[File | None]) -> int:
    return sum(size or 0 for size in store.sizes(file for file in files if file))


def _tree_size(path: Path) -> int:
    """Bytes of all files below ``path``; links are followed."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


@dataclass(frozen=True)
class Released:
    """Bytes that are free now (``removed``), and that Nix can collect (``collectable``)."""

    removed: int
    collectable: int


def release(names: Sequence[str]) -> Released:
    """Remove downloads and garbage collection roots of the images ``names``.

    Nix then deletes their builds and inputs at its next 'nix-store --gc', unless others need them.
    """
    removed = collectable = 0
    for name in names:
        lock = lockfile.read(name)
        with downloads.alone():
            for file in lock.files if lock else ():
                for download in _downloaded(file):
                    removed += download.stat().st_size
                    download.unlink()
        if store.roots(name).is_dir():
            collectable += sum(_bytes(link) for link in store.roots(name).iterdir())
            shutil.rmtree(store.roots(name))
        if path := store.built(name):
            collectable += _tree_size(path)
        store.out_link(name).unlink(missing_ok=True)
        lists = paths.cache() / "apt" / name
        removed += _tree_size(lists)
        shutil.rmtree(lists, ignore_errors=True)
    return Released(removed, collectable)


def _downloaded(file: File) -> list[Path]:
    whole = downloads.place() / file.store
    return [path for path in (whole, whole.with_name(whole.name + ".part")) if path.exists()]


def _bytes(link: Path) -> int:
    target = link.resolve()
    return _tree_size(target) if target.is_dir() else target.stat().st_size if link.exists() else 0
