"""Which image a cluster's machines boot: the current one, the one before, and their files.

image.json of the cluster says which; served/images/ID/ has the files, as links to those that Nix
built, so that neither Nix's collector nor a new build takes them away from machines that boot.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from orchestrator.core import paths
from orchestrator.core.errors import UserError
from orchestrator.core.files import write_json
from orchestrator.image import ident


@dataclass(frozen=True)
class Image:
    """An image by its id, and the name that it was built under."""

    id: str
    name: str


@dataclass(frozen=True)
class ImageChoice:
    """`held`: somebody went back to an older image, and `up` does not go forward by itself."""

    current: Image | None = None
    previous: Image | None = None
    held: bool = False

    def moved(self, to: Image) -> ImageChoice:
        """The choice with another current image; the same one only lets go of a hold."""
        if self.current == to:
            return replace(self, held=False)
        return ImageChoice(current=to, previous=self.current)

    def back(self) -> ImageChoice:
        """The choice before. Raises UserError where there is none."""
        if self.previous is None:
            raise UserError(
                "there is no previous image: this cluster has only used one",
                "Choose one: orchestrate image use NAME",
            )
        return ImageChoice(current=self.previous, previous=self.current, held=True)


def read(cluster: str) -> ImageChoice:
    """What was chosen last."""
    try:
        found = json.loads(_record(cluster).read_text())
    except FileNotFoundError:
        return ImageChoice()
    current, previous = (Image(**found[key]) if found[key] else None for key in KEYS)
    return ImageChoice(current, previous, found["held"])


KEYS = ("current", "previous")


def write(cluster: str, choice: ImageChoice) -> None:
    """Keep a choice; whole or not at all."""
    write_json(_record(cluster), asdict(choice))


def _record(cluster: str) -> Path:
    return paths.cluster(cluster) / "image.json"


def directory(cluster: str, image: str) -> Path:
    """Where the files of the image with this id are served from."""
    return paths.served(cluster) / "images" / image


def publish(cluster: str, name: str, source: Path) -> Image:
    """Lay a built image's files out to be served; nothing to do where they are.

    Raises UserError where the disk is full.
    """
    image = Image(ident(source), name)
    place = directory(cluster, image.id)
    if place.is_dir():
        return image
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = place.with_name(f".{image.id}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        for file in sorted(path for path in source.rglob("*") if path.is_file()):
            copy = beside / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(file.resolve(), copy)
        beside.rename(place)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise UserError(
            f"the image {name!r} cannot be published in {place.parent}: {error.strerror}",
            "Free space there, or move the state directory with ORCHESTRATE_STATE.",
        ) from None
    return image


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file; where that is another file system, a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        target.chmod(0o644)


def forget_others(cluster: str, choice: ImageChoice) -> None:
    """Remove the files of all images but the current and the previous one."""
    kept = {image.id for image in (choice.current, choice.previous) if image}
    served = paths.served(cluster) / "images"
    for place in served.iterdir() if served.is_dir() else ():
        if place.name not in kept:
            shutil.rmtree(place)
