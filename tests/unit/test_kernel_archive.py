"""Archives of compiled kernels: what a node may send, and what is refused whoever sends it."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.node.kernel_archive import (
    LONGEST_NAME,
    MOST_PARTS,
    Refused,
    checked,
    pack,
    unpack,
)

KEY = "0123456789abcdef_6.12.0_i915_8086-56a0-r08"
VARIABLES = ["A_CACHE_DIR", "B_CACHE_DIR"]
LIMIT = 1 << 20


def want(home: Path, **others: Any) -> dict[str, Any]:
    return {"link": str(home), "home": str(home), "variables": VARIABLES, "max_bytes": LIMIT,
            "key": KEY, **others}  # fmt: skip


@pytest.fixture
def link(tmp_path: Path) -> Path:
    """Caches with a few files, as programs leave them."""
    home = tmp_path / KEY
    for name, content in {
        "A_CACHE_DIR/0123.cache": b"kernel" * 500,
        "A_CACHE_DIR/config.file": b"",
        f"B_CACHE_DIR/{'D' * 90}/{'n' * 120}.so": bytes(range(256)),
        "B_CACHE_DIR/XYZ/tmp.pid_7_abc/half": b"being written",
    }.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(content)
    (tmp_path / "kernels").symlink_to(home)
    return tmp_path / "kernels"


def packed(link: Path, **others: Any) -> bytes:
    out = io.BytesIO()
    pack(want(link, **others), out)
    return out.getvalue()


def files(home: Path) -> dict[str, bytes]:
    found = (path for path in home.rglob("*") if path.is_file())
    return {str(path.relative_to(home)): path.read_bytes() for path in found}


def test_what_a_node_packs_another_one_unpacks(link: Path, tmp_path: Path) -> None:
    archive = packed(link)
    new = tmp_path / "new"
    assert unpack(want(new), io.BytesIO(archive)) == 3
    whole = files(link.resolve())
    half = [name for name in whole if "tmp.pid_" in name]
    assert len(half) == 1
    assert files(new) == {name: data for name, data in whole.items() if name not in half}
    size = sum(map(len, files(new).values()))
    assert checked(io.BytesIO(archive), VARIABLES, LIMIT) == (KEY, 3, size)


def test_the_same_files_make_the_same_archive(link: Path) -> None:
    before = packed(link)
    os.utime(link / "A_CACHE_DIR/0123.cache", (1, 1))
    (link / "A_CACHE_DIR/0123.cache").chmod(0o600)
    assert packed(link) == before
    (link / "A_CACHE_DIR/4567.cache").write_bytes(b"another")
    assert packed(link) != before


def test_only_plain_files_are_packed(link: Path, tmp_path: Path) -> None:
    """What runs on a node may put there what it likes."""
    before = packed(link)
    (tmp_path / "secret").write_text("SECRET")
    (link / "A_CACHE_DIR/link").symlink_to(tmp_path / "secret")
    (link / "A_CACHE_DIR/dir").symlink_to(tmp_path)
    os.mkfifo(link / "B_CACHE_DIR/fifo")
    assert packed(link) == before
    assert b"SECRET" not in before


def test_a_node_without_caches_says_so(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"keeps no caches.*orchestrate up"):
        packed(tmp_path / "none")


def test_more_than_the_limit_is_not_packed(link: Path) -> None:
    with pytest.raises(Refused, match="hold more than 1000 bytes"):
        packed(link, max_bytes=1000)
    with pytest.raises(Refused, match="more than 1000 bytes together"):
        checked(io.BytesIO(packed(link)), VARIABLES, 1000)


def test_an_archive_of_another_key_is_refused_and_both_are_named(
    link: Path, tmp_path: Path
) -> None:
    other = KEY.replace("6.12.0", "6.13.1")
    (tmp_path / "new").mkdir()
    with pytest.raises(Refused, match=f"for {KEY}, this node is {other}"):
        unpack(want(tmp_path / "new", key=other), io.BytesIO(packed(link)))
    assert files(tmp_path / "new") == {}


def tar(*entries: tarfile.TarInfo, format: int = tarfile.GNU_FORMAT, key: str = KEY) -> bytes:
    """An archive that begins as it should, with these entries."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as made:
        if key:
            first = tarfile.TarInfo("key")
            first.size = len(key)
            made.addfile(first, io.BytesIO(key.encode()))
        for each in entries:
            made.addfile(each, io.BytesIO(bytes(each.size)) if each.isreg() else None)
    return out.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, size: int = 3, to: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, to
    made.size = size if kind == tarfile.REGTYPE else 0
    return made


def sparse() -> bytes:
    """A file of GNU's sparse kind, whose real size is in its header."""
    made = bytearray(tar(entry("A_CACHE_DIR/x", size=512)))
    header = 1024  # behind the key and its content
    made[header + 156 : header + 157] = b"S"
    made[header + 483 : header + 495] = b"77777777777\0"
    total = sum(made[header : header + 148]) + sum(made[header + 156 : header + 512]) + 256
    made[header + 148 : header + 156] = b"%06o\0 " % total
    return bytes(made)


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "above": (lambda: tar(entry("A_CACHE_DIR/../../etc/passwd")), "outside the caches"),
    "up": (lambda: tar(entry("../x")), "outside the caches"),
    "absolute": (lambda: tar(entry("/etc/passwd")), "outside the caches"),
    "here": (lambda: tar(entry("A_CACHE_DIR/./x")), "outside the caches"),
    "nowhere": (lambda: tar(entry("A_CACHE_DIR//x")), "outside the caches"),
    "unknown directory": (lambda: tar(entry("C_CACHE_DIR/x")), "outside the caches"),
    "the directory itself": (lambda: tar(entry("A_CACHE_DIR")), "outside the caches"),
    "control character": (lambda: tar(entry("A_CACHE_DIR/a\x1b[2J")), "outside the caches"),
    "deep": (lambda: tar(entry("A_CACHE_DIR/" + "d/" * MOST_PARTS + "x")), "outside the caches"),
    "long": (lambda: tar(entry("A_CACHE_DIR/" + "d/" * LONGEST_NAME)), "file name of"),
    "symlink": (
        lambda: tar(entry("A_CACHE_DIR/x", tarfile.SYMTYPE, to="/etc/shadow")),
        "a symbolic link",
    ),
    "hard link": (lambda: tar(entry("A_CACHE_DIR/x", tarfile.LNKTYPE, to="key")), "a hard link"),
    "device": (lambda: tar(entry("A_CACHE_DIR/x", tarfile.CHRTYPE)), "a device"),
    "block device": (lambda: tar(entry("A_CACHE_DIR/x", tarfile.BLKTYPE)), "a device"),
    "fifo": (lambda: tar(entry("A_CACHE_DIR/x", tarfile.FIFOTYPE)), "a FIFO"),
    "directory": (lambda: tar(entry("A_CACHE_DIR/x", tarfile.DIRTYPE)), "a directory"),
    "sparse": (sparse, "a sparse file"),
    "pax": (
        lambda: tar(entry("A_CACHE_DIR/" + "é" * 80), format=tarfile.PAX_FORMAT, key=""),
        "cannot be read",
    ),
    "twice": (lambda: tar(entry("A_CACHE_DIR/x"), entry("A_CACHE_DIR/x")), "twice"),
    "large": (lambda: tar(entry("A_CACHE_DIR/x", size=LIMIT + 1)), "more than"),
    "no key": (lambda: tar(entry("A_CACHE_DIR/x"), key=""), "does not begin with its key"),
    "a path as key": (lambda: tar(key="../../x"), "key is none"),
    "cut off": (lambda: tar(entry("A_CACHE_DIR/x"))[:1600], "cut off"),
    "more behind": (lambda: tar() + b"x", "goes on behind its end"),
    "nothing": (lambda: b"", "cut off"),
    "no tar": (lambda: os.urandom(4096), "cannot be read"),
    "empty": (lambda: bytes(1024), "is empty"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_no_honest_node_sends_is_refused(what: str, tmp_path: Path) -> None:
    make, words = HOSTILE[what]
    archive = make()
    with pytest.raises(Refused, match=words):
        checked(io.BytesIO(archive), VARIABLES, LIMIT)
    home = tmp_path / "home"
    home.mkdir()
    with pytest.raises(Refused, match=words):
        unpack(want(home), io.BytesIO(archive))
    outside = {name for name in files(tmp_path) if not name.startswith("home/A_CACHE_DIR/")}
    assert outside == set()
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


def test_nothing_is_written_over_or_through_what_is_there(link: Path, tmp_path: Path) -> None:
    archive = packed(link)
    new = tmp_path / "new"
    (new / "A_CACHE_DIR").mkdir(parents=True)
    (tmp_path / "victim").write_text("mine")
    (new / "A_CACHE_DIR/0123.cache").symlink_to(tmp_path / "victim")
    with pytest.raises(FileExistsError):
        unpack(want(new), io.BytesIO(archive))
    assert (tmp_path / "victim").read_text() == "mine"
