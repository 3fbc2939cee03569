"""The image as Nix builds it: its parts, the same bytes twice, what a change and a gap cost."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from orchestrator.image import lockfile, store

pytestmark = pytest.mark.nix

PROJECT = Path(__file__).resolve().parents[2]
IMAGES = sorted(path.parent.name for path in PROJECT.glob("images/pxe-*/lock.json"))
LAYERS = ("base", "python", "config")
PARTS = (*LAYERS, *(f"verity.{layer}" for layer in LAYERS), "kernel", "initrd")
LOADERS = {"undionly.kpxe", "ipxe.efi", "snponly.efi", "shimx64.efi", "grubx64.efi"}


def nix(*words: str | Path, ok: bool = True) -> subprocess.CompletedProcess[str]:
    argv = ["nix", *store.options(), "--extra-experimental-features", "nix-command flakes"]
    done = subprocess.run(
        [*argv, *map(str, words)], capture_output=True, text=True, timeout=1700, check=False
    )
    assert (done.returncode == 0) == ok, done.stderr
    return done


def built(flake: str, link: Path) -> Path:
    nix("build", flake, "--out-link", link, "--no-write-lock-file")
    return link.resolve()


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.fixture(scope="module", params=IMAGES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def image(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(f"{PROJECT}#{name}", tmp_path_factory.mktemp("image") / "result")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the flake reads, to change."""
    wanted = ["flake.nix", "images", "models"]
    argv = ["git", "-C", str(PROJECT), "ls-files", "-z", *wanted]
    files = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    for file in files.rstrip("\0").split("\0"):
        copy = tmp_path / "tree" / file
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / file, copy, follow_symlinks=False)
    return tmp_path / "tree"


@pytest.fixture
def root(image: Path, tmp_path: Path) -> Iterator[Path]:
    """The base layer, mounted."""
    assert os.geteuid() == 0, "mounting a layer needs root: run the tests as root"
    place = tmp_path / "root"
    place.mkdir()
    layer = (image / "base.squashfs").resolve()
    subprocess.run(["mount", "-t", "squashfs", "-o", "ro,loop", layer, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def test_manifest_names_every_file_by_size_and_hash(name: str, image: Path) -> None:
    manifest = json.loads((image / "manifest.json").read_text())
    assert manifest["name"] == name
    assert [layer["name"] for layer in manifest["layers"]] == list(LAYERS)
    trees = [layer["verity"] for layer in manifest["layers"]]
    single = [manifest["kernel"], manifest["initrd"], manifest["sbom"]]
    entries = [*manifest["layers"], *trees, *single, *manifest["loaders"]]
    for entry in entries:
        assert (image / entry["file"]).stat().st_size == entry["size"]
        assert sha256(image / entry["file"]) == entry["sha256"]
    assert {entry["file"] for entry in entries} | {"manifest.json"} == {
        str(path.relative_to(image)) for path in image.rglob("*") if not path.is_dir()
    }
    assert {Path(entry["file"]).name for entry in manifest["loaders"]} == LOADERS


@pytest.mark.parametrize("layer", LAYERS)
def test_hash_trees_are_those_of_dm_verity(image: Path, tmp_path: Path, layer: str) -> None:
    """By the reference implementation; and one byte that differs is an error to it."""
    manifest = json.loads((image / "manifest.json").read_text())
    entry = next(each for each in manifest["layers"] if each["name"] == layer)
    verity = entry["verity"]
    options = ["--no-superblock", "--format=1", "--hash=sha256", "--salt=-"]
    options += ["--data-block-size=4096", "--hash-block-size=4096"]
    options += [f"--data-blocks={verity['data_blocks']}"]

    def verify(data: Path) -> int:
        tree = (image / verity["file"]).resolve()
        argv = ["veritysetup", "verify", *options, str(data), str(tree), verity["root"]]
        return subprocess.run(argv, capture_output=True, check=False).returncode

    data = (image / entry["file"]).resolve()
    assert verify(data) == 0
    if layer == "config":  # a small one to copy
        changed = bytearray(data.read_bytes())
        changed[100] ^= 1
        (tmp_path / "changed").write_bytes(changed)
        assert verify(tmp_path / "changed") != 0


def test_bill_of_materials_is_cyclonedx_and_complete(name: str, image: Path) -> None:
    text = (image / "sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_5).validate_str(text) is None
    seen = {(part["name"], part["version"]) for part in json.loads(text)["components"]}
    lock = lockfile.current(name)
    files = [*lock.files, *lockfile.current("loaders").files]
    assert seen == {(file.name, file.version) for file in files}


@pytest.mark.parametrize("part", PARTS)
def test_rebuilt_bit_for_bit(name: str, image: Path, part: str) -> None:
    """Nix builds it again and compares; a difference is an error."""
    nix("build", f"{PROJECT}#{name}.{part}", "--rebuild", "--no-link", "--no-write-lock-file")


def test_no_identity_and_no_secret_is_in_the_image(root: Path) -> None:
    assert (root / "etc/machine-id").read_bytes() == b""
    assert list((root / "etc/ssh").glob("ssh_host_*")) == []
    assert not (root / "etc/hostname").exists()
    shadow = (root / "etc/shadow").read_text().splitlines()
    assert shadow and all(line.split(":")[1] == "*" for line in shadow)


def test_owners_and_modes_are_the_packages(root: Path) -> None:
    assert (root.stat().st_uid, root.stat().st_mode & 0o7777) == (0, 0o755)
    assert (root / "usr/bin/su").stat().st_mode & 0o7777 == 0o4755
    assert (root / "tmp").stat().st_mode & 0o7777 == 0o1777
    assert (root / "etc/shadow").stat().st_gid != 0
    assert {path.lstat().st_uid for path in root.rglob("*")} == {0}
    times = {int(path.lstat().st_mtime) for path in root.rglob("*")}
    assert len(times) == 1


def test_all_packages_are_known_to_dpkg(name: str, root: Path) -> None:
    argv = ["dpkg-query", f"--admindir={root}/var/lib/dpkg", "-W", "-f", "${Package}\t${Version}\n"]
    shown = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split("\n")
    lock = lockfile.current(name)
    assert set(shown) - {""} == {f"{deb.name}\t{deb.version}" for deb in lock.debs}


def test_a_change_of_config_leaves_the_other_layers_alone(
    name: str, image: Path, tree: Path, tmp_path: Path
) -> None:
    (tree / "images" / name / "config/etc").mkdir(parents=True, exist_ok=True)
    (tree / "images" / name / "config/etc/motd").write_text("changed\n")
    changed = built(f"path:{tree}#{name}", tmp_path / "changed")
    for layer in LAYERS:
        before, after = ((path / f"{layer}.squashfs").resolve() for path in (image, changed))
        assert (before == after) == (layer != "config")
    assert sha256(image / "manifest.json") != sha256(changed / "manifest.json")


def test_a_missing_input_names_itself_and_the_command(name: str, tree: Path) -> None:
    path = tree / "images" / name / "lock.json"
    lock = json.loads(path.read_text())
    lock["debs"][0]["sha256"] = "0" * 64  # nothing has this hash
    path.write_text(json.dumps(lock))
    said = nix("build", f"path:{tree}#{name}.base", "--no-link", ok=False).stderr
    assert lock["debs"][0]["path"] in said
    assert f"orchestrate image fetch {name}" in said


def test_the_initrd_has_what_it_calls(image: Path, tmp_path: Path) -> None:
    """Its programs run, in it alone: their libraries are there too."""
    assert os.geteuid() == 0, "changing into the initrd needs root: run the tests as root"
    with (image / "initrd").open("rb") as packed:
        cpio = subprocess.run(["zstd", "-dc"], stdin=packed, capture_output=True, check=True).stdout
    argv = ["cpio", "--extract", "--quiet", "--make-directories", "--no-absolute-filenames"]
    subprocess.run(argv, input=cpio, cwd=tmp_path, check=True)
    assert (tmp_path / "init").stat().st_mode & 0o111
    for program in ("/usr/sbin/dmsetup", "/bin/busybox"):
        said = subprocess.run(
            ["chroot", tmp_path, program, "--help"], capture_output=True, text=True, check=False
        )
        assert "error while loading" not in said.stderr and said.returncode == 0, said.stderr
    modules = {path.name.partition(".")[0] for path in tmp_path.rglob("*.ko*")}
    assert {"dm-verity", "squashfs", "overlay", "igc", "r8169", "atlantic"} <= modules


def test_the_small_image_has_the_same_base(name: str, image: Path, tmp_path: Path) -> None:
    small = built(f"{PROJECT}#{name}.minimal", tmp_path / "small")
    assert (small / "base.squashfs").resolve() == (image / "base.squashfs").resolve()
    assert (small / "python.squashfs").stat().st_size < 20 << 20
    assert json.loads((small / "manifest.json").read_text())["name"] == f"{name}-minimal"


def test_names_with_dots_are_nested_as_the_command_line_reads_them() -> None:
    expression = f"""
      (import {PROJECT}/images/lib/attrs.nix).nest {{
        "pxe-0.1" = {{ a = 1; }};
        "pxe-0.2" = {{ a = 2; }};
        pxe-sim = {{ a = 3; }};
      }}
    """
    shown = nix("eval", "--json", "--impure", "--expr", expression).stdout
    expected = {"pxe-0": {"1": {"a": 1}, "2": {"a": 2}}, "pxe-sim": {"a": 3}}
    assert json.loads(shown) == expected


def test_the_builder_knows_no_image_by_name() -> None:
    for file in [
        PROJECT / "flake.nix",
        PROJECT / "images/default.nix",
        *PROJECT.glob("images/lib/**/*"),
    ]:
        if file.is_file() and file.suffix in (".nix", ".py", ".sh"):
            code = "\n".join(
                x for x in file.read_text().splitlines() if not x.lstrip().startswith("#")
            )
            assert not any(f'"{image}"' in code for image in IMAGES), file
