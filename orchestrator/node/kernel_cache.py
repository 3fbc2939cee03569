"""Runs on a compute node: keeps the kernels that were compiled there beyond a boot.

Standard library only. ``prepare FILE`` is a unit's, as root: /var/lib/orchestrate/kernels leads to
the directories of this node's key, on the cache disk or in memory. New ones are filled from the
cluster's archive, by kernel_archive.py beside this file. FILE is what cluster/kernels.py says.

The key is image, kernel, driver and cards. Kernels of another key are never used.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import pwd
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

CHUNK = 1 << 20
KEY_LENGTH = 200
#: A disk with less free space than this is not used: a compiler that cannot write may fail.
LEAST_FREE = 256 << 20
DOWNLOAD_TIMEOUT_S = 60.0  # without a byte
UNPACK_TIMEOUT_S = 600.0
NEW = ".new-"


class Unusable(Exception):
    """A warm cache that is not what it should be; the text is for people."""


def key(cards: Sequence[str], root: Path = Path("/"), release: str = "") -> str:
    """Of which image, kernel, driver and cards the kernels on this node are.

    ``cards`` are PCI ids to look for; without any, all display and compute devices count.
    """
    found = devices(cards, root)
    parts = [
        text(root / "run/orchestrate/image-id")[:16] or "no-image",
        release or platform.release(),
        "+".join(sorted({driver for driver, _ in found if driver})) or "no-driver",
        "+".join(sorted({card for _, card in found})) or cpu(root),
    ]
    return "_".join(re.sub(r"[^A-Za-z0-9.+-]", "-", part) for part in parts)[:KEY_LENGTH]


def devices(cards: Sequence[str], root: Path) -> list[tuple[str, str]]:
    """Driver with its version, and VENDOR-DEVICE-rREVISION, of each PCI device that counts."""
    found = []
    for device in sorted((root / "sys/bus/pci/devices").glob("*")):
        name = f"{text(device / 'vendor')[2:]}:{text(device / 'device')[2:]}"
        # 03: display; 12: processing accelerators.
        counts = name in cards if cards else text(device / "class")[:4] in ("0x03", "0x12")
        if counts:
            link = device / "driver"
            driver = link.readlink().name if link.is_symlink() else ""
            version = text(root / "sys/module" / driver / "version") if driver else ""
            revision = text(device / "revision").removeprefix("0x")
            found.append((f"{driver}-{version}".rstrip("-"), f"{name}-r{revision}"))
    return found


def cpu(root: Path) -> str:
    """The processor's kind: where no card computes, it does."""
    first: dict[str, str] = {}
    for line in text(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        first.setdefault(name.strip(), value.strip())
    words = [first.get(name, "") for name in ("vendor_id", "cpu family", "model", "stepping")]
    return "cpu-" + "-".join(filter(None, words))


def text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def prepare(
    want: dict[str, Any], root: Path = Path("/"), say: Callable[[str], None] = print
) -> Path:
    """The directories of this node's key, with the link to them. Raises Unusable or OSError."""
    own = key(want["cards"], root)
    base = _base(want, own, root, say)
    home = base / own
    account = pwd.getpwnam(want["account"])
    for left in base.glob(f"{NEW}*"):  # of a run that was killed
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    if not home.is_dir():
        new = base / f"{NEW}{own}"
        _directories(new, want["variables"], account)
        try:
            _fill(want, new, own, account, say)
            new.rename(home)
        except BaseException:
            shutil.rmtree(new)
            raise
    _directories(home, want["variables"], account)
    os.utime(home)  # the last one used is the last one to go
    link = root / str(want["link"]).lstrip("/")
    link.parent.mkdir(parents=True, exist_ok=True)
    beside = link.with_name(f"{NEW}{link.name}")
    beside.unlink(missing_ok=True)
    beside.symlink_to(home)
    beside.replace(link)
    say(f"compiled kernels are kept in {home}")
    return home


def _base(want: dict[str, Any], own: str, root: Path, say: Callable[[str], None]) -> Path:
    """Where caches lie: on the disk if there is one with room, else in memory."""
    disk = root / str(want["disk"]).lstrip("/")
    base = disk / "kernels"
    if os.path.ismount(disk) and os.access(disk, os.W_OK):
        base.mkdir(mode=0o755, exist_ok=True)
        for old in _make_room(base, own, int(want["max_bytes"])):
            say(f"removed to make room: {old}")
        if _free(base) >= LEAST_FREE:
            return base
        say(f"{disk} has less than {LEAST_FREE >> 20} MiB free")
    say("compiled kernels are kept in memory, until this node restarts")
    memory = root / str(want["memory"]).lstrip("/")
    memory.mkdir(mode=0o755, parents=True, exist_ok=True)
    return memory


def _make_room(base: Path, own: str, wanted: int) -> Iterator[str]:
    """Remove caches of other keys, those not used for longest first, until there is room."""
    others = [each for each in base.iterdir() if each.name != own and each.is_dir()]
    for old in sorted(others, key=lambda each: each.lstat().st_mtime):
        if _free(base) < wanted:
            shutil.rmtree(old)
            yield old.name


def _free(path: Path) -> int:
    disk = os.statvfs(path)
    return disk.f_bavail * disk.f_frsize


def _directories(home: Path, variables: Sequence[str], account: pwd.struct_passwd) -> None:
    """One for each cache; only the account writes in them, and only root beside them."""
    home.mkdir(mode=0o755, exist_ok=True)
    for variable in variables:
        path = home / variable
        if path.is_symlink() or (path.exists() and path.lstat().st_uid != account.pw_uid):
            path.unlink() if path.is_symlink() else shutil.rmtree(path)
        if not path.exists():
            path.mkdir(mode=0o700)
            os.chown(path, account.pw_uid, account.pw_gid)


def _fill(
    want: dict[str, Any],
    home: Path,
    own: str,
    account: pwd.struct_passwd,
    say: Callable[[str], None],
) -> None:
    """Unpack the archive for this key, if the cluster has one, as the account."""
    fitting = [each for each in want["warm"] if each["key"] == own]
    for other in want["warm"]:
        if other["key"] != own:
            say(f"not used: the warm cache for {other['key']}; this node is {own}")
    if not fitting:
        return
    archive = home.parent / f"{NEW}archive"
    unpacker = Path(__file__).with_name("kernel_archive.py")
    try:
        _download(fitting[0], archive)
        request = {"home": str(home), "key": own, "variables": want["variables"],
                   "max_bytes": want["max_bytes"]}  # fmt: skip
        with archive.open("rb") as file:
            done = subprocess.run(
                [sys.executable, "-I", str(unpacker), "unpack", json.dumps(request)],
                stdin=file,
                capture_output=True,
                text=True,
                timeout=UNPACK_TIMEOUT_S,
                check=False,
                user=account.pw_uid,
                group=account.pw_gid,
                extra_groups=[],
                umask=0o077,
                cwd="/",
            )
        if done.returncode:
            raise Unusable(f"the warm cache cannot be used: {done.stderr.strip()}")
        say(f"filled from the warm cache {fitting[0]['sha256'][:12]}: {done.stdout.strip()} files")
    finally:
        archive.unlink(missing_ok=True)


def _download(warm: dict[str, Any], to: Path) -> None:
    """Raises Unusable unless all of it is what the cluster's document says."""
    # No proxy: the control node is on the node's own network.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    digest, size = hashlib.sha256(), 0
    try:
        with (
            opener.open(warm["url"], timeout=DOWNLOAD_TIMEOUT_S) as answer,
            os.fdopen(os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file,
        ):
            while (chunk := answer.read(CHUNK)) and size <= warm["size"]:
                size += len(chunk)
                digest.update(chunk)
                file.write(chunk)
    except OSError as error:
        raise Unusable(f"the warm cache cannot be fetched: {warm['url']}: {error}") from None
    if size != warm["size"] or digest.hexdigest() != warm["sha256"]:
        raise Unusable(
            f"the warm cache has sha256 {digest.hexdigest()} and {size} bytes,"
            f" not {warm['sha256']} and {warm['size']}"
        )


def main(file: str) -> None:
    try:
        prepare(json.loads(Path(file).read_text()))
    except (Unusable, OSError, subprocess.SubprocessError) as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main(sys.argv[1])
