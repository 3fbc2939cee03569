"""The python layer: all wheels in one environment, as pip would install them, with bytecode.

Interpreter and bytecode are the image's: its python3.X is unpacked from its packages and run
through its own loader. The standard library's bytecode is in this layer too, since Debian makes
it at installation time.
"""

import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from common import SPEC, in_tree, largest_first, say, squashfs_of_directory
from deb import unpack_tree
from installer import install
from installer.destinations import SchemeDictionaryDestination
from installer.sources import WheelFile

VERSION = SPEC["python"]["version"]
PREFIX = SPEC["prefix"]
ROOT = Path("root").absolute()
HOME = ROOT / PREFIX.lstrip("/")
SITE = f"lib/python{VERSION}/site-packages"
#: Bytecode is compiled in this many fixed shares. What marshal writes depends on what else a
#: process compiled before; a share per process, not a queue, makes that the same every time.
SHARES = 4


def environment() -> None:
    """What `python -m venv` would make, without pip."""
    (HOME / "bin").mkdir(parents=True)
    for name in ("python", "python3", f"python{VERSION}"):
        (HOME / "bin" / name).symlink_to(f"/usr/bin/python{VERSION}")
    (HOME / SITE).mkdir(parents=True)
    (HOME / "pyvenv.cfg").write_text(
        f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {VERSION}\n"
    )


def prepare(wheel: dict) -> Path:
    """Give a wheel its file name back (store names may not carry it) and make its directories.

    The directories are made here, by one process: `installer` does not expect others beside it.
    """
    named = Path(wheel["file"])
    named.symlink_to(wheel["source"])
    with zipfile.ZipFile(named) as archive:
        for name in archive.namelist():
            top, _, below = name.partition("/")
            into = HOME / SITE / name
            if top.endswith(".data"):
                kind, _, below = below.partition("/")
                into = (HOME if kind == "data" else HOME / SITE) / below
            into.parent.mkdir(parents=True, exist_ok=True)
    return named


def install_wheel(wheel: dict) -> None:
    """Install one wheel: files, scripts, data below the prefix, RECORD.

    A file that another wheel already brought is an error (`installer` raises it).
    """
    scheme = {
        "purelib": f"{PREFIX}/{SITE}",
        "platlib": f"{PREFIX}/{SITE}",
        "scripts": f"{PREFIX}/bin",
        "data": PREFIX,
        "headers": f"{PREFIX}/include/{wheel['name']}",
    }
    destination = SchemeDictionaryDestination(
        scheme,
        interpreter=f"{PREFIX}/bin/python",
        script_kind="posix",
        bytecode_optimization_levels=(),
        destdir=str(ROOT),
    )
    try:
        with WheelFile.open(wheel["file"]) as source:
            install(source, destination, additional_metadata={"INSTALLER": b"orchestrate\n"})
    except Exception as error:
        raise SystemExit(f"{wheel['file']}: {error}") from error


def rename(name: str, new: dict) -> None:
    """Let an installed distribution carry another name and version in its metadata."""
    site = HOME / SITE
    (old,) = site.glob(f"{name.replace('-', '_')}-*.dist-info")
    info = old.rename(site / f"{new['name'].replace('-', '_')}-{new['version']}.dist-info")
    head, blank, body = (info / "METADATA").read_text().partition("\n\n")
    fields = {"Name": new["name"], "Version": new["version"]}
    lines = []
    for line in head.splitlines():
        key = line.partition(":")[0]
        lines.append(f"{key}: {fields[key]}" if key in fields else line)
    (info / "METADATA").write_text("\n".join(lines) + blank + body)
    # The hash of METADATA no longer holds; an empty one is allowed.
    metadata = f"{old.name}/METADATA,"
    rows = (info / "RECORD").read_text().splitlines()
    rows = [f"{metadata}," if row.startswith(metadata) else row for row in rows]
    text = "\n".join(rows) + "\n"
    (info / "RECORD").write_text(text.replace(f"{old.name}/", f"{info.name}/"))


def bytecode() -> None:
    """Compile everything, the standard library too, with the image's interpreter."""
    image = Path("image").absolute()
    unpack_tree(SPEC["interpreter"], image)
    library = f"usr/lib/python{VERSION}"
    shutil.copytree(image / library, ROOT / library, symlinks=True)
    script = Path(__file__).with_name("bytecode.py")
    argv = [*in_tree(image, f"python{VERSION}", "-S", "-B", str(script)), str(ROOT)]
    running = [subprocess.Popen([*argv, str(share), str(SHARES)]) for share in range(SHARES)]
    codes = [process.wait() for process in running]
    if any(codes):
        sys.exit("compiling bytecode failed")
    only_bytecode(ROOT / library)


def only_bytecode(tree: Path) -> None:
    """Remove all but __pycache__: the rest is in the base layer."""
    for path in sorted(tree.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.parent.name != "__pycache__":
            path.unlink()


def main() -> None:
    say(f"installing {len(SPEC['wheels'])} wheels")
    environment()
    for wheel in SPEC["wheels"]:
        prepare(wheel)
    with ProcessPoolExecutor() as pool:
        list(pool.map(install_wheel, largest_first(SPEC["wheels"])))
    for name, new in SPEC["python"].get("rename", {}).items():
        rename(name, new)
    say("compiling bytecode")
    bytecode()
    say("writing squashfs")
    squashfs_of_directory(ROOT, SPEC["epoch"])
    say("done")


if __name__ == "__main__":
    main()
