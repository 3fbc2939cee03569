"""The model's files: built by Nix or brought from the hub, put where the control node's web server
hands them out."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from orchestrator import paths
from orchestrator.errors import UserError
from orchestrator.image import store
from orchestrator.models import Model, missing_files
from orchestrator.run import stream
from orchestrator.state import ModelFile


def bring(model: Model, line: Callable[[str], None]) -> Path:
    """The directory of the model's files: made by Nix, or what was brought from the hub.

    Raises UserError where Nix fails, or files of the hub are missing.
    """
    return brought(model) if model.repository else build(model.name, line)


def brought(model: Model) -> Path:
    """The directory of a model of the hub. Raises UserError where files are missing."""
    if missing := missing_files(model):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"the model {model.name!r} ({model.repository} at {model.revision[:12]}) is not on this"
            f" machine: {model.directory} has no {missing[0]}{more}",
            "This version downloads no models; Hugging Face's own command does: "
            f"hf download {model.repository} --revision {model.revision}"
            f" --local-dir {model.directory}",
        )
    return model.directory


def build(name: str, line: Callable[[str], None]) -> Path:
    """Let Nix make the model `name`; a model that is made already costs a second.

    Raises UserError where Nix fails.
    """
    link = paths.state() / "models" / name
    link.parent.mkdir(parents=True, exist_ok=True)
    argv = ["nix", *store.options(), "--extra-experimental-features", "nix-command flakes", "build"]
    argv += [f"{paths.checkout()}#models.{name}", "--out-link", str(link), "-L"]
    stream([*argv, "--no-write-lock-file"], line, what=f"making the model {name!r}")
    return link.resolve()


def publish(source: Path, cluster: str, name: str) -> tuple[ModelFile, ...]:
    """Copy a model's files below the cluster's web root; returns them with their sha256.

    A file that is there with the same content stays; the others are written beside and renamed.
    """
    home = paths.served(cluster) / "models" / name
    files = []
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        inside = path.relative_to(source)
        if any(part.startswith(".") for part in inside.parts):
            continue  # what a download keeps for itself
        digest = sha256(path)
        copy = home / inside
        if not copy.is_file() or sha256(copy) != digest:
            copy.parent.mkdir(parents=True, exist_ok=True)
            beside = copy.with_name(f".{copy.name}.{os.getpid()}")
            shutil.copyfile(path, beside)
            beside.chmod(0o644)
            beside.replace(copy)
        files.append(ModelFile(str(inside), digest))
    return tuple(files)


def sha256(path: Path) -> str:
    """The file's sha256, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def published(cluster: str, name: str) -> tuple[ModelFile, ...]:
    """What `publish` left, by a look at the files: for verbs that change nothing."""
    home = paths.served(cluster) / "models" / name
    found = sorted(path for path in home.rglob("*") if path.is_file() and path.name[0] != ".")
    return tuple(ModelFile(str(path.relative_to(home)), sha256(path)) for path in found)
