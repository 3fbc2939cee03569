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
    """The layers below the directory `home`."""

    home: Path

    @property
    def ident_file(self) -> Path:
        """Holds the id of the image that is mounted."""
        return self.home / "image"

    def ident(self) -> str | None:
        """The id of the image that is mounted; None where none is."""
        return self.ident_file.read_text() if self.ident_file.exists() else None

    def mount(self, image: Path) -> None:
        """Mount what is not mounted yet."""
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
        """Where they are mounted, the lowest first."""
        return [self.home / "layers" / layer["name"] for layer in layers_of(self.home)]


def layers_of(image: Path) -> list[dict[str, Any]]:
    """What an image's manifest says of its layers, the lowest first: name, file, size, sha256."""
    layers: list[dict[str, Any]] = json.loads((image / "manifest.json").read_text())["layers"]
    return layers


def mounts_below(directory: Path) -> list[str]:
    """Mount points at or below a directory."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    points = [line.split()[1].replace("\\040", " ") for line in lines]
    return [point for point in points if Path(point).is_relative_to(directory)]


def unmount_below(directory: Path) -> None:
    """Unmount all of it, what lies on top first."""
    for mounted in sorted(mounts_below(directory), reverse=True):
        run(["umount", "--lazy", mounted], what="unmount")
