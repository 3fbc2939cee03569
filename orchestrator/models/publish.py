"""The model's files: built by Nix or brought from the hub, put where the control node's web server
hands them out."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from orchestrator.core import download, paths
from orchestrator.core.errors import UserError
from orchestrator.core.files import write_json
from orchestrator.core.foreign import ForeignDirectory
from orchestrator.image import store
from orchestrator.models import hub
from orchestrator.models.catalog import Model, ModelFile, missing_files

#: Beside what is handed out: where it is from, sizes and hashes. Hidden: it is not handed out.
RECORD = ".record.json"


def bring(model: Model, pull: str, line: Callable[[str], None]) -> Path:
    """The directory of the model's files: made by Nix, or what was brought from the hub.

    Raises UserError where Nix fails, or files of the hub are missing, which ``pull`` brings.
    """
    return brought(model, pull) if model.repository else build(model.name, line)


def brought(model: Model, pull: str) -> Path:
    """The directory of a model of the hub. Raises UserError where files are missing."""
    if missing := missing_files(model) or hub.unfinished(model.directory):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"the model {model.name!r} ({model.repository} at {model.revision[:12]}) is not on this"
            f" machine: {model.directory} has no {missing[0]}{more}",
            f"Run: {pull}",
        )
    return model.directory


def build(name: str, line: Callable[[str], None]) -> Path:
    """Let Nix make the model `name`; a model that is made already costs a second.

    Raises UserError where Nix fails.
    """
    link = paths.state() / "models" / name
    link.parent.mkdir(parents=True, exist_ok=True)
    words = [f"{paths.checkout()}#models.{name}", "--out-link", str(link)]
    store.build(words, line, what=f"making the model {name!r}")
    return link.resolve()


def publish(source: Path, cluster: str, name: str) -> tuple[ModelFile, ...]:
    """Put a model's files below the cluster's web root; returns them with their sha256.

    A file that is there with the same content stays; the others are linked, or copied where they
    are on another disk, beside and renamed. What was handed out before and is no longer is removed.
    Raises UserError where a file is a link that leads out of the model's directory.
    """
    home = _handed_out(cluster) / name
    known = {path: str(entry["sha256"]) for path, entry in hub.manifest(source).items()}
    before = _record(home)
    files = []
    made = ForeignDirectory(source)
    for inside in made.files():  # hidden ones are what a download keeps for itself
        with made.open(inside) as file:
            found = os.fstat(file.fileno())
            digest = known.get(inside) or hashlib.file_digest(file, "sha256").hexdigest()
            copy = home / inside
            if not (copy.is_file() and (_is(copy, found) or sha256(copy) == digest)):
                copy.parent.mkdir(parents=True, exist_ok=True)
                beside = copy.with_name(f".{copy.name}.{os.getpid()}")
                _link_or_copy(file, beside)
                beside.replace(copy)
            files.append(ModelFile(inside, digest, found.st_size))
    for gone in before.keys() - {file.path for file in files}:
        (home / gone).unlink(missing_ok=True)
    record = {
        "source": str(source),
        "files": {file.path: {"size": file.size, "sha256": file.sha256} for file in files},
    }
    if files:
        write_json(home / RECORD, record)
    return tuple(files)


def published(cluster: str, name: str) -> tuple[ModelFile, ...]:
    """What `publish` left, for verbs that change nothing: by its record, as long as sizes fit."""
    home = _handed_out(cluster) / name
    if record := _record(home):
        return tuple(
            ModelFile(path, str(entry["sha256"]), int(entry["size"]))
            for path, entry in record.items()
        )
    found = sorted(path for path in home.rglob("*") if path.is_file() and path.name[0] != ".")
    return tuple(
        ModelFile(str(path.relative_to(home)), sha256(path), path.stat().st_size) for path in found
    )


def handed_out(source: Path) -> dict[str, Path]:
    """By cluster, where the files of ``source`` are handed out."""
    found = {}
    for home in paths.state().glob("clusters/*"):
        for mark in _handed_out(home.name).glob(f"*/{RECORD}"):
            if json.loads(mark.read_text())["source"] == str(source):
                found[home.name] = mark.parent
    return found


def withdraw(cluster: str) -> None:
    """Hand out no model any more."""
    shutil.rmtree(_handed_out(cluster), ignore_errors=True)


def _handed_out(cluster: str) -> Path:
    return paths.served(cluster) / "models"


def _record(home: Path) -> dict[str, Any]:
    """The record's files; empty where there is none, or a file has another size since."""
    try:
        files: dict[str, Any] = json.loads((home / RECORD).read_text())["files"]
        fits = all((home / path).stat().st_size == each["size"] for path, each in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return files if fits else {}


def _is(path: Path, found: os.stat_result) -> bool:
    return os.path.samestat(path.stat(), found)


def _link_or_copy(file: BufferedReader, to: Path) -> None:
    """A model may have tens of GB: no second copy where the disk is the same."""
    if os.fstat(file.fileno()).st_mode & 0o004:  # the web server is nobody in particular
        with suppress(OSError), _open_directory("/proc/self/fd") as ours:
            # With a directory's descriptor only: else Python links what /proc has, not the file.
            os.link(str(file.fileno()), to, src_dir_fd=ours, follow_symlinks=True)
            return
    file.seek(0)
    with to.open("wb") as out:
        shutil.copyfileobj(file, out, download.CHUNK)
    to.chmod(0o644)


@contextmanager
def _open_directory(path: str) -> Iterator[int]:
    handle = os.open(path, os.O_PATH | os.O_DIRECTORY)
    try:
        yield handle
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """The file's sha256, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
