"""What packages, wheels and source distributions must not do; each is built for real."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support import generated
from support.flake import Checkout, bring, built, nix
from support.generated import File, as_locked

pytestmark = pytest.mark.nix

#: The image whose settings, and whose Python, the tests' images have.
MODEL = "pxe-sim"
ELF = b"\x7fELF and so on"


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout.copy(tmp_path / "checkout")


def locked(checkout: Checkout, kind: str, *names: str) -> list[File]:
    """Entries of the model's lock whose names begin so."""
    return [
        as_locked(each) for each in checkout.lock(MODEL)[kind] if each["name"].startswith(names)
    ]


def with_wheels(checkout: Checkout, *wheels: File, **system: object) -> None:
    """The image 'demo' with the model's Python and these wheels."""
    python = locked(checkout, "debs", "libc6", "libexpat1", "zlib1g", "libpython3", "python3")
    checkout.image(MODEL, "demo", debs=python, wheels=wheels)
    lock = checkout.lock("demo")
    lock["system"] |= system
    checkout.write("demo", lock)


# Packages.


def test_two_packages_that_own_one_file(checkout: Checkout, tmp_path: Path) -> None:
    one = generated.deb(tmp_path, "one", {"usr/bin/tool": b"one"})
    two = generated.deb(tmp_path, "two", {"bin/tool": b"two"})  # the same, where /usr is merged
    checkout.image(MODEL, "demo", debs=[one, two])
    assert "/usr/bin/tool is in two packages: one and two" in checkout.fails("demo.base")


@pytest.mark.parametrize("path", ["../evil", "/etc/evil", "./usr/../../evil", "usr/lib/.."])
def test_a_package_with_a_path_outside_the_root(
    checkout: Checkout, tmp_path: Path, path: str
) -> None:
    checkout.image(MODEL, "demo", debs=[generated.deb(tmp_path, "evil", {path: b""})])
    assert "a package has a path outside the root" in checkout.fails("demo.base")


def test_an_account_without_an_id(checkout: Checkout, tmp_path: Path) -> None:
    """Else systemd would choose one, at each boot and for each image anew."""
    lines = b'# accounts\nu! alien - "from outside" /\ng guests - -\nu messagebus -\n'
    own = generated.deb(tmp_path, "alien", {"usr/lib/sysusers.d/alien.conf": lines})
    checkout.image(MODEL, "demo", debs=[*locked(checkout, "debs", "base-passwd"), own])
    said = checkout.fails("demo.base")
    assert "system.users has no alien, which /usr/lib/sysusers.d/alien.conf wants" in said
    assert "system.groups has no guests" in said
    assert "messagebus" not in said


# Wheels.


@pytest.mark.parametrize(
    "path",
    [
        "DATA/data/../../../etc/passwd",
        "DATA/scripts/../tool",
        "DATA/purelib/../../../../bin/tool",
        "../tool.py",
        "/etc/evil.py",
    ],
)
def test_a_wheel_whose_files_leave_their_place(
    checkout: Checkout, tmp_path: Path, path: str
) -> None:
    with_wheels(checkout, generated.wheel(tmp_path, "evil", {path: b""}))
    said = checkout.fails("demo.python")
    assert "evil-1-py3-none-any.whl: a path outside of opt/venvs/orchestrate" in said


def one_file_in_two(tmp_path: Path) -> list[File]:
    return [
        generated.wheel(tmp_path, name, {"DATA/data/share/same": name.encode()}) for name in "ab"
    ]


def test_two_wheels_that_bring_one_file(checkout: Checkout, tmp_path: Path) -> None:
    with_wheels(checkout, *one_file_in_two(tmp_path))
    said = checkout.fails("demo.python")
    assert "/opt/venvs/orchestrate/share/same is brought by" in said
    assert "system.owners" in said


def test_whose_the_file_is_can_be_said(checkout: Checkout, tmp_path: Path) -> None:
    with_wheels(checkout, *one_file_in_two(tmp_path), owners={"share/same": "b"})
    layer = built(checkout.attribute("demo.python"), tmp_path / "layer")
    assert read(layer, "opt/venvs/orchestrate/share/same") == "b"


def test_an_owner_that_does_not_bring_the_file(checkout: Checkout, tmp_path: Path) -> None:
    with_wheels(checkout, one_file_in_two(tmp_path)[1], owners={"share/other": "b"})
    assert "system.owners: b brings no share/other" in checkout.fails("demo.python")


# Wheels from source distributions.

#: A backend of the source's own. What it makes is named for the Python that it runs on.
BACKEND = b"""
import base64, hashlib, os, pathlib, zipfile
TAG = "cp311-cp311-linux_x86_64"
def build_wheel(directory, *_):
    version = os.environ["SETUPTOOLS_SCM_PRETEND_VERSION"] + "+" + os.environ["FLAVOUR"]
    info = f"demo-{version}.dist-info/"
    wheel = f"Wheel-Version: 1.0\\nRoot-Is-Purelib: false\\nTag: {TAG}\\n"
    files = {
        "demo.py": pathlib.Path("demo.py").read_bytes(),
        info + "METADATA": f"Metadata-Version: 2.1\\nName: demo\\nVersion: {version}\\n".encode(),
        info + "WHEEL": wheel.encode(),
    }
    record = ""
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        record += f"{name},sha256={digest},{len(data)}\\n"
    files[info + "RECORD"] = f"{record}{info}RECORD,,\\n".encode()
    with zipfile.ZipFile(pathlib.Path(directory, f"demo-{version}-{TAG}.whl"), "w") as out:
        for name, data in files.items():
            out.writestr(zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), data)
"""
SETTINGS = b'[build-system]\nrequires = []\nbuild-backend = "own"\nbackend-path = ["tools"]\n'


def with_source(checkout: Checkout, *sources: File) -> None:
    """The image 'demo' with sources; torch, which they do not need, is left out of the builders."""
    with_wheels(checkout)
    checkout.write("demo", checkout.lock("demo") | {"sources": [each.entry for each in sources]})
    bring("builders")
    builders = checkout.lock("builders")
    builders["wheels"] = [each for each in builders["wheels"] if each["name"] != "torch"]
    checkout.write("builders", builders)


def sources(tmp_path: Path, files: dict[str, bytes], name: str = "demo") -> File:
    own = {"pyproject.toml": SETTINGS, "tools/own.py": BACKEND, "demo.py": b"FLAVOUR = 1\n"}
    return generated.source(tmp_path, name, {**own, **files}, FLAVOUR="small")


def test_a_wheel_is_built_from_source_the_same_each_time(
    checkout: Checkout, tmp_path: Path
) -> None:
    with_source(checkout, sources(tmp_path, {}))
    attribute = checkout.attribute("demo.wheels.demo")
    (made,) = built(attribute, tmp_path / "wheel").iterdir()
    assert made.name == "demo-1+small-py3-none-any.whl"  # it fits every Python
    nix("build", attribute, "--rebuild", "--no-link", "--no-write-lock-file")
    layer = built(checkout.attribute("demo.python"), tmp_path / "layer")
    site = "opt/venvs/orchestrate/lib/python3.11/site-packages"
    assert read(layer, f"{site}/demo.py") == "FLAVOUR = 1\n"
    assert "Version: 1+small" in read(layer, f"{site}/demo-1+small.dist-info/METADATA")


def test_a_source_whose_wheel_holds_compiled_files(checkout: Checkout, tmp_path: Path) -> None:
    """It would be of the builders' Python, not of the image's."""
    with_source(checkout, sources(tmp_path, {"demo.py": ELF}))
    assert "holds a compiled file: demo.py" in checkout.fails("demo.wheels.demo")


def test_a_source_that_gives_another_wheel(checkout: Checkout, tmp_path: Path) -> None:
    with_source(checkout, sources(tmp_path, {}, "other"))
    assert "gives demo-1+small-" in checkout.fails("demo.wheels.other")


def test_a_source_that_cannot_be_built_shows_why(checkout: Checkout, tmp_path: Path) -> None:
    broken = b"def build_wheel(*_): raise SystemExit('no such header')\n"
    with_source(checkout, sources(tmp_path, {"tools/own.py": broken}))
    said = checkout.fails("demo.wheels.demo")
    assert "no such header" in said
    assert "demo-1.tar.gz: its build backend failed" in said


@pytest.mark.parametrize("path", ["../../evil", "tools/../../../evil"])
def test_a_source_with_a_path_outside_its_root(
    checkout: Checkout, tmp_path: Path, path: str
) -> None:
    with_source(checkout, sources(tmp_path, {path: b""}))
    assert "demo-1.tar.gz has a path outside its root" in checkout.fails("demo.wheels.demo")


# Files that no mirror has.


def test_files_that_no_mirror_has_are_named_together(checkout: Checkout, tmp_path: Path) -> None:
    have = generated.deb(tmp_path, "here", {"usr/share/here": b""})
    absent = [nowhere("one"), nowhere("two")]
    checkout.image(MODEL, "demo", debs=[have, *absent])
    said = checkout.fails("demo.base")
    for file in absent:
        assert f"no mirror has:  {file.entry['url']}" in said
    assert "orchestrate image fetch demo" in said


def nowhere(name: str) -> File:
    """An entry of a file that nobody has, as locking declares it."""
    file = f"{name}_1_amd64.deb"
    known = {"name": name, "version": "1", "architecture": "amd64", "path": file, "size": None}
    url = f"https://example.org/{file}"
    entry = known | {"sha256": "0" * 64, "store": file, "url": url, "elsewhere": True}
    return as_locked(entry)


def read(layer: Path, path: str) -> str:
    """A file of a layer."""
    argv = ["unsquashfs", "-cat", str(layer), path]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout
