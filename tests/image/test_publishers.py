"""Who published a wheel: the real pip, and an index with attestations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.box import Box
from support.index import GITHUB, Index, provenance, serving
from support.suites import Archive, wheel

pytestmark = pytest.mark.nix

INTERPRETER = "libpython3.11-minimal"
DEBIAN: dict[str, Any] = {"suite": "one", "components": ["main"], "essential": False}
PYTHON = {"version": "3.11", "glibc": "2.36", "requirements": ["apple", "berry"]}
MAKERS = "GitHub: repository makers/NAME, workflow release.yml"
OTHERS = GITHUB | {"repository": "others/NAME"}


def publishers(box: Box) -> dict[str, str | None]:
    rows = json.loads(box.lock("demo").read_text())["wheels"]
    return {row["name"]: row.get("publisher") for row in rows}


def release(index: Index, box: Box, name: str, version: str, by: dict[str, Any] | None) -> Path:
    file = wheel(box.root / "wheels", name, version=version)
    index.publish(name, file, by)
    return file


@pytest.fixture
def index(box: Box, archive: Archive) -> Iterator[Index]:
    """pip's only one. 'demo' is locked: 'apple' with a publisher, 'berry' without."""
    archive.publish("one", f"{INTERPRETER} 3.11.2-6")
    with serving() as index:
        release(index, box, "apple", "1.0", GITHUB)
        release(index, box, "berry", "1.0", None)
        box.env |= {"PIP_CONFIG_FILE": "/dev/null", "PIP_INDEX_URL": index.url}
        box.write("demo", debian=DEBIAN | {"packages": [INTERPRETER]}, python=PYTHON)
        box.json("lock", "demo")
        yield index


def test_the_lock_has_the_publisher_that_the_index_names(index: Index, box: Box) -> None:
    assert publishers(box) == {"apple": MAKERS, "berry": None}
    assert "\nberry" not in box.run("lock", "demo").stdout
    release(index, box, "apple", "2.0", GITHUB)
    release(index, box, "berry", "2.0", GITHUB)
    changes = box.json("lock", "demo")["changes"]
    assert changes == [
        "~ wheel apple 1.0 → 2.0",
        "~ wheel berry 1.0 → 2.0",
        f"~ wheel berry: publisher: unknown → {MAKERS}",
    ]
    assert publishers(box) == {"apple": MAKERS, "berry": MAKERS}


@pytest.mark.parametrize("by", [None, OTHERS])
def test_another_publisher_is_an_error_until_it_is_accepted(
    index: Index, box: Box, by: dict[str, Any] | None
) -> None:
    release(index, box, "apple", "2.0", by)
    before = box.lock("demo").read_bytes()
    for update in ([], ["--update", "apple"]):
        failed = box.run("lock", "demo", *update)
        assert failed.returncode == 1
        told = f"apple 2.0: {MAKERS} → {MAKERS.replace('makers', 'others') if by else 'nobody'}"
        assert told in " ".join(failed.stderr.split())
        assert "--accept-publisher apple" in " ".join(failed.stderr.split())
        assert box.lock("demo").read_bytes() == before
    box.json("lock", "demo", "--accept-publisher", "apple")
    assert publishers(box)["apple"] == (MAKERS.replace("makers", "others") if by else None)


def test_another_publisher_shows_before_it_is_locked(index: Index, box: Box) -> None:
    assert box.json("outdated", "demo")[0]["publishers"] == []
    release(index, box, "apple", "1.5", OTHERS)
    release(index, box, "apple", "2.0", GITHUB)
    release(index, box, "apple", "3.0rc1", OTHERS)
    assert box.run("outdated", "demo").returncode == 0
    release(index, box, "apple", "2.1", OTHERS)
    done = box.run("outdated", "demo")
    assert done.returncode == 2
    assert f"apple 2.1: {MAKERS} → {MAKERS.replace('makers', 'others')}" in done.stdout
    # One file more, by hand, of the same release.
    release(index, box, "apple", "2.2", GITHUB)
    index.publish("apple", wheel(box.root / "wheels", "apple", tag="py2-none-any", version="2.2"))
    assert f"apple 2.2: {MAKERS} → nobody" in box.run("outdated", "demo").stdout


def test_a_mirror_that_drops_attestations_is_no_matter_for_the_same_files(
    index: Index, box: Box
) -> None:
    index.told.clear()
    assert box.json("lock", "demo")["changes"] == []
    assert publishers(box)["apple"] == MAKERS


def test_an_update_of_something_else_asks_for_nobody(index: Index, box: Box) -> None:
    release(index, box, "berry", "2.0", None)
    index.gets.clear()
    assert box.json("lock", "demo", "--update", "berry")["changes"] == ["~ wheel berry 1.0 → 2.0"]
    assert [path for path in index.gets if path.startswith("/integrity/")] == []


def test_attestations_that_do_not_fit_the_file_are_an_error(index: Index, box: Box) -> None:
    """Also where any publisher would be accepted."""
    file = release(index, box, "apple", "2.0", GITHUB)
    index.told[file.name] = provenance("0" * 64, GITHUB)
    failed = box.run("lock", "demo", "--accept-publisher", "apple")
    assert failed.returncode == 1
    assert f"{file.name}: the index's attestations do not fit it" in failed.stderr
    assert "about another file" in failed.stderr


def test_a_name_that_is_not_there_is_an_error(index: Index, box: Box) -> None:
    failed = box.run("lock", "demo", "--accept-publisher", "aple")
    assert failed.returncode == 2 and "aple" in failed.stderr
