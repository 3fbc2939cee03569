"""Files that no suite and no index has: locked by declaration, fetched by url. Source archives."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from support.box import Box, Site
from support.suites import Archive, wheel

from orchestrator.image import spec

pytestmark = pytest.mark.nix

DEBIAN: dict[str, Any] = {"suite": "one", "components": ["main"], "essential": False}
INTERPRETER = "libpython3.11-minimal"
SHA = hashlib.sha256(b"far away").hexdigest()


def driver(**more: Any) -> dict[str, Any]:
    url = "https://example.org/releases/2.0/driver_2.0-0_amd64.deb"
    return {"version": "2.0-0", "url": url, "sha256": SHA, **more}


def far_wheel(name: str, version: str, **more: Any) -> dict[str, Any]:
    file = f"{name}-{version.replace('+', '%2B')}-py3-none-any.whl"
    return {"version": version, "url": f"https://example.org/{file}", "sha256": SHA, **more}


def rows(box: Box, kind: str) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(box.lock("demo").read_text())[kind]}


def lock_python(box: Box, archive: Archive, *requirements: str, **more: Any) -> Any:
    archive.publish("one", f"{INTERPRETER} 3.11.2-6")
    python = {"version": "3.11", "glibc": "2.36", "requirements": [*requirements], **more}
    box.write("demo", debian=DEBIAN | {"packages": [INTERPRETER]}, python=python)
    return box.run("lock", "demo")


def test_a_declared_package_is_resolved_with_and_wins_over_the_suites(
    box: Box, archive: Archive
) -> None:
    archive.publish("one", "driver 9.0", "loader 1.5", "compiler 3.0", "unused 1")
    elsewhere = {"driver": driver(depends="loader (>= 1.2), compiler", provides="icd")}
    box.write("demo", debian=DEBIAN | {"packages": ["driver"], "elsewhere": elsewhere})
    assert box.json("lock", "demo")["unsized"] == 1
    debs = rows(box, "debs")
    assert set(debs) == {"driver", "loader", "compiler"}
    assert debs["driver"] == {
        "name": "driver",
        "version": "2.0-0",
        "architecture": "amd64",
        "path": "driver_2.0-0_amd64.deb",
        "size": None,
        "sha256": SHA,
        "store": "driver_2.0-0_amd64.deb",
        "url": elsewhere["driver"]["url"],
        "elsewhere": True,
    }
    assert "elsewhere" not in debs["loader"]


def test_what_a_declared_package_needs_has_to_be_there(box: Box, archive: Archive) -> None:
    archive.publish("one", "loader 1.0")
    elsewhere = {"driver": driver(depends="loader (>= 1.2)")}
    box.write("demo", debian=DEBIAN | {"packages": ["driver"], "elsewhere": elsewhere})
    failed = box.run("lock", "demo")
    assert failed.returncode == 2
    assert "driver : Depends: loader (>= 1.2) but it is not" in failed.stderr


def test_a_vendors_names_and_old_operators_are_resolved(box: Box, archive: Archive) -> None:
    archive.publish("one", "loader 1.2")
    elsewhere = {
        "xrt_base": driver(depends="loader (> 1.2), xrt_plugin-npu (>= 2)"),
        "xrt_plugin-npu": driver(depends="xrt_base (< 2.0-0)"),
    }
    box.write("demo", debian=DEBIAN | {"packages": ["xrt_base"], "elsewhere": elsewhere})
    box.json("lock", "demo")
    assert set(rows(box, "debs")) == {"xrt_base", "xrt_plugin-npu", "loader"}


def test_a_declared_package_that_nothing_needs_is_an_error(box: Box, archive: Archive) -> None:
    archive.publish("one", "hello 1")
    box.write("demo", debian=DEBIAN | {"packages": ["hello"], "elsewhere": {"driver": driver()}})
    failed = box.run("lock", "demo")
    assert failed.returncode == 2
    assert "no package of the image needs driver" in failed.stderr


def test_a_further_suite_gives_what_is_named_and_what_only_it_has(
    box: Box, archive: Archive
) -> None:
    archive.publish("one", "kernel 6", "tool 1", "lib 1")
    archive.publish("new", "kernel 7; Depends: modules (= 7)", "modules 7", "tool 2", "lib 2")
    packages = {"packages": ["tool", "lib"], "also": {"new": ["kernel"]}}
    box.write("demo", debian=DEBIAN | packages)
    box.json("lock", "demo")
    versions = {name: row["version"] for name, row in rows(box, "debs").items()}
    assert versions == {"kernel": "7", "modules": "7", "tool": "1", "lib": "1"}


def test_a_declared_wheel_is_resolved_with_and_wins_over_the_index(
    box: Box, archive: Archive, links: Path
) -> None:
    wheel(links, "torch", version="9.0")
    wheel(links, "torch", version="2.0")
    for version in ("1.0", "2.0"):
        wheel(links, "runtime", version=version)
    wheel(links, "server", ("torch==2.0", "left_out"))
    torch = far_wheel("torch", "2.0+xpu", requires=["runtime==1.0", "not_on_the_index"])
    done = lock_python(
        box,
        archive,
        "server",
        elsewhere={"torch": torch},
        exclude={"not-on-the-index": "a test", "left-out": "a test"},
    )
    # What a wheel of the index needs has to be there, even if it is left out afterwards.
    assert done.returncode == 2
    assert "left_out" in done.stderr
    wheel(links, "left_out")
    assert box.run("lock", "demo").returncode == 0
    wheels = rows(box, "wheels")
    assert {name: row["version"] for name, row in wheels.items()} == {
        "server": "1.0",
        "torch": "2.0+xpu",
        "runtime": "1.0",
    }
    assert wheels["torch"]["file"] == "torch-2.0+xpu-py3-none-any.whl"
    assert wheels["torch"]["url"] == torch["url"]
    assert wheels["torch"]["sha256"] == SHA
    assert wheels["torch"]["size"] is None
    assert wheels["torch"]["elsewhere"] is True
    assert wheels["runtime"]["size"] > 0


def test_a_known_size_can_be_declared(box: Box, archive: Archive, links: Path) -> None:
    done = lock_python(box, archive, "far", elsewhere={"far": far_wheel("far", "1.0", size=8)})
    assert done.returncode == 0, done.stderr
    assert rows(box, "wheels")["far"]["size"] == 8


def test_a_declared_wheel_that_nothing_needs_is_an_error(
    box: Box, archive: Archive, links: Path
) -> None:
    wheel(links, "server")
    failed = lock_python(box, archive, "server", elsewhere={"far": far_wheel("far", "1.0")})
    assert failed.returncode == 2
    assert "no distribution of the image needs far" in failed.stderr


def source(directory: Path, files: dict[str, str]) -> Path:
    """A source archive of 'made' 1.0."""
    path = directory / "made-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(f"made-1.0/{name}")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return path


SOURCE = {
    "PKG-INFO": "Metadata-Version: 2.2\nName: made\nVersion: 1.0\nRequires-Dist: for_others\n",
    "requirements/ours.txt": "-r all.txt\nkernels==1.0 # fast\n",
    "requirements/all.txt": "basic\n--extra-index-url https://example.org\nbuilds_it\n",
}


def test_a_source_archive_is_locked_with_what_its_own_list_names(
    box: Box, archive: Archive, links: Path
) -> None:
    path = source(links, SOURCE)
    wheel(links, "made", tag="cp311-cp311-manylinux_2_28_x86_64")  # for others: not to be taken
    for name in ("basic", "kernels", "builds_it", "for_others"):
        wheel(links, name)
    made = {"version": "1.0", "requires": "requirements/ours.txt", "environment": {"FOR": "us"}}
    done = lock_python(
        box, archive, "made", sources={"made": made}, exclude={"builds-it": "a build's"}
    )
    assert done.returncode == 0, done.stderr
    assert set(rows(box, "wheels")) == {"basic", "kernels"}
    assert rows(box, "sources")["made"] == {
        "name": "made",
        "version": "1.0",
        "file": path.name,
        "size": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "store": path.name,
        "environment": {"FOR": "us"},
    }
    del made["requires"]
    done = lock_python(box, archive, "made", sources={"made": made})
    assert done.returncode == 0, done.stderr
    assert set(rows(box, "wheels")) == {"for-others"}


def test_a_list_that_the_archive_lacks_is_named(box: Box, archive: Archive, links: Path) -> None:
    source(links, SOURCE)
    made = {"version": "1.0", "requires": "requirements/theirs.txt"}
    failed = lock_python(box, archive, "made", sources={"made": made})
    assert failed.returncode == 2
    assert "python.sources.made.requires" in failed.stderr
    assert "requirements/theirs.txt" in failed.stderr
    made = {"version": "2.0"}
    failed = lock_python(box, archive, "made", sources={"made": made})
    assert "no source archive of made 2.0" in failed.stderr


def test_requirements_that_only_a_build_knows_are_asked_for(
    box: Box, archive: Archive, links: Path
) -> None:
    source(links, SOURCE | {"PKG-INFO": "Metadata-Version: 2.1\nName: made\nVersion: 1.0\n"})
    failed = lock_python(box, archive, "made", sources={"made": {"version": "1.0"}})
    assert failed.returncode == 2
    assert "made-1.0.tar.gz: its metadata do not say what its wheel will require" in failed.stderr
    assert "python.sources.made.requires" in failed.stderr


@pytest.fixture
def fetchable(box: Box, archive: Archive, site: Site) -> Box:
    """'demo', locked with one file that lies elsewhere (on ``site``) and nothing else."""
    archive.publish("one", "hello 1")
    (site.root / "driver_2.0-0_amd64.deb").write_bytes(os.urandom(300_000))
    content = (site.root / "driver_2.0-0_amd64.deb").read_bytes()
    declared = driver(
        url=f"{site.url}/driver_2.0-0_amd64.deb", sha256=hashlib.sha256(content).hexdigest()
    )
    for name in spec.SHARED:
        box.write(name, debian=DEBIAN | {"packages": []})
        box.json("lock", name)
    box.write("demo", debian=DEBIAN | {"packages": ["driver"], "elsewhere": {"driver": declared}})
    box.json("lock", "demo")
    assert site.gets == []  # locking needs none of it
    return box


@pytest.mark.parametrize("tells_sizes", [True, False])
def test_a_file_of_unknown_size_is_fetched_by_its_url(
    fetchable: Box, site: Site, tells_sizes: bool
) -> None:
    site.tells_sizes = tells_sizes
    (before,) = fetchable.json("ls", "demo")
    assert (before["missing_size"], before["unsized"]) == (0, 1)
    assert "1 of unknown size" in fetchable.run("ls", "demo").stdout
    site.truncate["driver_2.0-0_amd64.deb"] = 100_000
    assert fetchable.json("fetch", "demo") == {"files": 1, "size": 300_000, "present": 0}
    assert site.ranges == (["bytes=100000-"] if tells_sizes else [])
    (after,) = fetchable.json("ls", "demo")
    assert (after["missing"], after["unsized"], after["inputs_size"]) == ([], 0, 300_000)
    assert "nothing to do" in fetchable.run("fetch", "demo").stdout


def test_wrong_bytes_of_a_file_elsewhere_are_refused(fetchable: Box, site: Site) -> None:
    file = site.root / "driver_2.0-0_amd64.deb"
    expected, wrong = hashlib.sha256(file.read_bytes()), hashlib.sha256(b"something else")
    file.write_bytes(b"something else")
    failed = fetchable.run("fetch", "demo")
    assert failed.returncode == 1
    hashes = (f"expected {expected.hexdigest()}", f"got      {wrong.hexdigest()}")
    for part in ("driver_2.0-0_amd64.deb: wrong content", *hashes, site.url):
        assert part in failed.stderr
    assert fetchable.stored() == []


def test_a_directory_brings_a_file_of_unknown_size(
    fetchable: Box, site: Site, tmp_path: Path
) -> None:
    brought = tmp_path / "brought"
    site.root.rename(brought)
    fetchable.json("fetch", "demo", "--from", brought)
    assert fetchable.stored() == ["driver_2.0-0_amd64.deb"]


def test_all_files_that_cannot_be_had_are_named_at_once(fetchable: Box, site: Site) -> None:
    (site.root / "driver_2.0-0_amd64.deb").unlink()
    failed = fetchable.run("fetch", "demo")
    assert failed.returncode == 1
    assert f"{site.url}/driver_2.0-0_amd64.deb: HTTP 404" in failed.stderr
    failed = fetchable.run("build", "demo")
    assert "driver_2.0-0_amd64.deb" in failed.stderr
    assert "orchestrate image fetch demo" in failed.stderr


def test_a_lock_with_a_wheel_for_another_python_is_refused(
    box: Box, archive: Archive, links: Path
) -> None:
    wheel(links, "native", tag="cp311-cp311-manylinux_2_28_x86_64")
    assert lock_python(box, archive, "native").returncode == 0
    good = box.lock("demo").read_text()
    box.lock("demo").write_text(good.replace("cp311-cp311", "cp313-cp313"))
    failed = box.run("fetch", "demo")
    assert failed.returncode == 1
    assert "native-1.0-cp313-cp313-manylinux_2_28_x86_64.whl is for cp313" in failed.stderr
    assert "not for Python 3.11 on x86_64 with glibc 2.36" in failed.stderr
    box.lock("demo").write_text(good.replace("x86_64", "aarch64"))
    assert "manylinux_2_28_aarch64, not for Python 3.11" in box.run("fetch", "demo").stderr
