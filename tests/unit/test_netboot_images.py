"""Which image machines boot, and how it is laid out: atomic, idempotent, back again."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import DATA

from orchestrator.cluster.images import publish_image
from orchestrator.core import paths
from orchestrator.core.errors import UserError
from orchestrator.image import ident
from orchestrator.models.profiles import load
from orchestrator.profile import Profile
from orchestrator.provision.netboot import images
from orchestrator.provision.netboot import publish as publishing
from orchestrator.provision.netboot.images import Image, ImageChoice, read
from orchestrator.provision.netboot.publish import publish

GOLDEN = DATA / "golden"
Build = Callable[[str], Path]


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Makes small images, in a state of the test's own."""
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "state"))

    def make(content: str) -> Path:
        image = tmp_path / f"built-{content}"
        (image / "loaders").mkdir(parents=True)
        for name in (
            "kernel",
            "initrd",
            "base.squashfs",
            "loaders/ipxe.efi",
            "loaders/shimx64.efi",
        ):
            (image / name).write_text(f"{name} {content}")
        layers = [{"name": "base"}, {"name": "python", "mount": "/opt/venvs/orchestrate"}]
        manifest = {"name": content, "layers": layers}
        (image / "manifest.json").write_text(json.dumps(manifest))
        return image

    return make


@pytest.fixture
def profile() -> Profile:
    return load(GOLDEN / "sim/profile.yml")


def lay_out(profile: Profile, source: Path) -> Image:
    return images.publish(profile.name, source.name, source)


def current(profile: Profile) -> dict[str, object]:
    """boot.json, as the boot service reads it."""
    link = paths.served(profile.name) / publishing.CURRENT
    document: dict[str, object] = json.loads((link / publishing.DOCUMENT).read_text())
    return document


def everything(profile: Profile) -> dict[str, int]:
    """Each path that is served, with its inode."""
    root = paths.served(profile.name)
    return {str(path.relative_to(root)): path.lstat().st_ino for path in root.rglob("*")}


def test_an_image_is_laid_out_as_links_once(build: Build, profile: Profile) -> None:
    source = build("a")
    image = lay_out(profile, source)
    place = images.directory(profile.name, image.id)
    assert image.id == ident(source)
    assert (place / "kernel").stat().st_ino == (source / "kernel").stat().st_ino
    assert (place / "loaders/ipxe.efi").read_text() == "loaders/ipxe.efi a"
    before = everything(profile)
    lay_out(profile, source)
    assert everything(profile) == before


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_where_links_cannot_be_made_files_are_copied(
    code: int, build: Build, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    source = build("a")
    kernel = images.directory(profile.name, lay_out(profile, source).id) / "kernel"
    assert kernel.read_text() == "kernel a"
    assert kernel.stat().st_ino != (source / "kernel").stat().st_ino
    assert kernel.stat().st_mode & 0o777 == 0o644


def test_an_interrupted_layout_is_no_image_and_is_made_anew(
    build: Build, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, real = build("a"), images.link_or_copy

    def interrupted(origin: Path, target: Path) -> None:
        if origin.name == "kernel":
            raise KeyboardInterrupt
        real(origin, target)

    monkeypatch.setattr(images, "link_or_copy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lay_out(profile, source)
    assert not images.directory(profile.name, ident(source)).exists()
    monkeypatch.setattr(images, "link_or_copy", real)
    image = lay_out(profile, source)
    images.forget_others(profile.name, ImageChoice(current=image))
    assert [path.name for path in (paths.served(profile.name) / "images").iterdir()] == [image.id]


def test_a_full_disk_is_told_and_leaves_nothing(
    build: Build, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(images, "link_or_copy", full)
    with pytest.raises(UserError, match="No space left"):
        lay_out(profile, build("a"))
    assert list((paths.served(profile.name) / "images").iterdir()) == []


def test_the_switch_is_one_rename_and_the_same_again_changes_nothing(
    build: Build, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = lay_out(profile, build("a")), lay_out(profile, build("b"))
    assert publish(profile, ImageChoice(current=first), "CA")
    before = everything(profile)
    assert not publish(profile, ImageChoice(current=first), "CA")
    assert everything(profile) == before

    def interrupted(link: Path, target: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(publishing, "_switch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            publish(profile, ImageChoice(current=second, previous=first), "CA")
    assert current(profile)["image"] == {"id": first.id, "name": first.name}
    assert publish(profile, ImageChoice(current=second, previous=first), "CA")
    assert current(profile)["image"] == {"id": second.id, "name": second.name}
    assert current(profile)["previous"] == {"id": first.id, "name": first.name}
    left = [path.name for path in paths.served(profile.name).glob(f".{publishing.CURRENT}*")]
    assert len(left) == 1


def test_a_change_of_the_nodes_is_published(build: Build, profile: Profile) -> None:
    choice = ImageChoice(current=lay_out(profile, build("a")))
    publish(profile, choice, "CA")
    fewer = profile.model_copy(update={"compute_nodes": profile.compute_nodes[:1]})
    assert publish(fewer, choice, "CA")
    nodes = current(profile)["nodes"]
    assert isinstance(nodes, dict) and len(nodes) == 1


@pytest.mark.parametrize("name", ["base", "pyhton"])
def test_a_layer_that_cannot_be_late_is_refused_before_anything_is_served(
    build: Build, profile: Profile, tmp_path: Path, name: str
) -> None:
    text = profile.path.read_text().replace("boot:\n", f"boot:\n  late_layers: [{name}]\n")
    (tmp_path / "sim.yml").write_text(text)
    changed = load(tmp_path / "sim.yml")
    choice = ImageChoice().moved(lay_out(changed, build("one")))
    with pytest.raises(UserError, match=rf"late_layers.*'built-one' has no layer '{name}'") as told:
        publish(changed, choice, "CA")
    assert f"{tmp_path / 'sim.yml'}:" in told.value.message
    assert told.value.hint == "Layers that may: python"
    assert not (paths.served(changed.name) / "netboot").exists()


def test_an_image_from_before_there_were_late_layers_is_served(
    build: Build, profile: Profile
) -> None:
    old = build("old")
    layers = [{"name": "base"}, {"name": "python"}]
    (old / "manifest.json").write_text(json.dumps({"name": "old", "layers": layers}))
    assert publish(profile, ImageChoice().moved(lay_out(profile, old)), "CA")


def test_secure_boots_files_are_below_the_tftp_root(build: Build) -> None:
    profile = load(GOLDEN / "secure/profile.yml")
    image = lay_out(profile, build("a"))
    publish(profile, ImageChoice(current=image), "CA")
    root = paths.served(profile.name) / publishing.CURRENT / publishing.LOADERS
    config = (root / publishing.GRUB_CFG).read_text()
    named = {word.rstrip(";") for word in config.split() if word.startswith("/images/")}
    assert {Path(name).name for name in named} == {"kernel", "initrd"}
    assert all((root / name.lstrip("/")).is_file() for name in named)
    assert (root / "shimx64.efi").is_file()


def test_a_second_image_makes_the_first_the_one_before_and_older_ones_go(
    build: Build, profile: Profile
) -> None:
    made = [lay_out(profile, build(name)) for name in "abc"]
    choice = ImageChoice()
    for image in made:
        choice = choice.moved(image)
    assert choice == ImageChoice(current=made[2], previous=made[1])
    assert choice.moved(made[2]) == choice
    images.forget_others(profile.name, choice)
    left = {path.name for path in (paths.served(profile.name) / "images").iterdir()}
    assert left == {made[1].id, made[2].id}


def test_going_back_is_held_until_an_image_is_chosen() -> None:
    first, second = Image("1" * 64, "a"), Image("2" * 64, "b")
    choice = ImageChoice().moved(first).moved(second).back()
    assert choice == ImageChoice(current=first, previous=second, held=True)
    assert choice.back() == ImageChoice(current=second, previous=first, held=True)
    assert choice.moved(first) == replace(choice, held=False)
    with pytest.raises(UserError, match="has only used one"):
        ImageChoice(current=first).back()


def test_the_choice_is_kept(build: Build, profile: Profile) -> None:
    assert images.read(profile.name) == ImageChoice()
    choice = ImageChoice(Image("1" * 64, "a"), None, held=True)
    images.write(profile.name, choice)
    assert images.read(profile.name) == choice


def test_what_was_built_is_served_unless_another_image_is_held(
    build: Build, profile: Profile
) -> None:
    before = lay_out(profile, build("one"))
    trust = SimpleNamespace(user_ca_public="ssh-ed25519 AAAA")
    cluster: Any = SimpleNamespace(profile=profile, image=build("two"), trust=trust)
    served = []
    for held in (True, False):
        cluster.choice = ImageChoice(current=before, held=held)
        publish_image(cluster)
        served.append(read(profile.name))
    kept, moved = served
    assert kept.current == before and kept.held
    assert moved.current != before and moved.previous == before
