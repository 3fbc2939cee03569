"""Runs on a node, standard library only: print clock, load, versions and network cards as JSON.

python - [SECONDS]      SECONDS: how long to measure the load; without it: network cards only
"""

from __future__ import annotations

import json
import platform
import re
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

#: Packages whose versions matter for the figures, as far as the image has them.
PACKAGES = ("vllm", "torch", "ray", "vllm-xpu-kernels", "oneccl", "intel-sycl-rt")
NET = Path("/sys/class/net")


def text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def number(path: Path) -> int:
    """The whole number in a file; 0 if there is none (a card without a cable has -1)."""
    found = text(path)
    return int(found) if found.isdigit() else 0


def negotiated(name: str, net: Path = NET) -> int | None:
    """The negotiated rate of a card in bits per second; for a bridge, that of its slowest port.
    None for virtual cards, which negotiate nothing."""
    home = net / name
    if not (home / "device").exists():
        ports = [negotiated(port.name.removeprefix("lower_"), net) for port in home.glob("lower_*")]
        return min((each for each in ports if each), default=None)
    if speed := number(home / "speed"):
        return speed * 10**6
    # USB4: the card belongs to the other host's device, which has Gb/s per lane, and lanes.
    host = (home / "device").resolve().parent
    lane = re.match(r"[\d.]+", text(host / "tx_speed"))
    lanes = number(host / "tx_lanes")
    return int(float(lane[0]) * lanes * 10**9) if lane and lanes else None


def cards(net: Path = NET) -> dict[str, dict[str, Any]]:
    """Network cards by interface: bytes moved, negotiated rate, the bridge that it is a port of."""
    return {
        home.name: {
            "bytes": sum(number(home / f"statistics/{way}_bytes") for way in ("tx", "rx")),
            "negotiated": negotiated(home.name, net),
            "master": (home / "master").resolve().name if (home / "master").exists() else None,
        }
        for home in net.iterdir()
        if home.name != "lo"
    }


def processors() -> tuple[int, int]:
    """Busy and total ticks of this machine's processors."""
    ticks = [int(word) for word in text(Path("/proc/stat")).splitlines()[0].split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def busy(seconds: float) -> float:
    before = processors()
    time.sleep(seconds)
    after = processors()
    return (after[0] - before[0]) / max(1, after[1] - before[1])


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "kernel": platform.release()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main(words: list[str]) -> None:
    begun = time.time()
    state: dict[str, Any] = {"cards": cards()}
    if words:
        state |= {"busy": busy(float(words[0])), "versions": versions()}
    print(json.dumps(state | {"time": [begun, time.time()]}))


if __name__ == "__main__":
    main(sys.argv[1:])
