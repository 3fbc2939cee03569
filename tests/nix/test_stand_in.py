"""The complete pxe-0.1 where nobody has the files that no mirror has: tiny ones stand in for them.

So every step after the download runs. The image is a test's and says so by its name; nothing that
computes on a GPU is in it. Its oneAPI is the real one, as far as SYCL reaches.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support import generated
from support.flake import Checkout, bring, built
from support.generated import File, as_locked

from orchestrator.image import lockfile, spec
from orchestrator.image.check import elf, libraries

pytestmark = pytest.mark.nix

MODEL = "pxe-0.1"
NAME = "test-image"
PREFIX = "/opt/venvs/orchestrate"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
#: Real wheels of the image: SYCL with all that it loads. torch's RPATH has to lead to them.
SYCL = ("intel-cmplr-lib-rt", "intel-cmplr-lib-ur", "intel-sycl-rt", "tcmlib", "umf")
#: What torch-xpu's libraries have as DT_RPATH: from torch/lib to the lib of the environment.
RPATH = "$ORIGIN/../../../.."

TORCH = b"""
import ctypes, pathlib
_library = ctypes.CDLL(str(pathlib.Path(__file__).with_name("lib") / "libtorch_xpu.so"))
__version__ = "2.13.0+xpu"
def version_of_umf(): return _library.version_of_umf()
"""
#: What the real libumf says that it is, in the upper half (umf/base.h: UMF_MAKE_VERSION).
UMF_MAJOR = 1


@dataclass(frozen=True)
class Compiler:
    """gcc, for libraries of one function."""

    home: Path

    def library(
        self, soname: str, code: str = "", *options: str, needs: Sequence[str] = ()
    ) -> bytes:
        """A shared library that needs others, which are not there when it is linked."""
        stubs = self.home / "stubs"
        stubs.mkdir(parents=True, exist_ok=True)
        for need in needs:
            self._link(stubs / need, "", f"-Wl,-soname,{need}")
        words = [f"-Wl,-soname,{soname}", f"-L{stubs}", "-Wl,--no-as-needed", *options]
        return self._link(self.home / soname, code, *words, *(f"-l:{need}" for need in needs))

    def program(self, code: str) -> bytes:
        return self._run(self.home / "program", code)

    def _link(self, out: Path, code: str, *options: str) -> bytes:
        return self._run(out, code, "-shared", "-fPIC", *options)

    def _run(self, out: Path, code: str, *options: str) -> bytes:
        argv = ["gcc", "-x", "c", "-", "-o", str(out), *options]
        subprocess.run(argv, input=code, text=True, check=True)
        return out.read_bytes()


def stand_ins(home: Path, missing: dict[str, dict[str, Any]]) -> dict[str, File]:
    """A file for each of those that no mirror has, with its name, version and the paths it has."""
    c = Compiler(home)
    igc, gmm, ze = "libigc.so.2", "libigdgmm.so.12", "libze_intel_gpu.so.1"
    icd = f"{LIBRARIES}/intel-opencl/libigdrcl.so"
    packages: dict[str, dict[str, bytes]] = {
        "intel-igc-core-2": {f"usr/local/lib/{igc}": c.library(igc)},
        "intel-igc-opencl-2": {
            "usr/local/lib/libigdfcl.so.2": c.library("libigdfcl.so.2", needs=[igc])
        },
        "libigdgmm12": {f"{LIBRARIES}/{gmm}": c.library(gmm)},
        "libze-intel-gpu1": {f"{LIBRARIES}/{ze}": c.library(ze, needs=[gmm, igc])},
        "intel-opencl-icd": {
            icd: c.library("libigdrcl.so", needs=[gmm]),
            "etc/OpenCL/vendors/intel.icd": f"/{icd}\n".encode(),
        },
        "intel-ocloc": {
            "usr/bin/ocloc-26.09.1": c.program(
                '#include <stdio.h>\nint main(void) { return puts("a stand-in of ocloc") < 0; }'
            )
        },
    }
    asks = """
        int umfGetCurrentVersion(void);
        int version_of_umf(void) { return umfGetCurrentVersion(); }
    """
    rpath = ("-Wl,--disable-new-dtags", f"-Wl,-rpath,{RPATH}")
    xpu = c.library("libtorch_xpu.so", asks, *rpath, needs=["libsycl.so.9", "libumf.so.1"])
    wheels: dict[str, dict[str, bytes]] = {
        "torch": {"torch/__init__.py": TORCH, "torch/lib/libtorch_xpu.so": xpu},
        "triton-xpu": {"triton/__init__.py": b"__version__ = '3.7.2'\n"},
        "triton": {},
    }
    made = {}
    for name, files in packages.items():
        made[name] = generated.deb(home, name, files, version=missing[name]["version"])
    for name, files in wheels.items():
        tag = missing[name]["file"].removesuffix(".whl").split("-", 2)[2]
        version = missing[name]["version"]
        made[name] = generated.wheel(home, name, files, version=version, tag=tag)
    return made


@dataclass(frozen=True)
class Standing:
    """The built image with stand-ins, and its root as a node has it."""

    image: Path
    root: Path
    stand_ins: dict[str, File]

    def run(self, *argv: str, **env: str) -> str:
        """What a program prints in the image alone."""
        clean = {"PATH": "/usr/bin:/usr/sbin", **env}
        done = subprocess.run(
            ["chroot", self.root, *argv],
            env=clean,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def python(self, code: str, **env: str) -> str:
        return self.run(f"{PREFIX}/bin/python", "-c", code, **env)


@contextmanager
def mounted(image: Path, layers: Sequence[str], home: Path) -> Iterator[Path]:
    """The layers over each other, the first the lowest, as a node's root; writes are lost."""
    places = [home / layer for layer in layers]
    root, changed, work = (home / name for name in ("root", "changed", "work"))
    for directory in (*places, root, changed, work):
        directory.mkdir(parents=True)
    with ExitStack() as stack:

        def mount(place: Path, *words: str | Path) -> None:
            subprocess.run(["mount", *words, place], check=True)
            stack.callback(lambda: subprocess.run(["umount", place], check=True))

        for layer, place in zip(layers, places, strict=True):
            mount(place, "-t", "squashfs", "-o", "ro,loop", (image / layer).resolve())
        lower = ":".join(str(place) for place in reversed(places))
        options = f"lowerdir={lower},upperdir={changed},workdir={work}"
        mount(root, "-t", "overlay", "-o", options, "overlay")
        mount(root / "proc", "-t", "proc", "proc")  # SYCL reads what is mapped into its process
        mount(root / "dev", "-t", "tmpfs", "dev")
        subprocess.run(["mknod", "-m", "666", root / "dev/null", "c", "1", "3"], check=True)
        yield root


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    assert os.geteuid() == 0, "mounting layers needs root: run the tests as root"
    bring(MODEL)
    home = tmp_path_factory.mktemp("stand-in")
    checkout = Checkout.copy(home / "checkout")
    lock = checkout.lock(MODEL)
    listed = [*lock["debs"], *lock["wheels"]]
    made = stand_ins(home, {each["name"]: each for each in listed if each.get("elsewhere")})
    kept = {*lock["system"]["minimal"], *SYCL, *made}
    checkout.image(
        MODEL,
        NAME,
        debs=[made.get(each["name"]) or as_locked(each) for each in lock["debs"]],
        wheels=[
            made.get(each["name"]) or as_locked(each)
            for each in lock["wheels"]
            if each["name"] in kept
        ],
        sources=[as_locked(each) for each in lock["sources"]],
    )
    (home / "checkout/images" / MODEL / "config").rename(home / "checkout/images" / NAME / "config")
    image = built(checkout.attribute(NAME), home / "image")
    layers = [each["file"] for each in json.loads((image / "manifest.json").read_text())["layers"]]
    with mounted(image, layers, home / "mounts") as root:
        yield Standing(image, root, made)


def test_it_is_a_test_image_and_whole(standing: Standing) -> None:
    manifest = json.loads((standing.image / "manifest.json").read_text())
    assert manifest["name"] == NAME
    assert len(standing.stand_ins) == 9
    parts = json.loads((standing.image / "sbom.cdx.json").read_text())["components"]
    hashes = {part["name"]: part["hashes"][0]["content"] for part in parts}
    for name, file in standing.stand_ins.items():
        assert hashes[name] == file.entry["sha256"]


def test_torchs_libraries_find_oneapis_by_their_rpath(standing: Standing) -> None:
    """In the image's own Python, with nothing in its environment that would help."""
    code = """
import torch
print(torch.version_of_umf())
for line in open("/proc/self/maps"):
    if ".so" in line: print(line.split()[-1])
"""
    said, *loaded = standing.python(code).splitlines()
    assert int(said) >> 16 == UMF_MAJOR
    found = {Path(path).name.partition(".so")[0]: Path(path).parent for path in loaded}
    for name in ("libsycl", "libur_loader", "libumf", "libhwloc", "libsvml", "libimf", "libintlc"):
        assert str(found[name]) == f"{PREFIX}/lib", name
    site = f"{PREFIX}/lib/python3.13/site-packages"
    assert str(found["libtorch_xpu"]) == f"{site}/torch/lib"


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_setvars_gives_programs_the_same(standing: Standing, shell: str) -> None:
    script = ". /opt/intel/oneapi/setvars.sh && . /opt/intel/oneapi/setvars.sh"
    load = "import ctypes; ctypes.CDLL('libsycl.so.9'); print(ctypes.CDLL('libumf.so.1')._name)"
    assert standing.run(shell, "-euc", f'{script} && python -c "{load}"') == "libumf.so.1"
    listed = standing.run(shell, "-euc", f"{script} && ls $ONEAPI_ROOT/compiler/latest/include")
    assert "sycl" in listed.split()


def test_drivers_are_where_their_loaders_look(standing: Standing) -> None:
    code = """
import ctypes, pathlib
for name in ("libze_intel_gpu.so.1", "libigc.so.2", "libigdfcl.so.2"): ctypes.CDLL(name)
icd = pathlib.Path("/etc/OpenCL/vendors/intel.icd").read_text().strip()
print(ctypes.CDLL(icd)._name)
"""
    assert standing.python(code) == f"/{LIBRARIES}/intel-opencl/libigdrcl.so"
    assert standing.run("ocloc") == "a stand-in of ocloc"


def test_commands_and_metadata(standing: Standing) -> None:
    """vLLM's is the real wheel, built from its source; it runs on what stands in for torch."""
    code = """
import importlib.metadata as metadata
for name in ("vllm", "torch", "triton", "triton-xpu"): print(name, metadata.version(name))
(command,) = metadata.entry_points(group="console_scripts", name="vllm")
print(command.value)
"""
    assert standing.python(code).splitlines() == [
        "vllm 0.30.0+xpu",
        "torch 2.13.0+xpu",
        "triton 3.7.2+xpu",
        "triton-xpu 3.7.2",
        "vllm.entrypoints.cli.main:main",
    ]
    command = standing.root / PREFIX.lstrip("/") / "bin/vllm"
    assert command.read_text().splitlines()[0] == f"#!{PREFIX}/bin/python"
    assert command.stat().st_mode & 0o111 == 0o111
    assert (standing.run("python3", "--version")).startswith("Python 3.13.")


def test_vllm_requires_what_the_lock_has_in_place_of_its_own_pin(standing: Standing) -> None:
    """So that 'pip check' on a node, and whatever else asks the distribution, finds it met."""
    python = lockfile.current(MODEL).python
    assert python is not None and python.overrides
    for each in python.overrides:
        code = (
            f"import importlib.metadata as m; print(*m.requires('{each.distribution}'), sep='\\n')"
        )
        found = [Requirement(line) for line in standing.python(code).splitlines()]
        (own,) = (one for one in found if canonicalize_name(one.name) == each.requirement)
        assert str(own.specifier) == each.to != each.from_


def test_units_are_whole(standing: Standing) -> None:
    """systemd's own check of all that the default target wants: of missing programs, and so on."""
    standing.run("systemd-analyze", "verify", "--man=no", "default.target")
    for unit in ("ssh.service", "systemd-networkd.service"):
        assert standing.run("systemctl", "is-enabled", unit) == "enabled"


def test_every_library_finds_what_it_needs(standing: Standing) -> None:
    """By the rules of the loader, and with image.yml's exceptions: 'orchestrate image check'."""
    parts = [
        libraries.Brought(top, elf.of_tree(standing.root / top).placed(f"/{top}/{{}}".format))
        for top in ("etc", "opt", "usr")
    ]
    assert sum(len(part.content.objects) for part in parts) > 500
    found = libraries.check(parts, spec.load(MODEL).check)
    assert [str(each) for each in found if not each.reason] == []
