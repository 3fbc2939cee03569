"""The flake under test: Nix's commands, and a copy of the checkout to change."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from orchestrator.image import store
from support import PROJECT
from support.generated import File

IMAGES = sorted(path.parent.name for path in PROJECT.glob("images/pxe-*/lock.json"))


def nix(
    *words: str | Path, ok: bool = True, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a nix command, with `env` added to the environment; `ok` says whether it has to work."""
    argv = ["nix", *store.options(), "--extra-experimental-features", "nix-command flakes"]
    done = subprocess.run(
        [*argv, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=1700,
        check=False,
        env=os.environ | (env or {}),
    )
    assert (done.returncode == 0) == ok, done.stderr
    return done


@cache
def bring(name: str) -> None:
    """Have the inputs of an image, but those that no mirror has, in the store."""
    argv = [sys.executable, "-m", "orchestrator", "image", "fetch", name, "--available"]
    done = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def built(flake: str, link: Path) -> Path:
    """The store path of an attribute, kept from collection by a link."""
    nix("build", flake, "--out-link", link, "--no-write-lock-file")
    return link.resolve()


def evaluated(flake: str) -> str:
    """An attribute's derivation, without building it."""
    return nix("eval", "--raw", f"{flake}.drvPath", "--no-write-lock-file").stdout


@dataclass(frozen=True)
class Checkout:
    """A copy of what the flake reads, with images of the test's own."""

    root: Path

    @classmethod
    def copy(cls, root: Path) -> Checkout:
        argv = ["git", "-C", str(PROJECT), "ls-files", "-z", "flake.nix", "images", "models"]
        files = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        for file in files.rstrip("\0").split("\0"):
            source, copy = PROJECT / file, root / file
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, copy, follow_symlinks=False)
        return cls(root)

    def lock(self, name: str) -> dict[str, Any]:
        """The lock of an image, to change."""
        document: dict[str, Any] = json.loads(self.path(name).read_text())
        return document

    def write(self, name: str, lock: dict[str, Any]) -> None:
        """Write a lock; an image that was not there is there then."""
        self.path(name).parent.mkdir(exist_ok=True)
        self.path(name).write_text(json.dumps(lock))

    def path(self, name: str) -> Path:
        return self.root / "images" / name / "lock.json"

    def attribute(self, name: str) -> str:
        return f"path:{self.root}#{name}"

    def image(self, model: str, name: str, **files: Sequence[File]) -> None:
        """An image with the settings of another one, and just these debs, wheels and sources."""
        lock = self.lock(model)
        lists = {kind: [file.entry for file in files.get(kind, ())] for kind in ("debs", "wheels")}
        lists |= {kind: [file.entry for file in listed] for kind, listed in files.items()}
        self.write(name, lock | {"sources": []} | lists)

    def fails(self, attribute: str) -> str:
        """What Nix says where an attribute cannot be built."""
        flake = self.attribute(attribute)
        return nix("build", flake, "--no-link", "--no-write-lock-file", "-L", ok=False).stderr
