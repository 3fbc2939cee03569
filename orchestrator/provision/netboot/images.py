"""Which image a cluster's machines boot: the current one, the previous one, and their files.

The choice is in the cluster's image.json. The files are in served/images/ID/, as hard links to
Nix's files: so they stay when Nix collects garbage or a new build replaces the image.
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
    """An image: its id, and its name in images/."""

    id: str
    name: str


@dataclass(frozen=True)
class ImageChoice:
    """The current and the previous image.

    `held`: a person went back to the previous image, so `up` does not switch to a newer one.
    """

    current: Image | None = None
    previous: Image | None = None
    held: bool = False

    def moved(self, to: Image) -> ImageChoice:
        """The choice with `to` as the current image. If it is current already, only `held` ends."""
        if self.current == to:
            return replace(self, held=False)
        return ImageChoice(current=to, previous=self.current)

    def back(self) -> ImageChoice:
        """Go back to the previous image. Raises UserError if there is none."""
        if self.previous is None:
            raise UserError(
                "there is no previous image: this cluster has only used one",
                "Choose one: orchestrate image use NAME",
            )
        return ImageChoice(current=self.previous, previous=self.current, held=True)


def read(cluster: str) -> ImageChoice:
    """The saved choice; an empty one if there is none."""
    try:
        found = json.loads(_record(cluster).read_text())
    except FileNotFoundError:
        return ImageChoice()
    current, previous = (Image(**found[key]) if found[key] else None for key in KEYS)
    return ImageChoice(current, previous, found["held"])


KEYS = ("current", "previous")


def write(cluster: str, choice: ImageChoice) -> None:
    """Save a choice, atomically."""
    write_json(_record(cluster), asdict(choice))


def _record(cluster: str) -> Path:
    return paths.cluster(cluster) / "image.json"


def directory(cluster: str, image: str) -> Path:
    """Where the files of the image with this id are served from."""
    return paths.served(cluster) / "images" / image


def publish(cluster: str, name: str, source: Path) -> Image:
    """Link or copy a built image's files into the served directory, unless they are there.

    Raises UserError if that fails, such as when the disk is full.
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
    """Hard-link a file; on another file system, copy it."""
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
