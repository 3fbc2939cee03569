"""Runs on a node, sent over SSH: print its logs and facts for a support bundle, as JSON.

Standard library only. Its one argument is a JSON document: units (names), logs (patterns of files),
bytes (of one file), total (of all), seconds, venv. Prints files: {name: {"text", "cut"}}, and
missing: {name: why}. It reads logs and what the kernel says, and no file that holds a secret.
"""

from __future__ import annotations

import glob
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

#: Seconds for one command, and how many log files of one pattern, the newest.
COMMAND_S = 20.0
NEWEST = 60
JOURNAL = ("journalctl", "--no-pager", "--output=short-iso-precise")

#: What every node has, name -> words.
COMMANDS: dict[str, Sequence[str]] = {
    "journal.txt": (*JOURNAL, "--boot", "--lines=30000"),
    "kernel.txt": (*JOURNAL, "--boot", "--dmesg", "--lines=20000"),
    "boots.txt": ("journalctl", "--no-pager", "--list-boots"),
    "units.txt": ("systemctl", "list-units", "--all", "--plain", "--no-pager", "--full"),
    "failed.txt": ("systemctl", "list-units", "--failed", "--plain", "--no-pager", "--full"),
    "uname.txt": ("uname", "-a"),
    "uptime.txt": ("uptime",),
    "processes.txt": ("ps", "-eo", "pid,ppid,user,stat,rss,nlwp,etime,args"),
    "addresses.txt": ("ip", "-details", "-statistics", "address"),
    "routes.txt": ("ip", "route", "show", "table", "all"),
    "neighbours.txt": ("ip", "neighbour"),
    "sockets.txt": ("ss", "-tulnp"),
    "networkd.txt": ("networkctl", "status", "--all", "--no-pager", "--lines=0"),
    "disks.txt": ("df", "-hT"),
    "blocks.txt": ("lsblk", "-o", "NAME,SIZE,TYPE,FSTYPE,LABEL,MOUNTPOINTS,MODEL"),
    "packages.txt": ("dpkg-query", "--show"),
    "clock.txt": ("chronyc", "-n", "tracking"),
}
#: Files of the kernel and of the image, name -> path.
FILES = {
    "os-release.txt": "/etc/os-release",
    "cmdline.txt": "/proc/cmdline",
    "meminfo.txt": "/proc/meminfo",
    "modules.txt": "/proc/modules",
    "mounts.txt": "/proc/mounts",
    "cpuinfo.txt": "/proc/cpuinfo",
    "image-id.txt": "/run/orchestrate/image-id",
    "layers.txt": "/run/orchestrate/layers.list",
    "kernels.txt": "/etc/orchestrate/kernels.json",
}


class Collected:
    """What was found so far, within the limits."""

    def __init__(self, want: dict[str, Any]) -> None:
        self.bytes, self.left = int(want["bytes"]), int(want["total"])
        self.end = time.monotonic() + float(want["seconds"])
        self.files: dict[str, dict[str, object]] = {}
        self.missing: dict[str, str] = {}

    def add(self, name: str, data: bytes, cut: bool = False) -> None:
        """The end of a text, from the beginning of a line: half a secret would not be known."""
        keep = min(self.bytes, self.left)
        if len(data) > keep:
            data, cut = data[len(data) - keep :], True
        if cut:
            data = data.partition(b"\n")[2]
        self.left -= len(data)
        self.files[name] = {"text": data.decode(errors="replace"), "cut": cut}

    def run(self, name: str, words: Sequence[str]) -> None:
        seconds = min(COMMAND_S, self.end - time.monotonic())
        if seconds <= 0:
            self.missing[name] = "not reached: time is up"
            return
        try:
            done = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            self.missing[name] = f"{words[0]}: timed out after {seconds:.0f} s"
        except OSError as error:
            self.missing[name] = f"{words[0]}: {error.strerror}"
        else:
            if done.stdout.strip():
                self.add(name, done.stdout)
            else:
                self.missing[name] = f"{words[0]}: exit code {done.returncode}, no output"

    def read(self, name: str, path: Path) -> None:
        """The end of a file; one that has no size (the kernel's) is read from its beginning."""
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
                start = max(0, size - self.bytes)
                file.seek(start)
                self.add(name, file.read(self.bytes), cut=start > 0)
        except OSError as error:
            self.missing[name] = f"{path}: {error.strerror}"


def newest(pattern: str) -> list[Path]:
    """The plain files of a pattern, the last written ones first."""
    found = []
    for name in glob.glob(pattern):  # noqa: PTH207 - an absolute pattern
        path = Path(name)
        if path.is_file() and not path.is_symlink():
            found.append(path)
    return sorted(found, key=lambda path: -path.stat().st_mtime)[:NEWEST]


def devices() -> Iterator[str]:
    """A line for each PCI device, as `lspci -nk` would say: the image may have no lspci."""
    for device in sorted(Path("/sys/bus/pci/devices").glob("*")):
        words = [device.name]
        for key in ("class", "vendor", "device", "revision", "subsystem_vendor", "subsystem_device",
                    "current_link_speed", "current_link_width"):  # fmt: skip
            try:
                words.append(f"{key}={(device / key).read_text().strip()}")
            except OSError:
                continue
        driver = device / "driver"
        words.append(f"driver={driver.readlink().name if driver.is_symlink() else '-'}")
        yield " ".join(words)


def distributions(venv: str) -> Iterator[str]:
    """Names and versions of the image's Python packages."""
    for path in sorted(Path(venv).glob("lib/python*/site-packages/*.dist-info")):
        yield path.name.removesuffix(".dist-info")


def collect(want: dict[str, Any]) -> dict[str, object]:
    found = Collected(want)
    for name, place in FILES.items():
        found.read(name, Path(place))
    for name, words in COMMANDS.items():
        found.run(name, words)
    for unit in want["units"]:
        found.run(f"units/{unit}.txt", (*JOURNAL, "--boot", "--lines=10000", f"--unit={unit}"))
    for name, lines in (("pci.txt", devices()), ("python.txt", distributions(want["venv"]))):
        found.add(name, "".join(f"{line}\n" for line in lines).encode())
    for title, pattern in want["logs"].items():
        paths = newest(pattern)
        if not paths:
            found.missing[f"{title}/"] = f"no file is {pattern}"
        for path in paths:
            found.read(f"{title}/{path.name}", path)
    return {"files": found.files, "missing": found.missing}


if __name__ == "__main__":
    print(json.dumps(collect(json.loads(sys.argv[1]))))
