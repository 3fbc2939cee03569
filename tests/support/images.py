"""Images of the tests, and files with a bit turned."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.image import ident, store

PROJECT = Path(__file__).resolve().parents[2]


def build(attribute: str) -> Path:
    """The store path of a part of the flake."""
    argv = ["nix", *store.options(), "--extra-experimental-features", "nix-command flakes", "build"]
    argv += ["--no-link", "--json", f"{PROJECT}#{attribute}"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Path(json.loads(done.stdout)[0]["outputs"]["out"])


def register(name: str, image: Path) -> None:
    """Let a directory be the built image of this name."""
    link = store.out_link(name)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(image)


def variant(image: Path, directory: Path) -> str:
    """The same image with another id, as a new build would be; returns the id."""
    shutil.copytree(image, directory, copy_function=os.symlink)
    manifest = json.loads((image / "manifest.json").read_text())
    manifest["epoch"] += 1
    (directory / "manifest.json").unlink()
    text = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
    (directory / "manifest.json").write_text(text)
    return ident(directory)


def copies(directory: Path, original: Path) -> list[Path]:
    """All files below `directory` that hold what `original` does (itself too), no links."""
    size, digest = original.stat().st_size, digest_of(original)
    files = [path for path in directory.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if path.stat().st_size == size and digest_of(path) == digest]


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def turn_bit(source: Path, target: Path) -> None:
    """Copy a file with one bit in its middle turned."""
    shutil.copyfile(source, target)
    with target.open("r+b") as file:
        file.seek(source.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    target.chmod(0o644)


@contextmanager
def sized(disk: Path, size: int, mounted: Path) -> Iterator[list[Path]]:
    """The files of this size on a node's cache disk, which is mounted for it."""
    subprocess.run(["mount", "-o", "loop", disk, mounted], check=True)
    try:
        yield [
            each for each in mounted.rglob("*") if each.is_file() and each.stat().st_size == size
        ]
    finally:
        subprocess.run(["umount", mounted], check=True)


def damage_in(disk: Path, size: int, mounted: Path) -> None:
    """Turn one bit of the file of this size on a node's cache disk."""
    with sized(disk, size, mounted) as (file,):
        changed = file.with_name("changed")
        turn_bit(file, changed)
        changed.replace(file)


def hashes_in(disk: Path, size: int, mounted: Path) -> list[str]:
    """The hashes of the files of this size on a node's cache disk."""
    with sized(disk, size, mounted) as files:
        return [hashlib.sha256(each.read_bytes()).hexdigest() for each in files]
