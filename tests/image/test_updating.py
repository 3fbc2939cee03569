"""'image lock --update' with the real apt and pip: what moves, what stays, what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.box import Box
from support.suites import Archive, wheel

pytestmark = pytest.mark.nix

DEBIAN: dict[str, Any] = {"suite": "one", "components": ["main"], "essential": False}
INTERPRETER = "libpython3.11-minimal"
PYTHON = f"{INTERPRETER} 3.11.2-6"
OLD = ("app 1; Depends: lib (>= 1)", "lib 1", "other 1", PYTHON)
NEW = ("app 2; Depends: lib (>= 2)", "lib 2", "other 2")


def versions(box: Box, kind: str) -> dict[str, str]:
    return {row["name"]: row["version"] for row in json.loads(box.lock("demo").read_text())[kind]}


def write(box: Box, *requirements: str, **debian: Any) -> None:
    python = {"version": "3.11", "glibc": "2.36", "requirements": [*requirements]}
    packages = {"packages": ["app", "other", INTERPRETER], **debian}
    box.write("demo", debian=DEBIAN | packages, python=python)


@pytest.fixture
def image(box: Box, archive: Archive, links: Path) -> Box:
    """'demo', locked; since then everything has got newer, and the suite has both."""
    archive.publish("one", *OLD)
    for name in ("apple", "berry", "cherry"):
        wheel(links, name, ("berry",) if name == "apple" else ())
    write(box, "apple", "cherry")
    box.json("lock", "demo")
    archive.publish("one", *OLD, *NEW)
    wheel(links, "apple", ("berry>=2",), version="2.0")
    for name in ("berry", "cherry"):
        wheel(links, name, version="2.0")
    return box


def test_a_package_moves_with_what_it_needs_and_nothing_else_does(image: Box) -> None:
    changes = image.json("lock", "demo", "--update", "app")["changes"]
    assert changes == ["~ deb app 1 → 2", "~ deb lib 1 → 2"]
    assert versions(image, "debs")["other"] == "1"
    assert versions(image, "wheels") == {"apple": "1.0", "berry": "1.0", "cherry": "1.0"}


def test_a_distribution_moves_with_what_it_needs_and_nothing_else_does(image: Box) -> None:
    changes = image.json("lock", "demo", "--update", "apple")["changes"]
    assert changes == ["~ wheel apple 1.0 → 2.0", "~ wheel berry 1.0 → 2.0"]
    assert versions(image, "wheels")["cherry"] == "1.0"
    assert versions(image, "debs")["app"] == "1"


def test_what_needs_nothing_newer_moves_alone(image: Box) -> None:
    changes = image.json("lock", "demo", "--update", "other", "--update", "Berry")["changes"]
    assert changes == ["~ deb other 1 → 2", "~ wheel berry 1.0 → 2.0"]
    assert "nothing changed" in image.run("lock", "demo", "--update", "other").stdout


def test_a_suite_moves_as_a_whole(image: Box) -> None:
    changes = image.json("lock", "demo", "--update", "one")["changes"]
    assert [line.split()[2] for line in changes] == ["app", "lib", "other"]


def test_a_further_suite_moves_alone(box: Box, archive: Archive, links: Path) -> None:
    archive.publish("one", *OLD)
    archive.publish("new", "kernel 7")
    wheel(links, "apple")
    write(box, "apple", also={"new": ["kernel"]})
    box.json("lock", "demo")
    archive.publish("one", *OLD, *NEW)
    archive.publish("new", "kernel 7", "kernel 8")
    assert box.json("lock", "demo", "--update", "new")["changes"] == ["~ deb kernel 7 → 8"]


def test_what_the_suite_no_longer_has_moves_too_and_is_told(image: Box, archive: Archive) -> None:
    archive.publish("one", *OLD[:2], PYTHON, *NEW)
    changes = image.json("lock", "demo", "--update", "app")["changes"]
    assert changes == ["~ deb app 1 → 2", "~ deb lib 1 → 2", "~ deb other 1 → 2"]


def test_a_half_of_which_nothing_is_named_stays_even_where_its_suite_is_gone(
    image: Box, archive: Archive
) -> None:
    archive.publish("one", *NEW)
    write(image, "apple>=2", "cherry")
    changes = image.json("lock", "demo", "--update", "apple")["changes"]
    assert changes == ["~ wheel apple 1.0 → 2.0", "~ wheel berry 1.0 → 2.0"]


def test_a_new_root_comes_in_and_the_rest_stays(image: Box, archive: Archive) -> None:
    archive.publish("one", *OLD, *NEW, "more 5; Depends: lib")
    write(image, "apple", "cherry", packages=["app", "other", "more", INTERPRETER])
    assert image.json("lock", "demo", "--update", "more")["changes"] == ["+ deb more 5"]


def test_an_update_of_a_package_that_cannot_be_is_told_and_the_lock_stays(
    image: Box, archive: Archive
) -> None:
    archive.publish("one", *OLD, "app 2; Depends: lib (>= 3)", "lib 2")
    before = image.lock("demo").read_bytes()
    failed = image.run("lock", "demo", "--update", "app")
    assert failed.returncode == 2
    assert "app : Depends: lib (>= 3)" in failed.stderr
    assert image.lock("demo").read_bytes() == before


def test_an_update_of_a_distribution_that_cannot_be_is_told_and_the_lock_stays(
    image: Box,
) -> None:
    write(image, "apple==2.0", "berry==1.0", "cherry")
    before = image.lock("demo").read_bytes()
    failed = image.run("lock", "demo", "--update", "apple")
    assert failed.returncode == 2
    assert "apple 2.0 depends on berry>=2" in failed.stderr
    assert "The user requested berry==1.0" in failed.stderr
    assert image.lock("demo").read_bytes() == before


def test_a_version_that_image_yml_names_is_not_moved_and_that_is_told(image: Box) -> None:
    write(image, "apple==1.0", "cherry")
    done = image.run("lock", "demo", "--update", "apple")
    assert "apple stays at 1.0: images/demo/image.yml pins this version" in done.stdout


def test_a_name_that_the_image_does_not_have_is_an_error(image: Box) -> None:
    failed = image.run("lock", "demo", "--update", "appel")
    assert failed.returncode == 2
    assert "--update appel: neither a suite, a package nor a distribution" in failed.stderr
    assert "Did you mean 'app" in failed.stderr
    image.lock("demo").unlink()
    assert "has no lock to update" in image.run("lock", "demo", "--update", "app").stderr
