"""The other side of the image benchmark: the same files with the usual tools.

mmdebstrap installs the locked packages from a local repository and runs their scripts, pip installs
the locked wheels into an environment, mksquashfs packs the tree once, as ours packs each layer.
"""

from __future__ import annotations

import ast
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pip
from measure import Stage, measured

from orchestrator.core import paths
from orchestrator.core.run import run
from orchestrator.image import lockfile, spec, store
from orchestrator.image.lockfile import Lock
from orchestrator.models.publish import sha256

TOOLS = ("mmdebstrap", "dpkg-deb", "mksquashfs", "unshare", "chroot")

#: Where the tree finds the wheels and pip while it is made.
SUPPLIES = "mnt"
#: Newer than whatever a package asks of one that the image leaves out.
NEWEST = "9999"


class Conventional:
    """One image's tree, made below ``scratch``, on disk. Needs root, for owners and chroot."""

    def __init__(self, name: str, scratch: Path) -> None:
        self.excluded = spec.load(name).debian.exclude
        self.lock = lockfile.current(name)
        self.repository = scratch / "repository"
        self.supplies = scratch / "supplies"
        self.tree = scratch / "tree"
        self.squashfs = scratch / "tree.squashfs"

    def prepare(self) -> None:
        """Lay out repository, wheels and pip. Not measured: either side has its inputs at hand."""
        self.repository.mkdir()
        make_repository(self.repository, self.lock, self.excluded)
        wheels = self.supplies / "wheels"
        wheels.mkdir(parents=True)
        for wheel in self.lock.wheels:
            shutil.copyfile(store.path_of_file(wheel), wheels / wheel.file)
        shutil.copytree(Path(pip.__file__).parent, self.supplies / "pip")
        os.sync()  # so that the disk does not still write this while the clock runs

    def stages(self) -> list[Stage]:
        """Make the image once; what was made before goes first."""
        shutil.rmtree(self.tree, ignore_errors=True)
        self.squashfs.unlink(missing_ok=True)
        packages = self.packages()
        wheels = [self.wheels(self.lock.python.version)] if self.lock.python else []
        return [packages, *wheels, self.pack()]

    def packages(self) -> Stage:
        versions = [f"{deb.name}={deb.version}" for deb in self.lock.debs]
        argv: list[str | Path] = ["mmdebstrap", "--mode=root", "--quiet", "--variant=essential"]
        argv += ["--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"]
        argv += [f"--dpkgopt={option}" for option in dpkg_options()]
        # No suite: the repository holds nothing else than the locked packages.
        argv += [f"--include={','.join(versions)}", "", self.tree]
        argv += [f"deb [trusted=yes] copy:{self.repository} ./"]
        with measured("mmdebstrap") as stage:
            run(argv)
        return stage

    def wheels(self, version: str) -> Stage:
        """Install the wheels with the tree's own Python, of this ``version``."""
        environment = self.lock.system["environment"]
        with measured("pip") as stage:
            self.chroot(f"python{version}", "-m", "venv", "--without-pip", environment)
            pip_options = ["--no-deps", "--no-index", "--no-cache-dir", "--quiet"]
            pip_options += ["--disable-pip-version-check", "--root-user-action=ignore"]
            wheels = [f"/{SUPPLIES}/wheels/{wheel.file}" for wheel in self.lock.wheels]
            self.chroot(f"{environment}/bin/python", "-m", "pip", "install", *pip_options, *wheels)
        return stage

    def chroot(self, *argv: str) -> None:
        """Run a program of the tree with the supplies mounted; the mount ends with it."""
        script = 'mount --bind "$1" "$2"; tree=$3; shift 3; exec chroot "$tree" "$@"'
        places = [self.supplies, self.tree / SUPPLIES, self.tree]
        words = ["env", "-i", f"PYTHONPATH=/{SUPPLIES}", f"PATH={os.defpath}", *argv]
        run(["unshare", "--mount", "sh", "-ec", script, "sh", *places, *words], what=argv[0])

    def pack(self) -> Stage:
        options = ["-noappend", "-no-progress", "-quiet", *built_with("common.py", "COMPRESSION")]
        with measured("mksquashfs") as stage:
            run(["mksquashfs", self.tree, self.squashfs, *options])
        return stage


def built_with(script: str, constant: str) -> Any:
    """A constant of one of our build scripts, which run nowhere but in a build."""
    path = paths.checkout() / "images/lib/build" / script
    for statement in ast.parse(path.read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == constant:
            return ast.literal_eval(statement.value)
    raise LookupError(f"{path} has no {constant}")


def dpkg_options() -> list[str]:
    """Let dpkg leave out what our build leaves out, and not wait for the disk at each file."""
    dropped: Sequence[str] = built_with("base.py", "DROPPED")
    kept: str = built_with("base.py", "KEPT")
    excluded = [f"path-exclude=/{path}*" for path in dropped]
    return ["force-unsafe-io", *excluded, f"path-include=/*{kept}"]


def make_repository(directory: Path, lock: Lock, excluded: dict[str, str]) -> None:
    """A flat repository of the locked packages, with an empty one for each that is left out."""
    stanzas = []
    for deb in lock.debs:
        shutil.copyfile(store.path_of_file(deb), directory / deb.file)
        stanzas.append(described(directory / deb.file))
    stanzas += [described(empty_package(directory, name)) for name in excluded]
    (directory / "Packages").write_text("\n".join(stanzas))


def described(deb: Path) -> str:
    """A package's paragraph in the index."""
    control = run(["dpkg-deb", "--field", deb]).out.rstrip("\n")
    place = f"Filename: ./{deb.name}\nSize: {deb.stat().st_size}\nSHA256: {sha256(deb)}\n"
    return f"{control}\n{place}"


def empty_package(directory: Path, name: str) -> Path:
    """Make a package that holds nothing and only satisfies others."""
    tree = directory / name
    (tree / "DEBIAN").mkdir(parents=True)
    fields = {
        "Package": name,
        "Version": NEWEST,
        "Architecture": "all",
        "Maintainer": "nobody",
        "Description": "left out of the image",
    }
    (tree / "DEBIAN/control").write_text("".join(f"{k}: {v}\n" for k, v in fields.items()))
    deb = directory / f"{name}.deb"
    run(["dpkg-deb", "--build", "--root-owner-group", tree, deb])
    shutil.rmtree(tree)
    return deb
