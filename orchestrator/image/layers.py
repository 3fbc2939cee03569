"""An image's layers, mounted once for all simulated machines: they share the page cache."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.core.run import run
from orchestrator.image import ident


@dataclass(frozen=True)
class Layers:
    """An image's layers, mounted below the directory `home`."""

    home: Path

    @property
    def ident_file(self) -> Path:
        """The file with the id of the mounted image."""
        return self.home / "image"

    def ident(self) -> str | None:
        """The id of the mounted image; None if none is mounted."""
        return self.ident_file.read_text() if self.ident_file.exists() else None

    def mount(self, image: Path) -> None:
        """Mount the layers that are not mounted yet."""
        present = mounts_below(self.home)
        for layer in layers_of(image):
            place = self.home / "layers" / layer["name"]
            place.mkdir(parents=True, exist_ok=True)
            if str(place) not in present:
                source = (image / layer["file"]).resolve()
                options = ["-t", "squashfs", "-o", "ro,loop"]
                run(["mount", *options, source, place], what=f"mount the layer {layer['name']}")
        (self.home / "manifest.json").write_bytes((image / "manifest.json").read_bytes())
        self.ident_file.write_text(ident(image))

    def places(self) -> list[Path]:
        """The layers' mount points, the lowest first."""
        return [self.home / "layers" / layer["name"] for layer in layers_of(self.home)]


def layers_of(image: Path) -> list[dict[str, Any]]:
    """The layers in an image's manifest, the lowest first: name, file, size, sha256 and more."""
    layers: list[dict[str, Any]] = json.loads((image / "manifest.json").read_text())["layers"]
    return layers


def mounts_below(directory: Path) -> list[str]:
    """Mount points at or below a directory."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    points = [line.split()[1].replace("\\040", " ") for line in lines]
    return [point for point in points if Path(point).is_relative_to(directory)]


def unmount_below(directory: Path) -> None:
    """Unmount everything at or below a directory, the topmost first."""
    for mounted in sorted(mounts_below(directory), reverse=True):
        run(["umount", "--lazy", mounted], what="unmount")
