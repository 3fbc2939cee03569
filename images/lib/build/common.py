"""Functions that the build scripts share: specification, tools, squashfs.

The scripts run in the Nix sandbox on the tools' Python 3.11, with the standard library only
(python.py also has `installer`). Nix sets $spec, a JSON file, and $out, the path to make.
"""

import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

SPEC = json.loads(Path(os.environ["specPath"]).read_text())
OUT = Path(os.environ["out"])
TOOLS = Path(os.environ["tools"])
LIB = "usr/lib/x86_64-linux-gnu"
LOADER = f"{LIB}/ld-linux-x86-64.so.2"


def largest_first(files: list[dict]) -> list[dict]:
    """Sort by size, the largest first, so that a pool of workers is not idle at the end."""
    return sorted(files, key=lambda file: -Path(file["source"]).stat().st_size)


def in_tree(tree: Path, *argv: str) -> list[str]:
    """The command line for the program `argv[0]` of a Debian tree, run by the tree's own loader."""
    for directory in ("usr/bin", "usr/sbin"):
        named = program = tree / directory / argv[0]
        if named.is_symlink():  # an absolute link is relative to the tree's root
            target = str(named.readlink())
            program = tree / target.lstrip("/") if target[0] == "/" else named.parent / target
        if program.exists():
            loader = [str(tree / LOADER), "--library-path", str(tree / LIB), "--argv0", str(named)]
            return [*loader, str(program), *argv[1:]]
    sys.exit(f"{tree} has no program {argv[0]}")


def tool(*argv: str) -> list[str]:
    """The command line for one of the build's own tools."""
    return in_tree(TOOLS, *argv)


STARTED = time.monotonic()


def say(step: str) -> None:
    """Write a line of progress to the build's log, with the seconds since its start."""
    print(f"{time.monotonic() - STARTED:6.1f} s  {step}", flush=True)


# zstd level 6 gives at most 4 % more bytes than 15 (the default) in a fraction of the time. Blocks
# of 256 KiB keep random reads of a booted root cheap.
COMPRESSION = ["-comp", "zstd", "-Xcompression-level", "6", "-b", "256K"]


def squashfs_of_directory(directory: Path, epoch: int) -> None:
    """Write $out as squashfs of a directory; root owns all files, all times are `epoch`."""
    times = ["-all-time", str(epoch), "-mkfs-time", str(epoch)]
    options = ["-all-root", "-noappend", "-no-progress", "-quiet", *times, *COMPRESSION]
    subprocess.run(tool("mksquashfs", str(directory), str(OUT), *options), check=True)


def squashfs_of_tar(epoch: int) -> subprocess.Popen:
    """Start mksquashfs, which writes $out from a tar stream on its standard input."""
    times = ["-all-time", str(epoch), "-mkfs-time", str(epoch)]
    options = [
        "-tar",
        "-root-mode",
        "755",
        "-noId",
        "-noappend",
        "-no-progress",
        "-quiet",
        *times,
        *COMPRESSION,
    ]
    argv = tool("mksquashfs", "-", str(OUT), *options)
    return subprocess.Popen(argv, stdin=subprocess.PIPE)


def finish_squashfs_of_tar(process: subprocess.Popen, ids_in_use: set[int]) -> None:
    """Wait until $out is written; `ids_in_use` are all owners and groups in the stream."""
    process.stdin.close()
    if process.wait() != 0:
        sys.exit("mksquashfs failed")
    give_root_to_root(ids_in_use)


def give_root_to_root(ids_in_use: set[int]) -> None:
    """Make root the owner of the root directory of $out, a squashfs of a tar.

    With a tar, mksquashfs 4.5 makes the user who runs it the owner, and ignores its own options for
    that. So this changes that id to 0 in the id table, which -noId leaves uncompressed (struct
    squashfs_super_block in the kernel's fs/squashfs/squashfs_fs.h). No file may have that id.
    """
    own = {os.getuid(), os.getgid()} - {0}
    if own & ids_in_use:
        sys.exit(f"a package has files of the id {own & ids_in_use}, which is this build's own")
    with OUT.open("r+b") as image:
        (count,) = struct.unpack_from("<H", image.read(96), 26)
        image.seek(48)
        (index,) = struct.unpack("<Q", image.read(8))
        image.seek(index)
        (block,) = struct.unpack("<Q", image.read(8))
        image.seek(block)
        (header,) = struct.unpack("<H", image.read(2))
        if header != 0x8000 | 4 * count:  # the high bit: not compressed
            sys.exit("mksquashfs wrote an id table of another form than expected")
        ids = struct.unpack(f"<{count}I", image.read(4 * count))
        image.seek(block + 2)
        image.write(struct.pack(f"<{count}I", *(0 if each in own else each for each in ids)))


def unsquashfs(layer: str, into: Path, *paths: str) -> None:
    """Unpack the named paths (all, if none is named) of a squashfs into a directory."""
    options = ["-no-progress", "-quiet", "-no-xattrs", "-force", "-dest", str(into)]
    subprocess.run(tool("unsquashfs", *options, layer, *paths), check=True)
