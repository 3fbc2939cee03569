"""Building with the real Nix: a flake of one derivation stands in for the real one."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest
from support.box import Box

from orchestrator.image import spec
from orchestrator.image.lockfile import Lock, text
from orchestrator.image.spec import Spec

pytestmark = pytest.mark.nix

DEBIAN = {"suite": "stable", "components": ["main"], "packages": []}
FLAKE = """
{
  outputs = _: {
    legacyPackages.x86_64-linux.demo-0."1" = derivation {
      name = "demo";
      system = "x86_64-linux";
      builder = "/bin/sh";
      args = [ "-c" "echo working on it; /bin/mkdir $out; echo '{}' > $out/manifest.json" ];
    };
  };
}
"""


@pytest.fixture
def image(box: Box) -> Box:
    """The image 'demo-0.1', whose lock names no file, and a flake that builds it."""
    box.env["NIX_CONFIG"] = "sandbox = false"
    described = Spec.model_validate(
        {"description": "", "date": "2026-01-01T00:00:00Z", "debian": DEBIAN}
    )
    empty = Lock(
        inputs=described.digest(),
        epoch=described.epoch,
        python=None,
        system={},
        debs=(),
        wheels=(),
    )
    for name in (*spec.SHARED, "demo-0.1"):
        box.write(name, debian=DEBIAN)
        box.lock(name).write_text(text(empty))
    (box.root / "checkout/flake.nix").write_text(FLAKE)
    return box


def test_an_image_is_built_kept_and_known_by_its_manifest(image: Box) -> None:
    built = image.run("build", "demo-0.1")
    assert built.returncode == 0, built.stderr
    assert "working on it" in built.stderr
    ident = hashlib.sha256(b"{}\n").hexdigest()
    assert ident in built.stdout

    again = image.json("build", "demo-0.1")
    assert again["id"] == ident
    assert (Path(again["path"]) / "manifest.json").is_file()
    (row,) = image.json("ls", "demo-0.1")
    assert (row["id"], row["path"], row["size"]) == (ident, again["path"], 3)

    subprocess.run(["nix-store", "--gc"], env=image.env, check=True, capture_output=True)
    assert Path(again["path"]).is_dir()
    image.run("gc", "demo-0.1")
    subprocess.run(["nix-store", "--gc"], env=image.env, check=True, capture_output=True)
    assert not Path(again["path"]).exists()


def test_a_build_that_fails_shows_what_nix_said(image: Box) -> None:
    flake = image.root / "checkout/flake.nix"
    flake.write_text(FLAKE.replace("/bin/mkdir $out;", "echo the reason; exit 3;"))
    failed = image.run("build", "demo-0.1")
    assert failed.returncode == 1
    assert "the reason" in failed.stderr
    assert "building the image 'demo-0.1' failed" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_files_that_git_does_not_know_are_named(image: Box) -> None:
    checkout = image.root / "checkout"
    subprocess.run(["git", "init", "-q", checkout], check=True)
    failed = image.run("build", "demo-0.1")
    assert failed.returncode == 1
    assert "images/demo-0.1/lock.json" in failed.stderr
    assert "add flake.nix images models" in failed.stderr


def test_missing_inputs_are_listed_with_the_command_that_brings_them(image: Box) -> None:
    lock = image.lock("demo-0.1")
    sha256 = hashlib.sha256(b"").hexdigest()
    entry = (
        '{"name": "a", "version": "1", "architecture": "all", "path": "pool/a_1_all.deb", '
        f'"size": 1, "sha256": "{sha256}", "store": "a_1_all.deb"}}'
    )
    lock.write_text(lock.read_text().replace('"debs": []', f'"debs": [{entry}]'))
    failed = image.run("build", "demo-0.1")
    assert failed.returncode == 1
    assert "a_1_all.deb" in failed.stderr
    assert "Run: orchestrate image fetch demo-0.1" in failed.stderr


def test_an_image_that_is_not_there_lists_those_that_are(image: Box) -> None:
    failed = image.run("build", "nothing")
    assert "there is no image 'nothing'" in failed.stderr
    assert "demo-0.1" in failed.stderr


def test_what_images_are_built_with_is_none(image: Box) -> None:
    failed = image.run("build", "tools")
    assert failed.returncode == 1
    assert "'tools' is not an image" in failed.stderr
    assert "needs it: demo-0.1" in failed.stderr


def test_an_image_without_lock_says_so(image: Box) -> None:
    image.lock("demo-0.1").unlink()
    failed = image.run("build", "demo-0.1")
    assert "Run: orchestrate image lock demo-0.1" in failed.stderr
    (row,) = image.json("ls", "demo-0.1")
    assert row["lock"] == "none"
