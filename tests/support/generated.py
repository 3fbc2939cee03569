"""Debian packages, wheels and source distributions of a few bytes, put into the Nix store."""

from __future__ import annotations

import base64
import hashlib
import io
import subprocess
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.image import store
from orchestrator.image.lockfile import store_name

#: Time stamps in archives: the same bytes in each run, so that the store keeps one of each.
EPOCH = 1767225600
ZIP_EPOCH = (2026, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class File:
    """A file in the store, and its entry in a lock."""

    path: Path
    entry: dict[str, Any]


def as_locked(entry: dict[str, Any]) -> File:
    """A file that a lock names already."""
    text = f"fixed:out:sha256:{entry['sha256']}:"
    return File(store.fixed_path(text, "output:out", entry["store"]), entry)


def deb(
    directory: Path, name: str, files: Mapping[str, bytes], version: str = "1", **fields: str
) -> File:
    """A package; paths are taken as they are, so that they can be wrong ones."""
    control = {"Package": name, "Version": version, "Architecture": "amd64", **fields}
    lines = "".join(f"{key.replace('_', '-')}: {value}\n" for key, value in control.items())
    data = {path if path[0] in "./" else f"./{path}": content for path, content in files.items()}
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": tar({"./control": lines.encode()}, "xz"),
        "data.tar.xz": tar(data, "xz"),
    }
    path = directory / store_name(f"{name}_{version}_amd64.deb")
    path.write_bytes(b"!<arch>\n" + b"".join(map(ar_member, members, members.values())))
    pool = f"pool/main/{name}/{path.name}"
    entry = {"name": name, "version": version, "architecture": "amd64", "path": pool}
    return stored(path, entry)


def ar_member(name: str, data: bytes) -> bytes:
    head = f"{name:<16}{EPOCH:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n"
    return head.encode() + data + b"\n" * (len(data) % 2)


def tar(files: Mapping[str, bytes], kind: str) -> bytes:
    """A compressed tar, all of it root's. Programs below bin are executable."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=f"w:{kind}") as archive:  # type: ignore[call-overload]
        for path, content in files.items():
            header = tarfile.TarInfo(path)
            header.size, header.mtime = len(content), EPOCH
            header.mode = 0o755 if "bin/" in path else 0o644
            archive.addfile(header, io.BytesIO(content))
    return stream.getvalue()


def wheel(
    directory: Path,
    name: str,
    files: Mapping[str, bytes],
    *,
    version: str = "1",
    tag: str = "py3-none-any",
    requires: Sequence[str] = (),
) -> File:
    """A wheel. Files in DATA/ are those of its .data directory, "DIST/" is its .dist-info."""
    base = f"{name.replace('-', '_')}-{version}"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {each}\n" for each in requires)
    settings = f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n"
    info = {"DIST/METADATA": metadata.encode(), "DIST/WHEEL": settings.encode()}
    named = {
        path.replace("DATA/", f"{base}.data/").replace("DIST/", f"{base}.dist-info/"): content
        for path, content in {**files, **info}.items()
    }
    record = f"{base}.dist-info/RECORD"
    lines = [f"{path},sha256={digest(data)},{len(data)}" for path, data in named.items()]
    named[record] = "\n".join([*lines, f"{record},,", ""]).encode()
    path = directory / f"{base}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in named.items():
            archive.writestr(zipfile.ZipInfo(member, ZIP_EPOCH), content)
    entry = {"name": name, "version": version, "file": path.name}
    return stored(path.rename(directory / store_name(path.name)), entry)


def digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")


def source(
    directory: Path, name: str, files: Mapping[str, bytes], version: str = "1", **variables: str
) -> File:
    """A source distribution; `variables` are of the environment that it is built in."""
    base = f"{name}-{version}"
    path = directory / f"{base}.tar.gz"
    path.write_bytes(tar({f"{base}/{file}": content for file, content in files.items()}, "xz"))
    entry = {"name": name, "version": version, "file": path.name, "environment": variables}
    return stored(path, entry)


def stored(path: Path, entry: dict[str, Any]) -> File:
    """Add a file to the store, and to its entry what that gives."""
    argv = ["nix-store", *store.options(), "--add-fixed", "sha256", str(path)]
    added = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
    content = path.read_bytes()
    entry |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return File(Path(added), entry | {"store": path.name})
