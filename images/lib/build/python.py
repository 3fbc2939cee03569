"""The python layer: all wheels in one environment, as pip would install them, with bytecode.

Nothing is unpacked: files go from the wheels into mksquashfs, while the image's own python3.X,
unpacked from its packages and run through its own loader, compiles. The standard library's
bytecode is in this layer too, since Debian makes it at installation time.
"""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

from common import SPEC, finish_squashfs_of_tar, in_tree, largest_first, say, squashfs_of_tar
from deb import unpack_tree
from wheel import Environment, Tree, install_wheel, sources

VERSION = SPEC["python"]["version"]
PREFIX = SPEC["prefix"]
HOME = PREFIX.lstrip("/")
SITE = f"lib/python{VERSION}/site-packages"
IMAGE = Path("image").absolute()
#: Bytecode is compiled in this many fixed shares. What marshal writes depends on what else a
#: process compiled before; a share per process, not a queue, makes that the same every time.
SHARES = 4


def prepare(wheel: dict) -> None:
    """Give a wheel its file name back (store names may not carry it).

    One that was built from source lies in a directory, under its name.
    """
    source = Path(wheel["source"])
    if source.is_dir():
        (source,) = source.iterdir()
        wheel.update(file=source.name, source=str(source))
    Path(wheel["file"]).symlink_to(source)


def start_compiling() -> list[subprocess.Popen]:
    """Start a process for each share of all Python files; it writes share-N.tar."""
    unpack_tree(SPEC["interpreter"], IMAGE)
    library = f"usr/lib/python{VERSION}"
    files = [file for file in (IMAGE / library).rglob("*.py") if file.is_file()]
    standard = [(None, str(file), str(file.relative_to(IMAGE))) for file in files]
    brought = [entry for wheel in SPEC["wheels"] for entry in sources(wheel, f"{HOME}/{SITE}")]
    # Tests that wheels bring are not run in an image: a tenth of all files.
    wanted = [e for e in standard + brought if not {"test", "tests"} & set(e[2].split("/"))]
    Path("sources.json").write_text(json.dumps(sorted(wanted, key=lambda entry: entry[2])))
    script = Path(__file__).with_name("bytecode.py")
    argv = [*in_tree(IMAGE, f"python{VERSION}", "-S", "-B", str(script)), "sources.json"]
    return [
        subprocess.Popen([*argv, str(share), str(SHARES), share_tar(share)])
        for share in range(SHARES)
    ]


def share_tar(share: int) -> str:
    return f"share-{share}.tar"


def environment(tree: Tree) -> None:
    """What `python -m venv` would make, without pip."""
    for name in ("python", "python3", f"python{VERSION}"):
        tree.link(f"{HOME}/bin/{name}", f"/usr/bin/python{VERSION}")
    settings = f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {VERSION}\n"
    tree.file(f"{HOME}/pyvenv.cfg", io.BytesIO(settings.encode()), len(settings))


def add_bytecode(tree: Tree, compiling: list[subprocess.Popen]) -> None:
    """Take over what each share compiled, one after the other."""
    for share, process in enumerate(compiling):
        if process.wait() != 0:
            sys.exit("compiling bytecode failed")
        with tarfile.open(share_tar(share)) as made:
            for header in made:
                tree.file(header.name, made.extractfile(header), header.size)


def check_owners(tree: Tree) -> None:
    """Raises SystemExit where image.yml gives a file to a wheel that does not bring it."""
    here = {wheel["name"] for wheel in SPEC["wheels"]}
    for path, owner in SPEC["owners"].items():
        if owner in here and tree.paths.get(f"{HOME}/{path}") != owner:
            sys.exit(f"image.yml: system.owners: {owner} brings no {path}")


def main() -> None:
    say(f"opening {len(SPEC['wheels'])} wheels")
    for wheel in SPEC["wheels"]:
        prepare(wheel)
    compiling = start_compiling()
    say("wheels into squashfs, bytecode beside")
    squashfs = squashfs_of_tar(SPEC["epoch"])
    tree = Tree(squashfs.stdin, SPEC["epoch"])
    environment(tree)
    where = Environment(tree, PREFIX, SITE, SPEC["python"].get("rename", {}), SPEC["owners"])
    for wheel in largest_first(SPEC["wheels"]):
        install_wheel(where, wheel)
    check_owners(tree)
    say("bytecode into squashfs")
    add_bytecode(tree, compiling)
    say("the rest of squashfs")
    tree.tar.close()
    finish_squashfs_of_tar(squashfs, {0})
    say("done")


if __name__ == "__main__":
    main()
