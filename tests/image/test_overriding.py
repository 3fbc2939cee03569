"""A requirement of a distribution that image.yml replaces: locked by pip, checked, shown."""

from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest
from support.box import Box
from support.making import Making
from support.suites import Archive, wheel

pytestmark = pytest.mark.nix

DEBIAN: dict[str, Any] = {"suite": "one", "components": ["main"], "essential": False}
INTERPRETER = "libpython3.11-minimal"
BECAUSE = "1.0 does not start"
NEWER = {"to": "==2.0", "because": BECAUSE}
SHOWN = {
    "distribution": "server",
    "requirement": "fast-kernels",
    "from": "==1.0",
    "to": "==2.0",
    "because": BECAUSE,
}


@pytest.fixture
def index(box: Box, archive: Archive, links: Path) -> Box:
    """'server' wants kernels 1.0 by another spelling; 'other', too, but leaves a choice."""
    archive.publish("one", f"{INTERPRETER} 3.11.2-6")
    wheel(links, "server", ("Fast.Kernels[more]==1.0; python_version > '3'", "other"))
    wheel(links, "other", ("fast_kernels>=1.0",))
    for version in ("1.0", "2.0", "3.0"):
        wheel(links, "fast_kernels", ("extra; extra == 'more'",), version=version)
    wheel(links, "extra")
    return box


def write(box: Box, override: Any, *requirements: str, **python: Any) -> None:
    given = {"version": "3.11", "glibc": "2.36", "requirements": list(requirements or ("server",))}
    given |= {"override": override} | python
    box.write("demo", debian=DEBIAN | {"packages": [INTERPRETER]}, python=given)


def locked(box: Box) -> dict[str, str]:
    rows = json.loads(box.lock("demo").read_text())["wheels"]
    return {row["name"]: row["version"] for row in rows}


def test_the_lock_has_what_replaces_a_requirement_and_says_why(index: Box) -> None:
    write(index, {"Server": {"fast_kernels": NEWER}})
    assert index.json("lock", "demo")["overrides"] == [SHOWN]
    assert locked(index) == {"server": "1.0", "other": "1.0", "fast-kernels": "2.0", "extra": "1.0"}
    assert json.loads(index.lock("demo").read_text())["python"]["overrides"] == [SHOWN]
    said = index.run("lock", "demo").stdout
    assert f"server requires fast-kernels==1.0, overridden by ==2.0: {BECAUSE}" in said
    assert "nothing changed" in said


def test_an_update_moves_what_is_replaced_and_nothing_else(index: Box, links: Path) -> None:
    write(index, {})
    index.json("lock", "demo")
    assert "overrides" not in json.loads(index.lock("demo").read_text())["python"]
    wheel(links, "other", ("fast_kernels>=1.0",), version="2.0")
    write(index, {"server": {"fast-kernels": NEWER}})
    changes = index.json("lock", "demo", "--update", "fast-kernels")["changes"]
    assert changes == ["~ wheel fast-kernels 1.0 → 2.0"]
    said = index.run("lock", "demo", "--update", "fast-kernels").stdout
    assert "fast-kernels stays at 2.0: images/demo/image.yml pins this version" in said


def test_only_the_named_distribution_is_overridden(index: Box, links: Path) -> None:
    """Two distributions with the very same line: pip reads it once for both."""
    wheel(links, "twin", ("Fast.Kernels[more]==1.0; python_version > '3'",))
    write(index, {"server": {"fast-kernels": NEWER}}, "server", "twin")
    failed = index.run("lock", "demo")
    assert failed.returncode == 2
    assert re.search(r"server 1\.0 depends on Fast\.Kernels.*==2\.0", failed.stderr)
    assert re.search(r"twin 1\.0 depends on Fast\.Kernels.*==1\.0", failed.stderr)


def test_a_requirement_of_a_source_archive_is_replaced(index: Box, links: Path) -> None:
    text = b"fast_kernels==1.0\nother\nbuilds_it\n"
    with tarfile.open(links / "made-1.0.tar.gz", "w:gz") as packed:
        info = tarfile.TarInfo("made-1.0/gpu.txt")
        info.size = len(text)
        packed.addfile(info, io.BytesIO(text))
    write(
        index,
        {"made": {"fast-kernels": NEWER}},
        "made",
        sources={"made": {"version": "1.0", "requires": "gpu.txt"}},
        exclude={"builds-it": "a build's"},
    )
    assert index.json("lock", "demo")["overrides"] == [SHOWN | {"distribution": "made"}]
    assert locked(index)["fast-kernels"] == "2.0"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            {"absent": {"fast-kernels": NEWER}},
            "python.override.absent.fast-kernels: the image has no distribution absent",
        ),
        (
            {"server": {"gone": NEWER}},
            "python.override.server.gone: server does not require gone (any more)",
        ),
        (
            {"server": {"fast-kernels": NEWER | {"to": "==1.0.0"}}},
            "python.override.server.fast-kernels: server itself requires fast-kernels==1.0.0",
        ),
        (
            {"server": {"fast_kernels": NEWER, "fast-kernels": NEWER}},
            "'fast-kernels' and 'fast_kernels' are the same name; keep one",
        ),
        (
            {"server": {"fast-kernels": NEWER}, "Server": {"other": NEWER}},
            "'Server' and 'server' are the same name; keep one",
        ),
        (
            {"server": {"fast-kernels": NEWER | {"to": "2.0"}}},
            "'2.0' is no version specifier such as ==1.2.3",
        ),
        ({"server": {"fast-kernels": NEWER | {"to": ""}}}, "no version is given"),
        ({"server": {"fast-kernels": NEWER | {"because": " "}}}, "is empty; say why"),
        ({"server": {"fast-kernels": {"to": "==2.0"}}}, "because: is missing"),
        ({"server": {"other": NEWER}}, "No matching distribution found for other==2.0"),
    ],
)
def test_an_override_that_is_wrong_or_in_vain_is_an_error_and_the_lock_stays(
    index: Box, override: Any, said: str
) -> None:
    write(index, {})
    index.json("lock", "demo")
    before = index.lock("demo").read_bytes()
    write(index, override)
    failed = index.run("lock", "demo")
    assert failed.returncode == 2
    assert said in failed.stderr
    assert index.lock("demo").read_bytes() == before


def test_a_requirement_that_is_overridden_twice_under_one_key_is_told_with_its_line(
    index: Box,
) -> None:
    write(index, {"server": {"fast-kernels": NEWER}})
    file = index.root / "checkout/images/demo/image.yml"
    lines = file.read_text().splitlines()
    at = next(number for number, line in enumerate(lines) if "fast-kernels:" in line)
    lines[at:at] = lines[at : at + 3]
    file.write_text("\n".join(lines))
    failed = index.run("lock", "demo")
    assert failed.returncode == 2
    assert f"is given twice; the first one is in line {at + 1}" in failed.stderr


def test_what_is_excluded_cannot_be_overridden_too(index: Box) -> None:
    write(index, {"server": {"other": NEWER}}, exclude={"Other": "not wanted"})
    failed = index.run("lock", "demo")
    assert failed.returncode == 2
    assert "override.server.other: other is in 'exclude'" in failed.stderr


@pytest.fixture
def demo(box: Box, tmp_path: Path) -> Making:
    """A lock with kernels 1.0, of which 'server' wants 0.9."""
    work = tmp_path / "work"
    work.mkdir()
    made = Making(box, work)
    made.deb(INTERPRETER, Version="3.11.2-6")
    made.wheel("server", requires=["fast_kernels==0.9"])
    made.wheel("fast_kernels")
    made.python = {"requirements": ["server"]}
    return made


def test_the_check_accepts_another_version_because_of_the_override_only(demo: Making) -> None:
    wants = ("server", "fast_kernels==0.9", "the lock has fast_kernels 1.0")
    assert demo.problems() == [wants]

    override = {"to": "==1.0", "because": "0.9 does not start"}
    demo.python["override"] = {"server": {"fast-kernels": override}}
    shown = {"distribution": "server", "requirement": "fast-kernels", "from": "==0.9", **override}
    assert demo.check(0)["overridden"] == [shown]
    said = demo.box.run("check", "demo").stdout
    wording = "server requires fast-kernels==0.9, overridden by ==1.0: 0.9 does not start"
    assert f"overridden: {wording}" in said

    override["to"] = "==2.0"
    assert demo.problems() == [
        ("server", "fast_kernels==2.0", "the lock has fast_kernels 1.0"),
    ]


def test_an_override_that_became_stale_is_told_by_the_check(demo: Making) -> None:
    override = {"to": "==1.0", "because": "0.9 does not start"}
    demo.python["override"] = {"server": {"fast-kernels": override, "gone": override}}
    assert demo.check(1)["stale"] == ["python.override.server.gone"]
    said = demo.box.run("check", "demo").stdout
    assert "wrong: python.override.server.gone is unused: remove it from image.yml" in said
