"""Lay out what the control node serves to booting machines, and switch to it by one rename."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.core import paths
from orchestrator.core.errors import UserError
from orchestrator.image.layers import layers_of
from orchestrator.provision.netboot import images
from orchestrator.provision.netboot.document import document, grub_cfg
from orchestrator.provision.netboot.images import Image, ImageChoice

if TYPE_CHECKING:
    from orchestrator.profile import Profile

#: Below the served directory: a link to the directory that counts.
CURRENT = "netboot"
#: In that directory: the boot service's document, and the TFTP root.
DOCUMENT, LOADERS = "boot.json", "loaders"
#: Where the signed GRUB looks for its configuration, below the TFTP root.
GRUB_CFG = "grub/grub.cfg"
#: What a loader that has no HTTP gets by TFTP.
BOOT_FILES = ("kernel", "initrd")


def publish(profile: Profile, choice: ImageChoice, user_ca_public: str) -> bool:
    """Serve the chosen image to the profile's nodes; whether anything changed.

    All is written beside, then a link is renamed: whoever asks gets the old or the new. Raises
    UserError where the profile wants a late layer that the image does not have, or starts with.
    """
    assert choice.current is not None
    source = images.directory(profile.name, choice.current.id)
    check_late_layers(profile, choice.current, source)
    texts = {DOCUMENT: _json(document(profile, choice, user_ca_public))}
    directory = f"images/{choice.current.id}"
    if profile.boot.secure:
        texts[f"{LOADERS}/{GRUB_CFG}"] = grub_cfg(profile, choice.current, f"/{directory}")
    digest = hashlib.sha256(_json(texts).encode()).hexdigest()[:16]
    served = paths.served(profile.name)
    link, place = served / CURRENT, served / f".{CURRENT}-{digest}"
    if link.is_symlink() and str(link.readlink()) == place.name and place.is_dir():
        return False
    beside = served / f".{CURRENT}-new-{os.getpid()}"
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(source / LOADERS, beside / LOADERS, copy_function=_link)
    if profile.boot.secure:
        (beside / LOADERS / directory).mkdir(parents=True)
        for name in BOOT_FILES:
            images.link_or_copy(source / name, beside / LOADERS / directory / name)
    for name, text in texts.items():
        (beside / name).parent.mkdir(parents=True, exist_ok=True)
        (beside / name).write_text(text)
    shutil.rmtree(place, ignore_errors=True)
    beside.rename(place)
    _switch(link, place.name)
    for old in served.glob(f".{CURRENT}-*"):
        if old != place:
            shutil.rmtree(old)
    return True


def check_late_layers(profile: Profile, image: Image, source: Path) -> None:
    """Raises UserError for a late layer that the image does not have, or starts with.

    An image from before layers could be late starts with all of them, whatever the profile says.
    """
    layers = {str(layer["name"]): "mount" in layer for layer in layers_of(source)}
    possible = [name for name, mounted in layers.items() if mounted]
    for number, name in enumerate(profile.boot.late_layers):
        if name not in layers or (possible and name not in possible):
            raise UserError(
                f"{profile.where('boot', 'late_layers', number)}: the image {image.name!r} has no"
                f" layer {name!r} that can be late",
                f"Layers that may: {', '.join(possible) or 'none'}",
            )


def _switch(link: Path, target: str) -> None:
    beside = link.with_name(f".{link.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    beside.symlink_to(target)
    beside.replace(link)


def _link(source: str, target: str) -> str:
    images.link_or_copy(Path(source), Path(target))
    return target


def _json(value: object) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"
