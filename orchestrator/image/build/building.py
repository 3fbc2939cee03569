"""Build an image: check for everything that could be missing, then let Nix build."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orchestrator import image
from orchestrator.core import paths
from orchestrator.core.download import existing_parent
from orchestrator.core.errors import UserError
from orchestrator.core.run import run
from orchestrator.core.sizes import human_size
from orchestrator.image import lockfile, spec, store
from orchestrator.image.lockfile import Lock

#: The first Nix with flakes.
OLDEST_NIX = (2, 4)

#: The disk space of a build, as a multiple of its inputs: unpacked trees, and layers about as large
#: as the inputs. A cautious estimate.
SPACE_FACTOR = 3

#: Build as many parts of an image in parallel as there are cores; Nix's default is one.
MAX_JOBS = "auto"

#: The files and directories that belong to the flake.
FLAKE_FILES = ("flake.nix", "images", "models")

#: The most missing files that a message names.
SHOWN = 10


@dataclass(frozen=True)
class Built:
    """A built image: its store path and its id."""

    path: Path
    ident: str


def build(name: str, line: Callable[[str], None]) -> Built:
    """Build the image ``name``, protected from Nix's garbage collection.

    ``line`` is called with each line of Nix's progress. Raises UserError if Nix, the lock or inputs
    are missing, the disk is too small, Nix fails, or ``name`` is not an image but a part that
    images are built with.
    """
    if name in (*spec.SHARED, spec.BUILDERS):
        raise UserError(
            f"{name!r} is not an image: images are built with it",
            f"It is fetched and built along with an image that needs it: {', '.join(_images())}",
        )
    require_flakes()
    locks = lockfile.with_shared(name)
    require_inputs(name, locks)
    require_known_to_git()
    require_space(locks)
    link = store.out_link(name)
    link.parent.mkdir(parents=True, exist_ok=True)
    words = [f"{paths.checkout()}#{name}", "--out-link", str(link), "--max-jobs", MAX_JOBS]
    store.build(words, line, what=f"building the image {name!r}")
    path = link.resolve()
    return Built(path, image.ident(path))


def _images() -> list[str]:
    """The images of the checkout, without the parts that they share."""
    return [name for name in spec.names() if name not in (*spec.SHARED, spec.BUILDERS)]


def require_flakes() -> None:
    """Raises UserError if Nix is missing or too old for flakes."""
    store.require_nix()
    said = run(["nix", "--version"]).out.strip()
    version = re.search(r"(\d+)\.(\d+)\S*$", said)
    if version is None or (int(version[1]), int(version[2])) < OLDEST_NIX:
        raise UserError(
            f"{said!r} cannot build flakes: {'.'.join(map(str, OLDEST_NIX))} or later is needed",
            "Install a newer Nix: https://nixos.org/download",
        )


def require_inputs(name: str, locks: dict[str, Lock]) -> None:
    """Raises UserError with the names of the inputs that the store lacks, if any."""
    wanted = {path: file for lock in locks.values() for path, file in store.paths_of(lock).items()}
    absent = store.missing(wanted)
    if not absent:
        return
    files = [file.file if file else "the seed" for path, file in wanted.items() if path in absent]
    more = [f"and {len(files) - SHOWN} more"] if len(files) > SHOWN else []
    raise UserError(
        f"{len(files)} of {len(wanted)} inputs of the image {name!r} are not in the Nix store:\n"
        + "\n".join(f"  {file}" for file in [*files[:SHOWN], *more]),
        f"Run: orchestrate image fetch {name}",
    )


def require_known_to_git() -> None:
    """Raises UserError if files of the build are untracked by git: Nix would ignore them."""
    if not (paths.checkout() / ".git").exists() or shutil.which("git") is None:
        return
    argv = ["git", "-C", str(paths.checkout()), "ls-files", "--others", "--exclude-standard"]
    unknown = run([*argv, *FLAKE_FILES], what="asking git for files that it does not know").out
    if unknown.strip():
        files = unknown.splitlines()
        raise UserError(
            "Nix sees only files that git tracks. Not tracked:\n"
            + "\n".join(f"  {file}" for file in files[:SHOWN]),
            f"Run: git -C {paths.checkout()} add {' '.join(FLAKE_FILES)}",
        )


def require_space(locks: dict[str, Lock]) -> None:
    """Raises UserError if the store's disk has too little free space for the build."""
    inputs = store.sizes(file for lock in locks.values() for file in lock.files)
    needed = SPACE_FACTOR * sum(size or 0 for size in inputs)
    disk = existing_parent(store.directory())
    free = shutil.disk_usage(disk).free
    if needed > free:
        raise UserError(
            f"not enough space at {disk}: a build may need {human_size(needed)}, "
            f"{human_size(free)} are free",
            "Free some: orchestrate image gc, nix-collect-garbage",
        )
