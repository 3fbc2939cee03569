"""Runs on a node, sent over SSH: print what hardware it has as JSON (facts.HardwareFacts).

Standard library only. Its one argument is a JSON document, what to look at (gather.hardware_want).
Everything is read below a root, and each command goes through one function: tests give it the
recorded tree of a machine, and its commands' output.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

#: (words, seconds) -> (exit code, None where it did not end in time; what it printed).
Run = Callable[[Sequence[str], float], tuple[int | None, str]]

#: Seconds for the kernel's log and for Level Zero.
SHORT = 20.0
LOG = ("journalctl", "--dmesg", "--boot", "--no-pager", "--output=cat")
#: The kernel's own buffer forgets the boot in time; it is there without journald, though.
LOG_BUFFER = ("dmesg", "--notime")

#: A PCI device's address, in sysfs and in a line of the log.
ADDRESS = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
NAMED = re.compile(r"\b[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]\b")

#: Prints how many GPUs Level Zero has. A process of its own: a driver may crash or hang.
LEVEL_ZERO = """
import ctypes
ze = ctypes.CDLL("libze_loader.so.1")
def all_of(call, *first):
    count = ctypes.c_uint32()
    must(call(*first, ctypes.byref(count), None))
    handles = (ctypes.c_void_p * count.value)()
    must(call(*first, ctypes.byref(count), handles))
    return [ctypes.c_void_p(handle) for handle in handles]
def must(code):
    if code:
        raise SystemExit(f"Level Zero: error {code & 0xffffffff:#x}")
must(ze.zeInit(1))  # GPUs only
print(sum(len(all_of(ze.zeDeviceGet, driver)) for driver in all_of(ze.zeDriverGet)))
"""

#: Prints what torch sees and whether it multiplies right: whole numbers, so right is exact.
TORCH = """
import json, sys
import torch
kind = sys.argv[1]
part = getattr(torch, kind)
name = getattr(part, "get_device_name", lambda index: kind)  # a processor has none
names = [name(index) for index in range(part.device_count())]
left = (torch.arange(256 * 256).reshape(256, 256) % 7 - 3).half()
right = (torch.arange(256 * 256).reshape(256, 256) % 5 - 2).half()
exact = left.float() @ right.float()
wrong = ""
for index in range(len(names)):
    device = f"{kind}:{index}"
    try:
        seen = torch.nn.functional.linear(left.to(device), right.to(device).t()).float().cpu()
        off = int((seen != exact).sum())
        if off:
            wrong = f"{device}: {off} of {exact.numel()} products are wrong"
    except RuntimeError as error:
        wrong = f"{device}: {error}".splitlines()[0]
print(json.dumps({"names": names, "wrong": wrong}))
"""


def text(path: Path) -> str:
    """A file's text, without white space around it; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def whole(path: Path) -> int | None:
    """The whole number in a file; None where there is none. A link that is down says -1."""
    try:
        return int(text(path))
    except ValueError:
        return None


def below(root: Path, pattern: str) -> list[Path]:
    """The paths that an absolute path means, in which ``*`` stands for any name."""
    return sorted(root.glob(pattern.lstrip("/")))


def memory(root: Path) -> int:
    """Bytes that the kernel manages."""
    found = re.search(r"^MemTotal: +(\d+) kB", text(root / "proc/meminfo"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def pci(root: Path, wanted: Iterable[str]) -> list[dict[str, object]]:
    """The PCI devices with one of these ids: address, driver, sizes of their BARs, and link."""
    found: list[dict[str, object]] = []
    for device in below(root, "/sys/bus/pci/devices/*"):
        name = f"{text(device / 'vendor')[2:]}:{text(device / 'device')[2:]}"
        if name in wanted:
            driver = device / "driver"
            bound = driver.readlink().name if driver.is_symlink() else ""
            found.append(
                {
                    "address": device.name,
                    "id": name,
                    "driver": bound,
                    "bars": bars(device),
                    "width": whole(device / "current_link_width"),
                    "speed": speed(device),
                    "way": way(device),
                }
            )
    return found


def speed(device: Path) -> float | None:
    """GT/s of a lane of its link."""
    found = re.match(r"[\d.]+", text(device / "current_link_speed"))
    return float(found[0]) if found else None


def way(device: Path) -> dict[str, object] | None:
    """Of all PCIe links between a device and the processor the one with the smallest part of its
    lanes; of equal ones the outermost. A card may have a switch of its own, behind which its own
    link says x1 whatever the slot gives. attach/node_hardware.py has the same rule."""
    best: tuple[float, dict[str, object]] | None = None
    lower = device.resolve()
    while ADDRESS.fullmatch(lower.name):
        upper = lower.parent
        width = whole(lower / "current_link_width")
        most = whole(lower / "max_link_width")
        # A switch's lower port and a root port describe the link below them, which was seen.
        if width and most and (best is None or width / most <= best[0]):
            there = bool(ADDRESS.fullmatch(upper.name))
            link = {
                "address": lower.name,
                "width": width,
                "width_most": most,
                "speed": speed(lower),
                "above": upper.name if there else "",
                "above_most": whole(upper / "max_link_width") if there else None,
            }
            best = (width / most, link)
        lower = upper.parent
    return best[1] if best else None


def bars(device: Path) -> dict[str, int]:
    """Number -> bytes of each memory region in use: lines of start, end and flags."""
    sizes = {}
    for number, line in enumerate(text(device / "resource").splitlines()[:6]):
        start, end = (int(word, 16) for word in line.split()[:2])
        if end > start:
            sizes[str(number)] = end - start + 1
    return sizes


def link(root: Path, interface: str) -> dict[str, object]:
    """What an interface runs at: Mb/s of a card, Gb/s of a USB4 link (a lane's times the lanes)."""
    home = root / "sys/class/net" / interface
    speed = whole(home / "speed")
    # The interface is a service of the other host, which is what has the speed of the cable.
    host = (home / "device").resolve().parent
    lane = re.match(r"[\d.]+", text(host / "tx_speed"))
    lanes = whole(host / "tx_lanes")
    return {
        "there": home.exists(),
        "state": text(home / "operstate"),
        "ethernet": speed if speed and speed > 0 else None,
        "usb4": float(lane[0]) * lanes if lane and lanes else None,
        "mtu": whole(home / "mtu") or 0,
    }


def log(run: Run) -> str:
    """The kernel's log of this boot."""
    for words in (LOG, LOG_BUFFER):
        code, said = run(words, SHORT)
        if code == 0 and said.strip():
            return said
    return ""


def sign(
    root: Path, messages: str, want: dict[str, Any], addresses: Sequence[str]
) -> dict[str, object]:
    """Whether there is anything to read, and the first line that matches. ``addresses``: of the
    devices that it is about; a line that names none is about any."""
    files = [text(path) for path in below(root, want["file"])] if want["file"] else [messages]
    lines = [line for each in files for line in each.splitlines()]
    matching = [line.strip() for line in lines if re.search(want["matches"], line)]
    told = set(addresses)
    if want["device"]:
        named = [(line, set(NAMED.findall(line)) or told) for line in matching]
        matching = [line for line, names in named if names & told]
        told &= set().union(*(names for _, names in named))
    return {
        "read": bool(lines),
        "line": next(iter(matching), None),
        "told": len(told),
        "without": sorted(set(addresses) - told),
    }


def level_zero(run: Run) -> dict[str, object]:
    """How many GPUs Level Zero shows, or why that is not known."""
    code, said = run([sys.executable, "-c", LEVEL_ZERO], SHORT)
    if code == 0 and said.strip().isdigit():
        return {"devices": int(said), "error": ""}
    return {"devices": 0, "error": last_line(code, said)}


def torch(run: Run, want: dict[str, Any]) -> dict[str, object]:
    """The devices that torch sees and whether they compute right, or why that is not known."""
    code, said = run([sys.executable, "-c", TORCH, want["device"]], want["timeout_s"])
    # Warnings come first.
    last = said.strip().splitlines()[-1:] or [""]
    if code == 0 and last[0].startswith("{"):
        return {**json.loads(last[0]), "error": ""}
    return {"names": [], "wrong": "", "error": last_line(code, said)}


def command(run: Run, want: dict[str, Any]) -> dict[str, object]:
    """How a command ended, and what it printed."""
    code, said = run(want["argv"], want["timeout_s"])
    return {"code": code, "out": said[-4000:], "error": "" if code == 0 else last_line(code, said)}


def last_line(code: int | None, said: str) -> str:
    """Why a command failed, in one line."""
    if code is None:
        return "timed out"
    lines = said.strip().splitlines()
    return lines[-1][:200] if lines else f"exit code {code}, no output"


def run_here(words: Sequence[str], seconds: float) -> tuple[int | None, str]:
    """Run a command on this machine; both of its streams are its output."""
    try:
        ran = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        said = late.stdout or b""
        return None, said if isinstance(said, str) else said.decode(errors="replace")
    except OSError as error:
        return 127, f"{words[0]}: {error.strerror}"
    return ran.returncode, ran.stdout


def facts(want: dict[str, Any], root: Path = Path("/"), run: Run = run_here) -> dict[str, object]:
    """All that was asked for. What takes long is only done where it was."""
    messages = log(run) if any(not each["file"] for each in want["signs"]) else ""
    modules = {name: root / "sys/module" / name.replace("-", "_") for name in want["modules"]}
    devices = pci(root, want["pci"])
    places = {
        each["device"]: [str(one["address"]) for one in devices if one["id"] == each["device"]]
        for each in want["signs"]
    }
    return {
        "memory": memory(root),
        "modules": {name: path.exists() for name, path in modules.items()},
        "devices": {each: len(below(root, each)) for each in want["devices"]},
        "pci": devices,
        "links": {name: link(root, name) for name in want["links"]},
        "signs": [sign(root, messages, each, places[each["device"]]) for each in want["signs"]],
        "level_zero": level_zero(run) if want["level_zero"] else None,
        "torch": torch(run, want["torch"]) if want["torch"] else None,
        "commands": [command(run, each) for each in want["commands"]],
    }


if __name__ == "__main__":
    print(json.dumps(facts(json.loads(sys.argv[1]))))
