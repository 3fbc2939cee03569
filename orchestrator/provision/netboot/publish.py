"""Write the files that the control node serves to booting machines; switch to them atomically."""

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
from orchestrator.provision import secure_boot
from orchestrator.provision.boot_parameters import OWN, boots_shim, command_line, signed_image
from orchestrator.provision.identity import node_files
from orchestrator.provision.netboot import images, signed
from orchestrator.provision.netboot.document import document, grub_cfg
from orchestrator.provision.netboot.images import Image, ImageChoice

if TYPE_CHECKING:
    from orchestrator.profile import Profile
    from orchestrator.provision.secure_boot import SecureBootKey

#: In the served directory: a link to the current set of files.
CURRENT = "netboot"
#: In that set: the boot service's document, and the TFTP root.
DOCUMENT, LOADERS = "boot.json", "loaders"
#: The path below the TFTP root at which the signed GRUB looks for its configuration.
GRUB_CFG = "grub/grub.cfg"
#: The files that a loader without HTTP fetches by TFTP.
BOOT_FILES = ("kernel", "initrd")


def publish(profile: Profile, choice: ImageChoice, user_ca_public: str) -> bool:
    """Serve the chosen image to the profile's nodes. Returns whether anything changed.

    A new set of files is written, then a link to it renamed, so that a request gets either the old
    set or the new one. Raises UserError for a late layer that the image cannot load late, and if it
    shall be signed and cannot be.
    """
    assert choice.current is not None
    source = images.directory(profile.name, choice.current.id)
    check_late_layers(profile, choice.current, source)
    texts = {DOCUMENT: _json(document(profile, choice, user_ca_public))}
    directory = f"images/{choice.current.id}"
    if boots_shim(profile):
        texts[f"{LOADERS}/{GRUB_CFG}"] = grub_cfg(profile, choice.current, f"/{directory}")
    key = secure_boot.find(profile.name) if profile.boot.secure == OWN else None
    inputs = [texts, _signed_inputs(profile, choice.current, key)]
    digest = hashlib.sha256(_json(inputs).encode()).hexdigest()[:16]
    served = paths.served(profile.name)
    link, place = served / CURRENT, served / f".{CURRENT}-{digest}"
    if link.is_symlink() and str(link.readlink()) == place.name and place.is_dir():
        return False
    beside = served / f".{CURRENT}-new-{os.getpid()}"
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(source / LOADERS, beside / LOADERS, copy_function=_link)
    if key:
        _sign(profile, choice.current, user_ca_public, key, beside / LOADERS)
    if boots_shim(profile):
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


def _signed_inputs(profile: Profile, image: Image, key: SecureBootKey | None) -> dict[str, str]:
    """What decides over signed images, beside boot.json; empty without a key."""
    nodes = profile.compute_nodes if key else ()
    lines = {node.name: command_line(profile, node, image.id) for node in nodes}
    return lines | ({"": key.fingerprint} if key else {})


def _sign(
    profile: Profile, image: Image, user_ca_public: str, key: SecureBootKey, loaders: Path
) -> None:
    """Write a signed image for each node."""
    parts = signed.read(images.directory(profile.name, image.id), image.id)
    for node in profile.compute_nodes:
        files = node_files(profile, node, user_ca_public)
        program = parts.assemble(command_line(profile, node, image.id), files)
        key.sign(program, loaders / signed_image(node))


def check_late_layers(profile: Profile, image: Image, source: Path) -> None:
    """Raises UserError for a late layer that the image lacks, or that has no mount point there.

    An old image in which no layer has a mount point is accepted: it starts with all its layers.
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
