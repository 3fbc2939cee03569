"""Store paths, computed here and by Nix itself; the seed's directory and its hash."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from orchestrator import image
from orchestrator.core.errors import UserError
from orchestrator.image import seed, store
from orchestrator.image.lockfile import Deb


def a_deb(name: str, content: bytes) -> Deb:
    return Deb(
        name="a",
        version="1",
        architecture="all",
        path=f"pool/{name}",
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        store=name,
    )


#: It only computes: no store is opened, which may be root's.
NIX_STORE = ("nix-store", "--store", "dummy://")


def test_a_known_path() -> None:
    """From `nix-store --print-fixed-path sha256` of Nix 2.8."""
    path = store.path_of_file(a_deb("hello.txt", b"hello\n"))
    assert path == Path("/nix/store/gy454w1cxaq731grqwylhzf4pp9r5izh-hello.txt")


@pytest.mark.skipif(shutil.which("nix-store") is None, reason="compares with Nix")
@pytest.mark.parametrize("name", ["a.deb", "b_1.0+b1-2_amd64.deb", "c-1-py3-none-any.whl"])
def test_paths_are_those_that_nix_computes(name: str) -> None:
    entry = a_deb(name, name.encode())
    argv = [*NIX_STORE, "--print-fixed-path", "sha256", entry.sha256, name]
    printed = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
    assert str(store.path_of_file(entry)) == printed


@pytest.mark.skipif(shutil.which("nix-hash") is None, reason="compares with Nix")
@pytest.mark.parametrize("size", [0, 1, 8, 1001])
def test_the_seed_is_hashed_and_named_as_nix_does(tmp_path: Path, size: int) -> None:
    content = bytes(range(256)) * 4
    directory = tmp_path / seed.STORE_NAME
    seed.lay_out(content[:size], directory)
    argv = ["nix-hash", "--type", "sha256", str(directory)]
    printed = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
    assert seed.nar_hash(content[:size]) == printed
    argv = [*NIX_STORE, "--print-fixed-path", "--recursive", "sha256", printed, seed.STORE_NAME]
    path = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
    assert str(store.path_of_seed(printed)) == path


def test_a_package_without_the_seeds_file_is_an_error(tmp_path: Path) -> None:
    deb = tmp_path / "a.deb"
    deb.write_bytes(b"!<arch>\n")
    with pytest.raises(UserError, match="no file 'bin/busybox'"):
        seed.extract(deb, "bin/busybox")
    deb.write_bytes(b"something else")
    with pytest.raises(UserError, match="not a Debian package"):
        seed.extract(deb, "bin/busybox")


def test_an_image_is_known_by_its_manifest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not an image"):
        image.ident(tmp_path)
    (tmp_path / image.MANIFEST).write_text("{}")
    assert image.ident(tmp_path) == hashlib.sha256(b"{}").hexdigest()


def test_built_is_none_where_the_target_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path))
    assert store.built("demo") is None
    target = tmp_path / "target"
    target.mkdir()
    store.out_link("demo").parent.mkdir()
    store.out_link("demo").symlink_to(target)
    assert store.built("demo") == target
    target.rmdir()
    assert store.built("demo") is None
