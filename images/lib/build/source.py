"""$out is a directory with one wheel, built from a source distribution by its own build backend.

The backend (PEP 517) runs on the Python and the wheels of images/builders, without network and
compiler. So the wheel is pure Python, and fits every Python that the source supports.
"""

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

from common import OUT, SPEC, in_tree, say
from deb import unpack_tree
from installer import install
from installer.destinations import SchemeDictionaryDestination
from installer.sources import WheelFile
from installer.utils import parse_wheel_filename

BUILDERS = Path("builders").absolute()
SITE = BUILDERS / "site"
LEGACY = {"build-backend": "setuptools.build_meta:__legacy__"}  # where pyproject.toml has none
ELF = b"\x7fELF"


def unpack_builders() -> None:
    """Unpack the builders' Debian packages and wheels."""
    unpack_tree(SPEC["debs"], BUILDERS)
    schemes = {name: str(BUILDERS / name) for name in ("scripts", "data", "headers")}
    schemes |= {"purelib": str(SITE), "platlib": str(SITE)}
    for wheel in SPEC["wheels"]:
        Path(wheel["file"]).symlink_to(wheel["source"])
        destination = SchemeDictionaryDestination(schemes, "python", script_kind="posix")
        with WheelFile.open(wheel["file"]) as source:
            install(source, destination, additional_metadata={})


def unpack_source() -> Path:
    """Unpack the source; return its directory. Raises SystemExit for a path outside of it."""
    into = Path("source").absolute()
    with tarfile.open(SPEC["source"]) as archive:
        for member in archive:
            if member.name.startswith("/") or ".." in member.name.split("/"):
                sys.exit(f"{SPEC['file']} has a path outside its root: {member.name}")
            archive.extract(member, into)
    (root,) = into.iterdir()
    return root


def python(script: Path | str, *words: str) -> list[str]:
    return in_tree(BUILDERS, f"python{SPEC['python']}", "-B", str(script), *words)


def run(argv: list[str], directory: Path) -> None:
    """Run a program of the builders. Its output is shown only if it fails."""
    environment = {
        "HOME": os.environ["HOME"],
        "PATH": "",  # no programs from outside
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": str(SITE),
        "SOURCE_DATE_EPOCH": str(SPEC["epoch"]),
        # setuptools-scm finds no version: a source distribution has no git history.
        "SETUPTOOLS_SCM_PRETEND_VERSION": SPEC["version"],
        **SPEC["environment"],
    }
    log = Path("log")
    with log.open("w") as said:
        done = subprocess.run(
            argv, cwd=directory, env=environment, stdout=said, stderr=said, check=False
        )
    if done.returncode != 0:
        sys.exit(f"{log.read_text()}\n{SPEC['file']}: its build backend failed")


def build(root: Path) -> Path:
    """Build the wheel into $out, with the backend in pyproject.toml."""
    settings = root / "pyproject.toml"
    system = tomllib.loads(settings.read_text())["build-system"] if settings.exists() else {}
    backend = (LEGACY | system)["build-backend"]
    script = Path(__file__).with_name("backend.py")
    run(python(script, str(OUT), backend, *system.get("backend-path", [])), root)
    (wheel,) = OUT.iterdir()
    return wheel


def check(wheel: Path) -> None:
    """Raises SystemExit if the wheel differs from the lock, or contains compiled files."""
    parts = parse_wheel_filename(wheel.name)
    name, version = parts.distribution.lower().replace("_", "-"), parts.version.partition("+")[0]
    if (name, version) != (SPEC["name"], SPEC["version"].partition("+")[0]):
        sys.exit(
            f"{SPEC['file']} gives {wheel.name}; the lock has {SPEC['name']} {SPEC['version']}"
        )
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as file:
                if file.read(len(ELF)) == ELF:
                    sys.exit(f"{wheel.name} holds a compiled file: {entry.filename}")


def tag(wheel: Path) -> None:
    """Rename the wheel to fit every Python. If a source could have compiled parts, setuptools tags
    its wheel for the Python that it ran on."""
    words = ["--remove", "--python-tag=py3", "--abi-tag=none", "--platform-tag=any"]
    run([*python("-m", "wheel", "tags"), *words, str(wheel)], OUT)


OUT.mkdir()
root = unpack_source()
say("unpacking the builders")
unpack_builders()
say(f"building a wheel of {root.name}")
wheel = build(root)
check(wheel)
tag(wheel)
(made,) = OUT.iterdir()
say(f"built {made.name}")
