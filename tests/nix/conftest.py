"""Fixtures that more than one file of this directory uses."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import PROJECT
from support.flake import Checkout, built

SIM = "pxe-sim"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the flake reads, to change."""
    return Checkout.copy(tmp_path / "tree").root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The simulated cluster's image as a node sees it: its layers, one over the other."""
    assert os.geteuid() == 0, "mounting layers needs root: run the tests as root"
    scratch = tmp_path_factory.mktemp("root")
    image = built(f"{PROJECT}#{SIM}", scratch / "result")
    layers = json.loads((image / "manifest.json").read_text())["layers"]
    mounted = []

    def mount(place: Path, *words: str | Path) -> None:
        place.mkdir(exist_ok=True)
        subprocess.run(["mount", *words, place], check=True)
        mounted.append(place)

    try:
        for layer in layers:
            file = (image / layer["file"]).resolve()
            mount(scratch / layer["name"], "-t", "squashfs", "-o", "ro,loop", file)
        lower = ":".join(str(scratch / layer["name"]) for layer in reversed(layers))
        mount(scratch / "root", "-t", "overlay", "-o", f"lowerdir={lower}", "overlay")
        for name in ("tmp", "home"):
            mount(scratch / "root" / name, "-t", "tmpfs", "-o", "mode=1777", "tmpfs")
        mount(scratch / "root/dev", "--bind", "/dev")
        mount(scratch / "root/dev/shm", "-t", "tmpfs", "-o", "mode=1777", "tmpfs")
        mount(scratch / "root/proc", "-t", "proc", "proc")
        mount(scratch / "root/sys", "--bind", "/sys")
        yield scratch / "root"
    finally:
        for place in reversed(mounted):
            subprocess.run(["umount", place], check=True)
