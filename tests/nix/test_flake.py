"""What users of Nix see of the flake: its outputs by name, and what `nix flake check` proves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import PROJECT
from support.flake import IMAGES, Checkout, evaluated, nix

from orchestrator.image import spec

pytestmark = pytest.mark.nix

SYSTEM = "x86_64-linux"
MODELS = sorted(path.parent.name for path in PROJECT.glob("models/*/config.json"))


def flat(names: list[str]) -> set[str]:
    return {name.replace(".", "_") for name in names}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The variables of an empty Nix store, and of a cache that knows no other store's paths."""
    home = tmp_path / "nix"
    yield {
        "XDG_CACHE_HOME": str(home / "cache"),
        "NIX_STORE_DIR": str(home / "store"),
        "NIX_STATE_DIR": str(home / "var"),
        "NIX_LOG_DIR": str(home / "log"),
        "NIX_CONF_DIR": str(home / "etc"),
        "NIX_CONFIG": "sandbox = false",  # the builder is Nix itself
    }
    for path in home.rglob("*"):  # a store is read-only
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(home, ignore_errors=True)


def test_images_and_models_are_shown_under_flat_names(store: dict[str, str]) -> None:
    """And showing them builds nothing."""
    said = nix("flake", "show", "--json", PROJECT, env=store).stdout
    outputs: dict[str, dict[str, dict[str, dict[str, Any]]]] = json.loads(said)
    packages, checks = outputs["packages"][SYSTEM], outputs["checks"][SYSTEM]
    assert set(packages) == flat([*IMAGES, *(f"model-{name}" for name in MODELS)])
    assert set(checks) == flat(
        [f"lock-{name}" for name in spec.names()]
        + [f"{kind}-{name}" for kind in ("image", "available") for name in IMAGES]
    )
    assert {each["type"] for each in (packages | checks).values()} == {"derivation"}
    assert not [*Path(store["NIX_STORE_DIR"]).glob("*.drv")]


def test_every_image_that_is_described_is_shown() -> None:
    assert set(IMAGES) | {*spec.SHARED, spec.BUILDERS} == {
        path.parent.name for path in PROJECT.glob("images/*/image.yml")
    }


@pytest.mark.parametrize("name", IMAGES)
def test_a_flat_name_is_the_same_image(name: str) -> None:
    for part in ("", ".minimal", ".available.base"):
        (other,) = flat([name])
        assert evaluated(f"{PROJECT}#{other}{part}") == evaluated(f"{PROJECT}#{name}{part}")


@pytest.mark.parametrize("name", MODELS)
def test_a_flat_name_is_the_same_model(name: str) -> None:
    assert evaluated(f"{PROJECT}#model-{name}") == evaluated(f"{PROJECT}#models.{name}")


def test_the_check_needs_nothing_that_is_fetched(store: dict[str, str], tree: Path) -> None:
    nix("flake", "check", f"path:{tree}", "--no-write-lock-file", env=store)
    made = [path.name.partition("-")[2] for path in Path(store["NIX_STORE_DIR"]).iterdir()]
    assert {f"lock-{name}" for name in spec.names()} <= set(made)
    assert not [name for name in made if name.endswith((".squashfs", ".deb", ".whl"))]


def first(kind: str, **changes: object) -> Callable[[dict[str, Any]], None]:
    return lambda lock: lock[kind][0].update(changes)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda lock: lock.update(schema=2), "schema is not 1"),
        (first("debs", sha256="0" * 63), "NAME: sha256 is not 64 hexadecimal digits"),
        (first("debs", store="a~b"), "NAME: Nix's store takes no such name"),
        (first("debs", size=None), "NAME: no size"),
        (first("debs", elsewhere=True), "NAME: no url, and it lies elsewhere"),
        (first("debs", name="zzz"), "debs are not sorted by name"),
        (
            lambda lock: lock["debs"].insert(0, lock["debs"][0]),
            "NAME is twice among debs; two files are STORE in the store",
        ),
        (
            lambda lock: lock["python"].update(version="3.99"),
            "python3.99-minimal is not among debs",
        ),
        (
            lambda lock: lock["system"].update(minimal=["absent"]),
            "system.minimal: absent is neither a wheel nor a source",
        ),
    ],
)
def test_a_lock_that_would_not_build_is_refused(
    tree: Path, change: Callable[[dict[str, Any]], None], problem: str
) -> None:
    checkout = Checkout(tree)
    lock = checkout.lock("pxe-sim")
    deb = lock["debs"][0]
    problem = problem.replace("NAME", deb["name"]).replace("STORE", deb["store"])
    change(lock)
    checkout.write("pxe-sim", lock)
    attribute = checkout.attribute(f"checks.{SYSTEM}.lock-pxe-sim.drvPath")
    said = nix("eval", "--raw", attribute, "--no-write-lock-file", ok=False).stderr
    assert f"lock-pxe-sim: {problem}" in said


def test_layers_that_are_not_the_parts_are_refused(tree: Path) -> None:
    file = tree / "images/lib/image.nix"
    text = file.read_text()
    assert text.count("mount = lock.system.environment;") == 1
    file.write_text(text.replace("mount = lock.system.environment;", ""))
    attribute = f"path:{tree}#checks.{SYSTEM}.image-pxe-sim.drvPath"
    said = nix("eval", "--raw", attribute, "--no-write-lock-file", ok=False).stderr
    assert "image-pxe-sim: layers are " in said


def names(function: str, value: str) -> Any:
    expression = f"(import {PROJECT}/images/lib/attrs.nix).{function} {value}"
    return json.loads(nix("eval", "--json", "--impure", "--expr", expression).stdout)


def test_prefixed() -> None:
    assert names('prefixed "a-"', '{ "b.c" = 1; }') == {"a-b.c": 1}


def test_flatten() -> None:
    assert names("flatten", '{ "pxe-0.1" = 1; pxe-sim = 2; }') == {"pxe-0_1": 1, "pxe-sim": 2}


def test_two_names_that_would_be_one_are_refused() -> None:
    expression = f'(import {PROJECT}/images/lib/attrs.nix).flatten {{ "a.b" = 1; a_b = 2; }}'
    said = nix("eval", "--json", "--impure", "--expr", expression, ok=False).stderr
    assert "a.b and a_b are both a_b" in said
