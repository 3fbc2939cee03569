"""Building with the real Nix: a flake of one derivation stands in for the real one."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from support import PROJECT
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


#: Says into $out what a build can see: a file of this machine, and its network interfaces.
LOOKS = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
int main(int count, char **words) {
    char line[512];
    FILE *out = fopen(getenv("out"), "w"), *links = fopen("/proc/net/dev", "r");
    FILE *file = fopen(words[1], "r");
    fprintf(out, "file: %s; links:", file ? "yes" : "no");
    while (links && fgets(line, sizeof line, links))
        if (strchr(line, ':')) fprintf(out, " %s", strtok(line, " :"));
    return fclose(out);
}
"""
LOOKING = """
{
  outputs = _: {
    legacyPackages.x86_64-linux.demo-0."1" = derivation {
      name = "demo";
      system = "x86_64-linux";
      builder = "${./looks}/looks";
      args = [ "FILE" ];
    };
  };
}
"""
#: Runs its words where no namespaces can be made.
NO_NAMESPACES = """
for kind in user mnt pid net; do echo 0 >/proc/sys/user/max_${kind}_namespaces; done
exec "$@"
"""


@pytest.fixture
def looking(image: Box) -> Box:
    """'demo-0.1' is what its build could see; Nix's own settings are those that it comes with."""
    image.env["NIX_CONFIG"] = ""
    (image.root / "a file").touch()
    source = image.root / "looks.c"
    source.write_text(LOOKS)
    home = image.root / "checkout/looks"
    home.mkdir()
    subprocess.run(["gcc", "-static", "-o", home / "looks", source], check=True)
    flake = LOOKING.replace("FILE", str(image.root / "a file"))
    (image.root / "checkout/flake.nix").write_text(flake)
    return image


def seen(box: Box) -> str:
    return (box.root / "state/images/demo-0.1").read_text()


def nix_build(box: Box, *unshared: str, **env: str) -> subprocess.CompletedProcess[str]:
    """As 'image build' has Nix build; what is built is a file, and no image."""
    program = (
        "import pathlib, sys; from orchestrator.image import store;"
        "where = store.out_link('demo-0.1'); where.parent.mkdir(parents=True, exist_ok=True);"
        "words = [sys.argv[1] + '#demo-0.1', '--out-link', str(where)];"
        "store.build(words, print, what='building')"
    )
    argv = [*unshared, sys.executable, "-c", program, str(box.root / "checkout")]
    return subprocess.run(
        argv, env=box.env | env, cwd=PROJECT, capture_output=True, text=True, check=False
    )


def test_a_build_sees_no_file_and_no_network_of_this_machine(looking: Box) -> None:
    done = nix_build(looking)
    assert done.returncode == 0, done.stderr
    assert seen(looking) == "file: no; links: lo"
    assert "warning: builds are not sandboxed" not in done.stdout


def test_without_a_sandbox_nothing_is_built_unless_that_is_chosen(looking: Box) -> None:
    unshared = ["unshare", "--user", "--map-root-user", "sh", "-euc", NO_NAMESPACES, "sh"]
    failed = nix_build(looking, *unshared)
    assert failed.returncode != 0
    assert "Nix cannot run builds in a sandbox on this machine" in failed.stderr
    done = nix_build(looking, *unshared, NIX_CONFIG="sandbox = false")
    assert done.returncode == 0, done.stderr
    assert "warning: builds are not sandboxed" in done.stdout
    assert seen(looking).startswith("file: yes")
