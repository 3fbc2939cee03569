"""$out is the initrd, a zstd cpio: busybox, init, and programs and modules of the base layer."""

import stat
import subprocess
from pathlib import Path

from common import LIB, LOADER, OUT, SPEC, tool, unsquashfs
from deb import unpack


def entry(
    number: int, name: str, mode: int, data: bytes, device: tuple[int, int] = (0, 0)
) -> bytes:
    """One newc header with its data (see the kernel's early-userspace/buffer-format)."""
    path = name.encode() + b"\0"
    fields = [number, mode, 0, 0, 1, SPEC["epoch"], len(data), 0, 0, *device, len(path), 0]
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
    return pad(head) + pad(data)


def pad(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def archive(tree: Path) -> bytes:
    """The tree as a cpio archive, in path order, with /dev/console; root owns all files."""
    parts = [entry(1, "dev", stat.S_IFDIR | 0o755, b"")]
    parts.append(entry(2, "dev/console", stat.S_IFCHR | 0o600, b"", (5, 1)))
    for number, path in enumerate(sorted(tree.rglob("*")), 3):
        name = str(path.relative_to(tree))
        if path.is_symlink():
            parts.append(entry(number, name, stat.S_IFLNK | 0o777, str(path.readlink()).encode()))
        elif path.is_dir():
            parts.append(entry(number, name, stat.S_IFDIR | 0o755, b""))
        else:
            executable = path.stat().st_mode & 0o100
            mode = stat.S_IFREG | (0o755 if executable else 0o644)
            parts.append(entry(number, name, mode, path.read_bytes()))
    parts.append(entry(0, "TRAILER!!!", 0, b""))
    return b"".join(parts)


def modules(tree: Path) -> None:
    """Add the wanted kernel modules, with their dependencies, and modprobe's index."""
    unpacked = Path("base").absolute()
    unsquashfs(SPEC["base"], unpacked, "usr/lib/modules/*/modules.*")
    (release,) = (unpacked / "usr/lib/modules").iterdir()
    needs = {}
    for line in (release / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
    by_name = {Path(path).name.partition(".")[0].replace("-", "_"): path for path in needs}
    kept = set()
    built_in = (release / "modules.builtin").read_text().replace("-", "_")
    for name in SPEC["initrd"]["modules"]:
        if f"/{name}.ko" in built_in:
            continue
        if name not in by_name:
            raise SystemExit(f"image.yml wants the module {name}, which this kernel does not have")
        kept |= {by_name[name], *needs[by_name[name]]}
    inside = f"usr/lib/modules/{release.name}"
    unsquashfs(SPEC["base"], unpacked, *(f"{inside}/{path}" for path in sorted(kept)))
    for path in kept:
        put_module(tree / "lib/modules" / release.name / path, release / path)
    for index in ("modules.order", "modules.builtin"):
        put(tree / "lib/modules" / release.name / index, release / index, 0o644)
    subprocess.run(tool("depmod", "--basedir", str(tree), release.name), check=True)


def put_module(copy: Path, source: Path) -> None:
    """Copy a module, uncompressed: busybox's modprobe needs that, and the initrd is compressed."""
    if copy.suffix == ".ko":
        put(copy, source, 0o644)
    else:
        put_bytes(copy.with_suffix(""), unpack(source.read_bytes(), copy.suffix[1:]), 0o644)


def programs(tree: Path) -> None:
    """Add the wanted programs of the base layer, with loader and libraries."""
    unpacked = Path("programs").absolute()
    unsquashfs(SPEC["base"], unpacked, *SPEC["initrd"]["programs"], f"{LIB}/*.so*")
    loader = [str(unpacked / LOADER), "--library-path", str(unpacked / LIB)]
    for program in SPEC["initrd"]["programs"]:
        if not (unpacked / program).exists():
            raise SystemExit(f"image.yml wants the program {program}, which no package brings")
        argv = [*loader, "--list", str(unpacked / program)]
        said = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
        # Lines like "libc.so.6 => /.../libc.so.6 (0x...)"; the loader's own line has no arrow.
        found = [Path(line.split()[2]) for line in said.splitlines() if " => " in line]
        libraries = [f"{LIB}/{path.name}" for path in found]
        for name in (program, *libraries):
            put(tree / name, unpacked / name, 0o755)
    # The loader's path in programs is /lib64/...
    (tree / "lib64").symlink_to(LIB)


def put(copy: Path, source: Path, mode: int) -> None:
    """Copy a file; a link is followed."""
    put_bytes(copy, source.read_bytes(), mode)


def put_bytes(copy: Path, data: bytes, mode: int) -> None:
    """Write a file, and make its parent directories."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(data)
    copy.chmod(mode)


tree = Path("initrd").absolute()
for directory in ("bin", "proc", "sys", "run", "root", "tmp", "etc"):
    (tree / directory).mkdir(parents=True)
put(tree / "bin/busybox", Path(SPEC["busybox"]), 0o755)
for script in Path(SPEC["scripts"]).iterdir():
    put(tree / script.name, script, 0o755)
(tree / "bin/sh").symlink_to("busybox")
programs(tree)
modules(tree)
raw = Path("initrd.cpio")
raw.write_bytes(archive(tree))
subprocess.run(tool("zstd", "-q", "-19", "--no-progress", "-o", str(OUT), str(raw)), check=True)
