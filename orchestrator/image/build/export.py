"""Keep an image's locked files in a directory: mirrors remove a file once it is replaced."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.core import download
from orchestrator.core.errors import UserError
from orchestrator.core.sizes import human_size
from orchestrator.image import lockfile, store
from orchestrator.image.build.sources import exported_name
from orchestrator.image.lockfile import File


@dataclass(frozen=True)
class Exported:
    """``files`` were written, ``size`` bytes in all; ``present`` were in the directory before."""

    directory: Path
    files: int
    size: int
    present: int


def export(name: str, directory: Path, *, available: bool = False) -> Exported:
    """Copy every locked file of the image ``name``, and of what all share, from the Nix store into
    ``directory``, each named by its hash; 'image fetch --from' reads them there.

    What is there and whole stays, and so does what other images and older locks left there.
    ``available`` leaves out the files that no mirror and no index has. Raises UserError where a
    lock is missing or stale, the store lacks a file or has a damaged one, or the disk is too small.
    """
    store.require_nix()
    locks = lockfile.with_shared(name)
    if available:
        locks = {each: lock.available() for each, lock in locks.items()}
    wanted = {store.path_of_file(file): file for lock in locks.values() for file in lock.files}
    _require_there(name, wanted)
    directory.mkdir(parents=True, exist_ok=True)
    lacking = {path: file for path, file in wanted.items() if not _is_whole(directory, file)}
    size = sum(path.stat().st_size for path in lacking)
    if size > (free := shutil.disk_usage(directory).free):
        raise UserError(
            f"not enough space at {directory}: {human_size(size)} needed, {human_size(free)} free",
            "Nothing was written. Choose another directory.",
        )
    for path, file in lacking.items():
        _copy(path, directory, file)
    return Exported(directory, len(lacking), size, len(wanted) - len(lacking))


def _require_there(name: str, wanted: Mapping[Path, File]) -> None:
    if absent := store.missing(wanted):
        files = sorted(wanted[path].file for path in absent)
        raise UserError(
            f"{len(files)} of {len(wanted)} files are not in the Nix store:\n"
            + "\n".join(f"  {file}" for file in files),
            f"Run: orchestrate image fetch {name}",
        )


def _is_whole(directory: Path, file: File) -> bool:
    target = directory / exported_name(file)
    return target.is_file() and download.digest(target) == file.sha256


def _copy(path: Path, directory: Path, file: File) -> None:
    """Copy a file of the store; under its final name it is whole."""
    target = directory / exported_name(file)
    part = target.with_name(f"{target.name}.part")
    shutil.copyfile(path, part)
    if download.digest(part) != file.sha256:
        part.unlink()
        raise UserError(
            f"{path} is damaged: it is not the file that its name says",
            f"Run: nix-store --repair-path {path} (or nix-store --delete, then fetch it again)",
        )
    part.replace(target)
