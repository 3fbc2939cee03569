"""Read Debian packages: ar archives with control.tar.* and data.tar.* (deb(5))."""

import gzip
import io
import lzma
import subprocess
import tarfile
from pathlib import Path

from common import tool


def members(path: str) -> dict[str, tuple[int, int]]:
    """Each member of the ar archive: name -> (offset, size) in the file."""
    found = {}
    with Path(path).open("rb") as archive:
        if archive.read(8) != b"!<arch>\n":
            raise SystemExit(f"{path}: not a Debian package")
        while len(header := archive.read(60)) == 60:
            name = header[:16].decode().strip().rstrip("/")
            size = int(header[48:58])
            found[name] = (archive.tell(), size)
            archive.seek(size + size % 2, io.SEEK_CUR)
    return found


def packed_tar(path: str, stem: str) -> tuple[bytes, str]:
    """The compressed tar `stem` ("control" or "data") of a package, and its file ending."""
    for name, (offset, size) in members(path).items():
        if name.startswith(f"{stem}.tar"):
            with Path(path).open("rb") as archive:
                archive.seek(offset)
                return archive.read(size), name.rpartition(".")[2]
    raise SystemExit(f"{path}: no {stem}.tar in this package")


def inner_tar(path: str, stem: str) -> bytes:
    """The uncompressed tar `stem` of a package."""
    return unpack(*packed_tar(path, stem))


def stream_tar(path: str, stem: str) -> tarfile.TarFile:
    """The tar `stem` of a package as a stream, for callers that read only its start."""
    packed, kind = packed_tar(path, stem)
    if kind == "xz":
        return tarfile.open(fileobj=lzma.open(io.BytesIO(packed)), mode="r|")
    return tarfile.open(fileobj=io.BytesIO(unpack(packed, kind)), mode="r|")


def unpack(packed: bytes, kind: str) -> bytes:
    """Decompress by file ending."""
    if kind == "xz":
        return lzma.decompress(packed)
    if kind == "gz":
        return gzip.decompress(packed)
    if kind == "zst":
        return subprocess.run(tool("zstd", "-dc"), input=packed, stdout=-1, check=True).stdout
    if kind == "tar":
        return packed
    raise SystemExit(f"compression .{kind} is not known")


def control(path: str) -> tarfile.TarFile:
    """The package's control archive, with `control`, `conffiles` and others."""
    return tarfile.open(fileobj=io.BytesIO(inner_tar(path, "control")))


def unpack_tree(packages: list[dict], into: Path) -> None:
    """Unpack packages into a directory with a merged /usr, without owners, to run programs."""
    for directory in ("bin", "sbin", "lib", "lib64"):
        (into / "usr" / directory).mkdir(parents=True)
        (into / directory).symlink_to(f"usr/{directory}")
    for package in packages:
        with tarfile.open(fileobj=io.BytesIO(inner_tar(package["source"], "data"))) as data:
            for entry in data:
                if not entry.isdir():
                    data.extract(entry, into, set_attrs=not entry.issym())
