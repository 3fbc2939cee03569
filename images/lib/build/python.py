"""The python layer: all wheels in one environment, as pip would install them, with bytecode.

Files go from the wheels directly into mksquashfs, without being unpacked to disk. Meanwhile the
image's own python3.X, unpacked from its packages and run by its own loader, compiles bytecode. The
whole layer is below the environment's directory, so that a node can mount it there later.
"""

import io
import subprocess
import sys
from pathlib import Path

import compiling
from common import SPEC, finish_squashfs_of_tar, largest_first, say, squashfs_of_tar
from wheel import Environment, Tree, install_wheel, sources

VERSION = SPEC["python"]["version"]
PREFIX = SPEC["prefix"]
HOME = PREFIX.lstrip("/")
SITE = f"lib/python{VERSION}/site-packages"


def prepare(wheel: dict) -> None:
    """Link a wheel under its own file name: its store name can be another.

    A wheel that was built from source is in a directory, under its own name.
    """
    source = Path(wheel["source"])
    if source.is_dir():
        (source,) = source.iterdir()
        wheel.update(file=source.name, source=str(source))
    Path(wheel["file"]).symlink_to(source)


def start_compiling() -> list[subprocess.Popen]:
    """Start to compile all Python files of the wheels."""
    compiling.standard_library(SPEC["interpreter"], VERSION)
    brought = (entry for wheel in SPEC["wheels"] for entry in sources(wheel, f"{HOME}/{SITE}"))
    return compiling.start(VERSION, list(brought))


def environment(tree: Tree) -> None:
    """Add the files that `python -m venv` makes, without pip."""
    for name in ("python", "python3", f"python{VERSION}"):
        tree.link(f"{HOME}/bin/{name}", f"/usr/bin/python{VERSION}")
    settings = f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {VERSION}\n"
    tree.file(f"{HOME}/pyvenv.cfg", io.BytesIO(settings.encode()), len(settings))


def check_owners(tree: Tree) -> None:
    """Raises SystemExit if image.yml assigns a file to a wheel that does not contain it."""
    here = {wheel["name"] for wheel in SPEC["wheels"]}
    for path, owner in SPEC["owners"].items():
        if owner in here and tree.paths.get(f"{HOME}/{path}") != owner:
            sys.exit(f"image.yml: system.owners: {owner} brings no {path}")


def main() -> None:
    say(f"opening {len(SPEC['wheels'])} wheels")
    for wheel in SPEC["wheels"]:
        prepare(wheel)
    processes = start_compiling()
    say("wheels into squashfs, bytecode beside")
    squashfs = squashfs_of_tar(SPEC["epoch"])
    tree = Tree(squashfs.stdin, SPEC["epoch"])
    environment(tree)
    python = SPEC["python"]
    renamed, overrides = python.get("rename", {}), python.get("overrides", [])
    where = Environment(tree, PREFIX, SITE, renamed, SPEC["owners"], overrides)
    for wheel in largest_first(SPEC["wheels"]):
        install_wheel(where, wheel)
    check_owners(tree)
    say("bytecode into squashfs")
    for path, content in compiling.compiled(processes):
        tree.file(path, io.BytesIO(content), len(content))
    say("the rest of squashfs")
    tree.tar.close()
    finish_squashfs_of_tar(squashfs, {0})
    say("done")


if __name__ == "__main__":
    main()
