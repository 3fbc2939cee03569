"""The image as Nix builds it: its parts, the same bytes twice, what a change and a gap cost."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from support import PROJECT
from support.flake import IMAGES, bring, built, evaluated, nix

from orchestrator.image import lockfile

pytestmark = pytest.mark.nix

LAYERS = ("base", "python", "config")
PARTS = (*LAYERS, *(f"verity.{layer}" for layer in LAYERS), "kernel", "initrd")
#: Of images that want files that no mirror has: without these, and with few of Python's packages,
#: whose layer is most of an image and takes minutes. tests/nix/test_stand_in.py has the rest.
SMALL = ("base", "few", "config", "verity.base", "kernel", "initrd")


@dataclass(frozen=True)
class Subject:
    """An image, and what of it is built here."""

    name: str

    @cached_property
    def lock(self) -> lockfile.Lock:
        return lockfile.current(self.name).available()

    @property
    def whole(self) -> bool:
        return self.lock == lockfile.current(self.name)

    @property
    def complete(self) -> str:
        """The attribute that has all parts as attributes."""
        return self.name if self.whole else f"{self.name}.available"

    @property
    def attribute(self) -> str:
        return self.complete if self.whole else f"{self.complete}.minimal"

    @property
    def wheels(self) -> list[lockfile.File]:
        """The wheels of this attribute."""
        listed: list[lockfile.File] = [*self.lock.wheels, *self.lock.sources]
        return [each for each in listed if self.whole or each.name in self.lock.system["minimal"]]

    @property
    def parts(self) -> list[str]:
        made = [f"wheels.{source.name}" for source in self.lock.sources]
        return [f"{self.complete}.{part}" for part in (*(PARTS if self.whole else SMALL), *made)]


LOADERS = {
    *("undionly.kpxe", "ipxe.efi", "snponly.efi"),
    *("shimx64.efi", "grubx64.efi", "linuxx64.efi.stub"),
}


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.fixture(scope="module", params=IMAGES)
def subject(request: pytest.FixtureRequest) -> Subject:
    bring(request.param)
    return Subject(request.param)


@pytest.fixture(scope="module")
def image(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(f"{PROJECT}#{subject.attribute}", tmp_path_factory.mktemp("image") / "result")


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


def test_manifest_names_every_file_by_size_and_hash(subject: Subject, image: Path) -> None:
    manifest = json.loads((image / "manifest.json").read_text())
    assert manifest["name"] == subject.attribute.replace(".available", "-available").replace(
        ".minimal", "-minimal"
    )
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


def test_a_layer_with_a_place_of_its_own_lies_all_below_it(subject: Subject, image: Path) -> None:
    """So a node can mount it there after its system has started."""
    layers = json.loads((image / "manifest.json").read_text())["layers"]
    places = {layer["name"]: layer["mount"] for layer in layers if "mount" in layer}
    assert places == {"python": subject.lock.system["environment"]}
    argv = ["unsquashfs", "-lls", "-dest", "", str(image / "python.squashfs")]
    listed = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    paths = [line.split(" -> ")[0].split(maxsplit=5)[5:] for line in listed.splitlines()]
    inside = Path(places["python"])
    above = {str(parent) for parent in inside.parents}
    outside = {path for (path,) in filter(None, paths) if not Path(path).is_relative_to(inside)}
    assert len(paths) > 100
    assert outside <= above


def test_bill_of_materials_is_cyclonedx_and_complete(subject: Subject, image: Path) -> None:
    text = (image / "sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_5).validate_str(text) is None
    seen = {(part["name"], part["version"]) for part in json.loads(text)["components"]}
    files = [*subject.lock.debs, *subject.wheels, *lockfile.current("loaders").files]
    assert seen == {(file.name, file.version) for file in files}


def rebuilt() -> list[ParameterSet]:
    """The parts of all images. For a run that has to be brief, one image of those that are whole is
    enough, and one of the others; and of Python's layers the small one, which the same program
    makes."""
    found, seen = [], set()
    for subject in map(Subject, IMAGES):
        known = subject.whole in seen
        seen.add(subject.whole)
        for part in subject.parts:
            marks = [pytest.mark.long] if known or part.endswith(".python") else []
            found.append(pytest.param(part, id=part, marks=marks))
    return found


@pytest.mark.parametrize("part", rebuilt())
def test_rebuilt_bit_for_bit(part: str, tmp_path: Path) -> None:
    """Nix builds it again and compares; a difference is an error."""
    built(f"{PROJECT}#{part}", tmp_path / "part")
    nix("build", f"{PROJECT}#{part}", "--rebuild", "--no-link", "--no-write-lock-file")


@pytest.mark.parametrize("name", IMAGES)
def test_all_parts_can_be_evaluated(name: str) -> None:
    """Also those that cannot be built here."""
    parts = [*PARTS, "minimal", *(f"wheels.{each.name}" for each in Subject(name).lock.sources)]
    for part in parts:
        assert evaluated(f"{PROJECT}#{name}.{part}") and evaluated(
            f"{PROJECT}#{name}.available.{part}"
        )


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_from_mirrors_alone_is_all_available(name: str) -> None:
    same = evaluated(f"{PROJECT}#{name}.available") == evaluated(f"{PROJECT}#{name}")
    assert same == Subject(name).whole


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


def test_all_packages_are_known_to_dpkg(subject: Subject, root: Path) -> None:
    argv = ["dpkg-query", f"--admindir={root}/var/lib/dpkg", "-W", "-f", "${Package}\t${Version}\n"]
    shown = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split("\n")
    assert set(shown) - {""} == {f"{deb.name}\t{deb.version}" for deb in subject.lock.debs}


def test_python3_is_the_images(subject: Subject, root: Path) -> None:
    assert subject.lock.python is not None
    assert (root / "usr/bin/python3").resolve().name == f"python{subject.lock.python.version}"


def test_modules_depend_on_files_that_are_there(root: Path) -> None:
    """Compressed or not, as the package has them."""
    (release,) = (root / "usr/lib/modules").iterdir()
    listed = [line.partition(":")[0] for line in (release / "modules.dep").read_text().split("\n")]
    packed = {str(path.relative_to(release)) for path in release.rglob("*.ko*")}
    assert set(filter(None, listed)) == packed and len(packed) > 1000


def test_a_change_of_config_leaves_the_other_layers_alone(
    subject: Subject, image: Path, tree: Path, tmp_path: Path
) -> None:
    config = tree / "images" / subject.name / "config/etc"
    config.mkdir(parents=True, exist_ok=True)
    (config / "motd").write_text("changed\n")
    changed = built(f"path:{tree}#{subject.attribute}", tmp_path / "changed")
    for layer in LAYERS:
        before, after = ((path / f"{layer}.squashfs").resolve() for path in (image, changed))
        assert (before == after) == (layer != "config")
    assert sha256(image / "manifest.json") != sha256(changed / "manifest.json")


def test_a_missing_input_names_itself_and_the_command(subject: Subject, tree: Path) -> None:
    path = tree / "images" / subject.name / "lock.json"
    lock = json.loads(path.read_text())
    lock["debs"][0]["sha256"] = "0" * 64  # nothing has this hash
    path.write_text(json.dumps(lock))
    said = nix("build", f"path:{tree}#{subject.complete}.base", "--no-link", ok=False).stderr
    assert lock["debs"][0]["path"] in said
    assert f"orchestrate image fetch {subject.name}" in said


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
    (release,) = (tmp_path / "lib/modules").iterdir()
    modules = {path.stem for path in release.rglob("*.ko")}
    assert set(release.rglob("*.ko*")) == set(release.rglob("*.ko"))  # busybox knows no other
    modules |= {Path(line).stem for line in (release / "modules.builtin").read_text().split()}
    assert {"dm-verity", "squashfs", "overlay", "igc", "r8169", "atlantic"} <= modules


def test_the_small_image_has_the_same_base(subject: Subject, image: Path, tmp_path: Path) -> None:
    small = built(f"{PROJECT}#{subject.complete}.minimal", tmp_path / "small")
    assert (small / "base.squashfs").resolve() == (image / "base.squashfs").resolve()
    assert (small / "python.squashfs").stat().st_size < 20 << 20
    name = json.loads((small / "manifest.json").read_text())["name"]
    assert name == f"{subject.complete}-minimal".replace(".available", "-available")


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
    library = [file for file in PROJECT.glob("images/lib/**/*") if file.is_file()]
    code = [file for file in library if file.suffix in (".nix", ".py", ".sh")]
    assert code and IMAGES
    for file in [PROJECT / "flake.nix", PROJECT / "images/default.nix", *code]:
        lines = file.read_text().splitlines()
        said = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
        assert not any(f'"{image}"' in said for image in IMAGES), file
