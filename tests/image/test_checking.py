"""Checking locks of packages, wheels and libraries made here, by the real command."""

from __future__ import annotations

import hashlib
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.box import Box
from support.making import PREFIX, Making

pytestmark = pytest.mark.nix

SITE = f"{PREFIX}/lib/python3.11/site-packages"


@pytest.fixture
def demo(box: Box, tmp_path: Path) -> Iterator[Making]:
    work = tmp_path / "work"
    work.mkdir()
    made = Making(box, work)
    made.deb("libpython3.11-minimal", Version="3.11.2-6")
    yield made


def test_a_lock_that_has_all_is_found_so(demo: Making) -> None:
    base = demo.library("libbase.so.1")
    demo.deb("base", {"lib/x86_64-linux-gnu/libbase.so.1": base}, Provides="base-api (= 2)")
    demo.deb("tool", {"usr/lib/libtool.so": demo.library("libtool.so", base)}, Depends="base-api")
    demo.wheel("one", requires=["two>=1; python_version < '3.12'"])
    demo.wheel("two", {"two/_c.so": demo.library("_c.so", base)})
    demo.debian = {"packages": ["tool"]}
    demo.python = {"requirements": ["one"]}
    report = demo.check(0)
    assert (report["packages"], report["wheels"], report["objects"]) == (3, 2, 3)
    said = demo.box.run("check", "demo")
    assert said.stdout == "demo: 3 packages, 2 wheels, 3 ELF files: no problems\n"


def test_a_dependency_that_is_not_in_the_lock_is_named_with_who_needs_it(demo: Making) -> None:
    demo.deb("tool", Pre_Depends="base (>= 1)", Depends="other, libpython3.11-minimal (>= 4)")
    demo.wheel("one", requires=["two>=2", "three"])
    demo.wheel("two")
    demo.python = {"requirements": ["four"]}
    assert demo.problems() == [
        ("tool", "base (>= 1)", "not in the lock"),
        ("tool", "other", "not in the lock"),
        ("tool", "libpython3.11-minimal (>= 4)", "the lock has libpython3.11-minimal 3.11.2-6"),
        ("image.yml", "four", "not in the lock"),
        ("one", "three", "not in the lock"),
        ("one", "two>=2", "the lock has two 1.0"),
    ]
    said = demo.box.run("check", "demo")
    assert said.returncode == 1
    assert "wrong: tool needs base (>= 1), other: not in the lock" in said.stdout
    assert "6 problems" in said.stdout


def test_what_lacks_on_purpose_has_a_reason_and_a_reason_for_nothing_is_told(demo: Making) -> None:
    demo.deb("tool", {"usr/lib/t.so": demo.library("t.so", demo.library("libgpu.so"))}, Depends="a")
    demo.wheel("one", requires=["two"])
    demo.debian = {"exclude": {"a": "not wanted"}}
    demo.python = {"exclude": {"two": "text only", "three": "never needed"}}
    demo.allowed = {
        "needed": {"libgpu.so": "no GPU", "libold.so": "gone"},
        "unmet": {"four": "gone too"},
    }
    report = demo.check(1)
    assert report["problems"] == []
    assert {each["key"]: each["reason"] for each in report["allowed"]} == {
        "debian.exclude.a": "not wanted",
        "python.exclude.two": "text only",
        "check.needed.libgpu.so": "no GPU",
    }
    assert report["stale"] == ["python.exclude.three", "check.unmet.four", "check.needed.libold.so"]


def test_an_exception_makes_no_lock_stale(demo: Making) -> None:
    demo.lock()
    before = demo.box.lock("demo").read_bytes()
    demo.allowed = {"unmet": {"x": "why"}}
    demo.lock()
    assert demo.box.lock("demo").read_bytes() == before


def test_a_wheel_for_another_python_or_platform_is_told(demo: Making) -> None:
    demo.wheel("ours", tag="cp39-abi3-manylinux_2_17_x86_64.manylinux2014_x86_64")
    demo.wheel("newer", tag="cp312-cp312-manylinux_2_28_x86_64")
    demo.wheel("arm", tag="cp311-cp311-manylinux_2_28_aarch64")
    demo.wheel("glibc", tag="cp311-cp311-manylinux_2_39_x86_64")
    demo.lock()
    said = demo.box.run("check", "demo")
    assert said.returncode == 1
    for name in ("newer", "arm", "glibc"):
        assert f"{name}-1.0-" in said.stderr
    assert "ours-1.0-" not in said.stderr
    assert "not for Python 3.11 on x86_64 with glibc 2.36" in said.stderr


def test_a_library_that_no_file_brings_is_named_with_file_and_package(demo: Making) -> None:
    gone = demo.library("libgone.so.3")
    demo.deb("tool", {"usr/lib/libtool.so": demo.library("libtool.so", gone)})
    demo.wheel("one", {"one-1.0.data/data/lib/libone.so": demo.library("libone.so", gone)})
    assert demo.problems() == [
        (f"one: {PREFIX}/lib/libone.so", "libgone.so.3", "not in the image"),
        ("tool: /usr/lib/libtool.so", "libgone.so.3", "not in the image"),
    ]


def test_a_library_of_another_wheel_is_found_by_rpath_only(demo: Making) -> None:
    base = demo.library("libbase.so.1")
    beside = ["-Wl,-rpath,$ORIGIN/../../.."]
    demo.wheel("base", {"base-1.0.data/data/lib/libbase.so.1": base})
    demo.wheel("found", {"found/_f.so": demo.library("_f.so", base, options=beside)})
    demo.check(0)
    demo.wheel("lost", {"lost/_l.so": demo.library("_l.so", base)})
    where = f"outside the loader's search path: {PREFIX}/lib/libbase.so.1"
    assert demo.problems() == [(f"lost: {SITE}/lost/_l.so", "libbase.so.1", where)]
    demo.allowed = {"loaded": {"lost:libbase.so.*": "it imports base first"}}
    demo.check(0)


def test_links_of_packages_and_of_the_config_are_followed(demo: Making) -> None:
    base = demo.library("libbase.so.1")
    real = "usr/lib/x86_64-linux-gnu/base/libbase.so.1.2"
    demo.deb("base", {real: base, "usr/lib/x86_64-linux-gnu/libbase.so.1": "base/libbase.so.1.2"})
    demo.deb("tool", {"usr/lib/libtool.so": demo.library("libtool.so", base)})
    demo.check(0)
    far = ["-Wl,-rpath,/opt/vendor/lib"]
    demo.deb("far", {"usr/lib/libfar.so": demo.library("libfar.so", base, options=far)})
    demo.files = [file for file in demo.files if file.name != "base"]
    demo.wheel("base", {"base-1.0.data/data/lib/libbase.so.1": base})
    assert [who for who, *_ in demo.problems()] == [
        "far: /usr/lib/libfar.so",
        "tool: /usr/lib/libtool.so",
    ]
    vendor = demo.box.root / "checkout/images/demo/config/opt/vendor"
    vendor.parent.mkdir(parents=True)
    vendor.symlink_to(PREFIX)
    assert [who for who, *_ in demo.problems()] == ["tool: /usr/lib/libtool.so"]


def test_other_machines_files_and_no_elf_files_count_for_nothing(demo: Making) -> None:
    other = demo.library("other.so", demo.library("libgone.so"))
    data = bytearray(other.read_bytes())
    data[18] = 0xB7  # the header's machine: AArch64
    other.write_bytes(data)
    text = demo.work / "text"
    text.write_text("#!/bin/sh\n")
    module = demo.work / "module.ko"
    module.write_bytes(b"\x7fELF\x02\x01" + bytes(10) + b"\x01\x00\x3e\x00" + bytes(60))
    demo.deb("mixed", {"usr/lib/other.so": other, "usr/bin/x": text, "lib/modules/m.ko": module})
    assert demo.check(0)["objects"] == 0


def test_a_broken_elf_file_is_told_and_the_rest_goes_on(demo: Making) -> None:
    whole = demo.library("libwhole.so", demo.library("libgone.so"))
    broken = demo.work / "broken.so"
    broken.write_bytes(whole.read_bytes()[:300])
    demo.deb("tool", {"usr/lib/broken.so": broken, "usr/lib/libwhole.so": whole})
    (first, _, problem), (second, *_) = demo.problems()
    assert first == "tool: /usr/lib/broken.so" and problem.startswith("not a whole ELF file")
    assert second == "tool: /usr/lib/libwhole.so"


def test_a_file_that_is_another_package_than_the_lock_says_is_told(demo: Making) -> None:
    demo.deb("tool", Version="1.1")
    demo.files[-1] = demo.files[-1].model_copy(update={"version": "1.0"})
    demo.wheel("one")
    demo.files[-1] = demo.files[-1].model_copy(update={"version": "2.0"})
    assert demo.problems() == [
        ("tool", "to be tool 1.0 amd64", "its file is tool 1.1 amd64"),
        ("one", "to be one 2.0", "its file is one 1.0"),
    ]


def test_a_file_that_cannot_be_read_is_an_error_with_its_name(demo: Making) -> None:
    file = demo.work / "tool_1.0_amd64.deb"
    demo.deb("tool")
    file.write_text("no package")
    demo._add(file)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    demo.files[-1] = demo.files[-1].model_copy(update={"sha256": sha256})
    demo.lock()
    said = demo.box.run("check", "demo")
    assert said.returncode == 1
    assert "tool_1.0_amd64.deb: this Debian package cannot be read" in said.stderr


def test_what_is_not_in_the_store_is_told_with_the_command_that_brings_it(demo: Making) -> None:
    demo.deb("tool", Depends="base")
    demo.deb("base")
    gone = demo.files[-1].model_copy(update={"sha256": "0" * 64, "path": "pool/base_1.0_amd64.deb"})
    report = demo.check(1, [*demo.files[:-1], gone])
    assert (report["unread"], report["problems"]) == (["base_1.0_amd64.deb"], [])
    said = demo.box.run("check", "demo").stdout
    assert "not in the Nix store, not checked: base_1.0_amd64.deb" in said
    assert "orchestrate image fetch demo" in said


def test_a_declared_file_counts_as_declared_until_it_is_here(demo: Making) -> None:
    """One that is not here may bring a library; one that is here has to be as declared."""
    base = demo.library("libbase.so.1")
    made = demo.deb("runtime", {"usr/lib/libbase.so.1": base}, Depends="tool", Provides="api")
    demo.deb("tool", {"usr/lib/libtool.so": demo.library("libtool.so", base)}, Depends="api")
    here = demo.files[1]
    url = f"https://localhost/{made.name}"
    declared = {"version": "1.0", "url": url, "sha256": here.sha256, "depends": "tool, never"}
    demo.debian = {"elsewhere": {"runtime": declared | {"provides": "api"}}}
    wants = "what debian.elsewhere.runtime.depends says"
    assert demo.problems() == [("runtime", wants, "its file has no never")]

    absent = here.model_copy(update={"sha256": "0" * 64, "elsewhere": True, "size": None})
    demo.files[1] = absent
    demo.debian["elsewhere"]["runtime"]["sha256"] = "0" * 64
    demo.allowed = {"unmet": {"never": "only declared"}, "needed": {"libold.so": "not judged"}}
    report = demo.check(0)
    assert report["declared"] == [made.name]
    assert [each["wants"] for each in report["undecided"]] == ["libbase.so.1"]
    assert report["stale"] == []


FLAKE = """
{
  outputs = _: {
    legacyPackages.x86_64-linux.demo.wheels.made = derivation {
      name = "made-wheel";
      system = "x86_64-linux";
      builder = "/bin/sh";
      args = [ "-c" "/bin/mkdir $out; /bin/cp ${./made.whl} $out/made-1.0+gpu-py3-none-any.whl" ];
    };
  };
}
"""


def test_of_a_wheel_that_is_made_from_source_first_the_archive_counts_then_the_wheel(
    demo: Making,
) -> None:
    listed = demo.work / "gpu.txt"
    listed.write_text("two>=1\ngone # a comment\n")
    archive = demo.work / "made-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(listed, "made-1.0/requirements/gpu.txt")
    demo.wheel("two")
    demo.source(archive)
    demo.python = {
        "requirements": ["made==1.0"],
        "sources": {"made": {"version": "1.0", "requires": "requirements/gpu.txt"}},
    }
    report = demo.check(1)
    assert report["unbuilt"] == ["made"]
    assert [(each["who"], each["wants"]) for each in report["problems"]] == [("made", "gone")]

    checkout = demo.box.root / "checkout"
    metadata = "Metadata-Version: 2.1\nName: made\nVersion: 1.0+gpu\nRequires-Dist: two>=1\n"
    with zipfile.ZipFile(checkout / "made.whl", "w") as wheel:
        wheel.writestr("made-1.0+gpu.dist-info/METADATA", metadata)
        wheel.write(demo.library("_m.so", demo.library("libgpu.so")), "made/_m.so")
    (checkout / "flake.nix").write_text(FLAKE)
    demo.box.env["NIX_CONFIG"] = "sandbox = false\nexperimental-features = nix-command flakes"
    argv = ["nix", "--option", "build-users-group", "", "build", f"{checkout}#demo.wheels.made"]
    subprocess.run([*argv, "--no-link"], env=demo.box.env, check=True, capture_output=True)
    assert demo.problems() == [
        ("made", "what made-1.0.tar.gz requires", "its file has no gone"),
        (f"made: {SITE}/made/_m.so", "libgpu.so", "not in the image"),
    ]


def test_a_file_is_unpacked_once(demo: Making) -> None:
    demo.deb("tool", {"usr/lib/libtool.so": demo.library("libtool.so")})
    demo.check(0)
    kept = sorted((demo.box.root / "cache/elf").iterdir())
    assert len(kept) == len(demo.files)
    times = [path.stat().st_mtime_ns for path in kept]
    kept[0].write_text("half of a fi")
    demo.check(0)
    again = [path.stat().st_mtime_ns for path in kept]
    assert again[0] != times[0] and again[1:] == times[1:]
