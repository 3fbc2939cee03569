"""Locking with the real apt and pip: a small suite of the real mirror, wheels made here."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.box import Box, Site
from support.suites import wheel

from orchestrator.image import spec

pytestmark = pytest.mark.nix

SUITE = {"suite": "bookworm", "components": ["main"], "essential": False}


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test leaves the package lists for the others: apt then asks for news only."""
    return tmp_path_factory.mktemp("lists") / "apt"


@pytest.fixture(autouse=True)
def shared_lists(box: Box, lists: Path) -> Iterator[None]:
    if lists.exists():
        shutil.copytree(lists, box.root / "cache/apt/demo/lists")
    yield
    found = box.root / "cache/apt/demo/lists"
    if not lists.exists() and found.exists():
        shutil.copytree(found, lists)


def python(*requirements: str, **more: object) -> dict[str, object]:
    return {"version": "3.11", "glibc": "2.36", "requirements": [*requirements], **more}


def test_a_list_that_changes_is_locked_again_and_the_difference_is_told(box: Box) -> None:
    box.write("demo", debian=SUITE | {"packages": ["hello"]})
    first = box.json("lock", "demo")
    assert any(line.startswith("+ deb hello ") for line in first["changes"])
    before = box.lock("demo").read_bytes()
    lock = json.loads(before)
    names = [deb["name"] for deb in lock["debs"]]
    assert names == sorted(names)
    assert {"hello", "libc6", "libgcc-s1", "gcc-12-base"} == set(names)
    assert all(deb["path"].startswith("pool/main/") and deb["sha256"] for deb in lock["debs"])

    assert "nothing changed" in box.run("lock", "demo").stdout
    assert box.lock("demo").read_bytes() == before

    box.write("demo", debian=SUITE | {"packages": ["hello", "mawk"], "exclude": {"libc6": "test"}})
    changes = box.json("lock", "demo")["changes"]
    assert any(line.startswith("+ deb mawk ") for line in changes)
    assert {line.split()[2] for line in changes if line.startswith("-")} == {
        "gcc-12-base",
        "libc6",
        "libgcc-s1",
    }


def test_a_whole_system_has_what_is_essential_but_not_apt(box: Box) -> None:
    packages = ["usr-is-merged"]
    box.write("demo", debian=SUITE | {"essential": True, "packages": packages})
    box.json("lock", "demo")
    names = {deb["name"] for deb in json.loads(box.lock("demo").read_text())["debs"]}
    assert {"base-files", "bash", "coreutils", "util-linux", "init-system-helpers"} <= names
    assert not {"apt", "usrmerge", "perl"} & names


def test_an_unknown_package_leaves_the_old_lock(box: Box) -> None:
    box.write("demo", debian=SUITE | {"packages": ["hello"]})
    box.json("lock", "demo")
    before = box.lock("demo").read_bytes()
    box.write("demo", debian=SUITE | {"packages": ["no-such-package"]})
    failed = box.run("lock", "demo")
    assert failed.returncode == 2
    assert "no-such-package" in failed.stderr
    assert box.lock("demo").read_bytes() == before


def test_a_mirror_without_signatures_is_refused(box: Box, site: Site) -> None:
    binary = site.root / "dists/bookworm/main/binary-amd64"
    binary.mkdir(parents=True)
    (binary / "Packages").write_text("")
    (site.root / "dists/bookworm/Release").write_text("Suite: bookworm\nComponents: main\n")
    box.write("demo", debian=SUITE | {"packages": ["hello"]})
    failed = box.run("lock", "demo", "--mirror", site.url)
    assert failed.returncode == 1
    assert "not signed" in failed.stderr
    assert not box.lock("demo").exists()


def test_wheels_are_resolved_for_the_images_python_and_library(box: Box, links: Path) -> None:
    """Markers are answered for 3.11.2 whatever runs the test; too new a glibc is not taken."""
    wheel(links, "root", ("old; python_full_version < '3.11.3'", "new; python_version > '3.11'"))
    wheel(links, "old", ("built",))
    wheel(links, "built", tag="cp311-abi3-manylinux_2_36_x86_64")
    wheel(links, "new")
    box.write(
        "demo",
        debian=SUITE | {"packages": ["python3.11-minimal"]},
        python=python("root"),
    )
    box.json("lock", "demo")
    lock = json.loads(box.lock("demo").read_text())
    assert [row["name"] for row in lock["wheels"]] == ["built", "old", "root"]
    assert lock["wheels"][0]["size"] == (links / lock["wheels"][0]["file"]).stat().st_size

    box.write(
        "demo",
        debian=SUITE | {"packages": ["python3.11-minimal"]},
        python=python("root") | {"glibc": "2.31"},
    )
    failed = box.run("lock", "demo")
    assert failed.returncode == 2
    assert "no wheel fits for built" in failed.stderr


def test_what_only_an_excluded_distribution_needs_goes_too(box: Box, links: Path) -> None:
    wheel(links, "root", ("left_out", "shared"))
    wheel(links, "left_out", ("only_its", "shared"))
    wheel(links, "only_its")
    wheel(links, "shared")
    box.write(
        "demo",
        debian=SUITE | {"packages": ["python3.11-minimal"]},
        python=python("root", exclude={"left-out": "a test"}),
    )
    box.json("lock", "demo")
    wheels = json.loads(box.lock("demo").read_text())["wheels"]
    assert [row["name"] for row in wheels] == ["root", "shared"]


def test_a_wheel_outside_the_index_keeps_its_url_and_is_fetched_by_it(
    box: Box, links: Path, site: Site
) -> None:
    file = wheel(site.root, "elsewhere")
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    url = f"{site.url}/{file.name}"
    packages = SUITE | {"packages": ["hello"]}
    for name in spec.SHARED:
        box.write(name, debian=packages, python=None)
    box.write(
        "demo",
        debian=SUITE | {"packages": ["python3.11-minimal"]},
        python=python("elsewhere==1.0", urls={"elsewhere==1.0": f"{url}#sha256={sha256}"}),
    )
    box.json("lock", "demo")
    (row,) = json.loads(box.lock("demo").read_text())["wheels"]
    assert row["url"] == url
    assert row["sha256"] == sha256
    for name in spec.SHARED:
        box.json("lock", name)
    box.json("fetch", "demo")
    assert file.name in box.stored()
    assert site.gets.count(file.name) == 2  # once to lock, once to fetch


def test_a_wheel_with_another_hash_than_its_address_says_is_not_taken(
    box: Box, links: Path, site: Site
) -> None:
    file = wheel(site.root, "elsewhere")
    url = f"{site.url}/{file.name}#sha256={'0' * 64}"
    declared = python("elsewhere==1.0", urls={"elsewhere==1.0": url})
    box.write("demo", debian=SUITE | {"packages": ["python3.11-minimal"]}, python=declared)
    failed = box.run("lock", "demo")
    assert failed.returncode == 1 and "wrong content" in failed.stderr
    wheel(links, "elsewhere")  # pip's own place has it, too
    failed = box.run("lock", "demo")
    assert failed.returncode == 2 and "python.urls: pip found" in failed.stderr
    assert not box.lock("demo").exists()


def test_a_python_that_no_package_brings_is_an_error(box: Box, links: Path) -> None:
    wheel(links, "root")
    box.write("demo", debian=SUITE | {"packages": ["hello"]}, python=python("root"))
    failed = box.run("lock", "demo")
    assert failed.returncode == 2
    assert "Add python3.11 to debian.packages" in failed.stderr


def test_without_a_mirror_the_message_says_what_to_set(box: Box, tmp_path: Path) -> None:
    nothing = tmp_path / "apt.conf"
    nothing.write_text(
        'Dir::Etc::sourcelist "/dev/null";\nDir::Etc::sourceparts "/dev/null";\n'
        f'Dir::State::lists "{tmp_path}/none";\n'
    )
    box.write("demo", debian=SUITE | {"packages": ["hello"]})
    failed = box.run("lock", "demo", APT_CONFIG=str(nothing))
    assert failed.returncode == 1
    assert "ORCHESTRATE_DEBIAN_MIRROR" in failed.stderr


def test_every_mistake_in_image_yml_is_named_with_its_key(box: Box) -> None:
    box.write("demo", debian=SUITE | {"packges": ["hello"], "packages": "hello"}, dat=1)
    failed = box.run("lock", "demo")
    assert failed.returncode == 2
    for key in ("debian.packges", "debian.packages", "dat"):
        assert re.search(rf"image\.yml:[0-9]+: {re.escape(key)}: ", failed.stderr)
    assert "unknown key; did you mean 'packages'?" in failed.stderr
    assert sys.executable not in failed.stderr
