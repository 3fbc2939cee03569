"""The base layer: Debian packages merged as tar streams, then what maintainer scripts would do.

It includes the bytecode of Python's standard library, since agents run before other layers are
mounted. Owners and modes exist in tar headers only: the sandbox has one user, who could not set
them on disk.
"""

import io
import re
import subprocess
import sys
import tarfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import compiling
import system
from common import SPEC, finish_squashfs_of_tar, largest_first, say, squashfs_of_tar
from deb import control, inner_tar

#: Links into /usr in the image; bookworm's packages still have files there.
MERGED = ("bin", "sbin", "lib", "lib64")
#: Left out of the root: the loader fetches the kernel itself, and documentation is not needed.
DROPPED = ("boot/", "usr/share/doc/", "usr/share/man/", "usr/share/locale/", "usr/share/info/")
KEPT = "/copyright"
KERNEL = re.compile(r"usr/lib/modules/[^/]+/vmlinuz")


@dataclass(frozen=True)
class Entry:
    """One path of the image: its tar header and, for a regular file, its bytes.

    The bytes are at `offset` in the unpacked tar file `tar`, or in `content`.
    """

    header: tarfile.TarInfo
    package: str
    tar: Path | None = None
    offset: int = 0
    content: bytes | None = None

    def read(self) -> bytes:
        if self.content is not None:
            return self.content
        if self.tar is None:
            return b""
        with self.tar.open("rb") as tar:
            tar.seek(self.offset)
            return tar.read(self.header.size)


def merged_path(name: str) -> str:
    """The path in the image of a package's path: without "./", and with /usr merged.

    Raises SystemExit for a path outside the root.
    """
    path = "" if name == "." else name.removeprefix("./").strip("/")
    if name.startswith("/") or ".." in path.split("/"):
        sys.exit(f"a package has a path outside the root: {name}")
    top, _, rest = path.partition("/")
    return f"usr/{path}" if top in MERGED and rest else path


def is_dropped(path: str) -> bool:
    if KERNEL.fullmatch(path):
        return True
    return path.startswith(DROPPED) and not path.endswith(KEPT)


@dataclass(frozen=True)
class Unpacked:
    """One package: name, data.tar on disk, control file, packages whose files it may replace."""

    name: str
    tar: Path
    control: str
    replaces: frozenset[str]


def unpack(package: dict) -> Unpacked:
    """Write a package's data.tar to the working directory, and read its control file."""
    tar = Path(f"{package['name']}.tar")
    tar.write_bytes(inner_tar(package["source"], "data"))
    with control(package["source"]) as archive:
        member = next(m for m in archive if m.name.removeprefix("./") == "control")
        text = archive.extractfile(member).read().decode()
    replaces = frozenset(r.split()[0] for r in field(text, "Replaces").split(",") if r.strip())
    return Unpacked(package["name"], tar, text, replaces)


def merge(packages: list[Unpacked]) -> dict[str, Entry]:
    """All packages' entries by path. If two packages have a path, dpkg's rules decide."""
    by_name = {package.name: package for package in packages}
    tree: dict[str, Entry] = {}
    for package in packages:
        with tarfile.open(package.tar) as tar:
            for header in tar:
                path = merged_path(header.name)
                if not path or path in MERGED or is_dropped(path):
                    continue
                header.name = path
                if header.islnk():
                    header.linkname = merged_path(header.linkname)
                entry = Entry(header, package.name, package.tar, header.offset_data)
                before = tree.get(path)
                if before is None or before.package in package.replaces:
                    tree[path] = entry
                elif not (same(before, entry) or package.name in by_name[before.package].replaces):
                    sys.exit(f"/{path} is in two packages: {before.package} and {package.name}")
    return tree


def same(before: Entry, after: Entry) -> bool:
    """Whether two entries are the same directory, link or file (Multi-Arch allows that)."""
    old, new = before.header, after.header
    if old.isdir() and new.isdir():
        return True
    return (old.type, old.linkname, old.size) == (new.type, new.linkname, new.size) and (
        before.read() == after.read()
    )


def field(text: str, name: str) -> str:
    """One field of a control file, empty if it is not there."""
    for line in text.splitlines():
        if line.startswith(f"{name}:"):
            return line.partition(":")[2].strip()
    return ""


def write(tree: dict[str, Entry]) -> None:
    """Send the tree to mksquashfs in path order, so that the layer is reproducible."""
    process = squashfs_of_tar(SPEC["epoch"])
    with tarfile.open(fileobj=process.stdin, mode="w|", format=tarfile.PAX_FORMAT) as out:
        # A hard link has to follow its target, whatever its name.
        for path in sorted(tree, key=lambda path: (tree[path].header.islnk(), path)):
            entry = tree[path]
            header = replace_header(entry.header)
            out.addfile(header, io.BytesIO(entry.read()) if header.isreg() else None)
    headers = [entry.header for entry in tree.values()]
    finish_squashfs_of_tar(
        process, {each for header in headers for each in (header.uid, header.gid)}
    )


def replace_header(header: tarfile.TarInfo) -> tarfile.TarInfo:
    """A header with numeric owners, and the lock's date."""
    clean = tarfile.TarInfo(header.name)
    clean.type, clean.mode, clean.linkname = header.type, header.mode, header.linkname
    clean.uid, clean.gid, clean.mtime = header.uid, header.gid, SPEC["epoch"]
    clean.size = header.size if header.isreg() else 0
    clean.devmajor, clean.devminor = header.devmajor, header.devminor
    return clean


class Root:
    """The merged tree, for the steps in system.py."""

    def __init__(self, tree: dict[str, Entry]) -> None:
        self.tree = tree

    def __contains__(self, path: str) -> bool:
        return path in self.tree

    def paths(self, prefix: str) -> list[str]:
        """Paths of regular files below a prefix, sorted."""
        files = (p for p, e in self.tree.items() if p.startswith(prefix) and e.header.isreg())
        return sorted(files)

    def read(self, path: str) -> bytes:
        return self.tree[path].read()

    def put(self, entry: Entry) -> None:
        """Add an entry, and the directories above it that no package has."""
        parent = entry.header.name.rpartition("/")[0]
        if parent and parent not in self.tree:
            self.directory(parent)
        self.tree[entry.header.name] = entry

    def fill(self) -> None:
        """Add missing parent directories: mksquashfs would make the build's user their owner."""
        for entry in list(self.tree.values()):
            self.put(entry)

    def file(self, path: str, content: bytes | str, mode: int = 0o644, gid: int = 0) -> None:
        header = tarfile.TarInfo(path)
        data = content.encode() if isinstance(content, str) else content
        header.size, header.mode, header.gid = len(data), mode, gid
        self.put(Entry(header, "system", content=data))

    def directory(self, path: str, mode: int = 0o755) -> None:
        header = tarfile.TarInfo(path)
        header.type, header.mode = tarfile.DIRTYPE, mode
        self.put(Entry(header, "system"))

    def link(self, path: str, target: str) -> None:
        header = tarfile.TarInfo(path)
        header.type, header.linkname, header.mode = tarfile.SYMTYPE, target, 0o777
        self.put(Entry(header, "system"))

    def chmod(self, path: str, mode: int, gid: int) -> None:
        header = replace_header(self.tree[path].header)
        header.mode, header.gid = mode, gid
        self.tree[path] = replace(self.tree[path], header=header)


def start_compiling() -> list[subprocess.Popen]:
    """Start to compile the standard library, if the image has Python."""
    version, interpreter = SPEC["python"], SPEC["interpreter"]
    if f"python{version}-minimal" not in {deb["name"] for deb in interpreter}:
        return []
    return compiling.start(version, compiling.standard_library(interpreter, version))


def main() -> None:
    say(f"unpacking {len(SPEC['debs'])} packages")
    with ProcessPoolExecutor() as pool:
        packages = list(pool.map(unpack, largest_first(SPEC["debs"])))
    packages.sort(key=lambda package: package.name)
    processes = start_compiling()
    say("merging, bytecode beside")
    root = Root(merge(packages))
    for directory in MERGED:
        root.link(directory, f"usr/{directory}")
    say("setting up the system")
    controls = [package.control for package in packages]
    system.apply(root, SPEC["system"], SPEC["python"], controls)
    say("bytecode")
    for path, content in compiling.compiled(processes):
        root.file(path, content)
    say("writing squashfs")
    root.fill()
    write(root.tree)
    say("done")


if __name__ == "__main__":
    main()
