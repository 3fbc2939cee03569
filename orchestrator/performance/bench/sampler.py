"""Runs on every node during a workload: print a line of JSON each half second.

    python -c SAMPLER URL [UNIT...]     URL: vLLM's metrics, on the node of its server, else ""
                                        UNIT: services whose CPU quotas are read

Standard library only. A line has the node's wall clock ("time") and monotonic clock ("at").
Counters are the kernel's own; differences are computed later. It ends when its standard input does.
"""

from __future__ import annotations

import functools
import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from http.client import HTTPException
from pathlib import Path
from typing import Any

PERIOD = 0.5
GAUGES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")

Tables = dict[str, Any]
#: accelerators.TABLES, once bench.sample put them here.
TABLES: Tables = {}


@functools.cache
def opened(path: str) -> int:
    """Open a file for repeated reads: the kernel renews /proc and /sys at each read from 0."""
    return os.open(path, os.O_RDONLY)


def text(path: str) -> str:
    try:
        return os.pread(opened(path), 1 << 16, 0).decode()
    except OSError:
        return ""


def numbers(path: str) -> dict[str, int]:
    """The numbers in a file of lines `NAME NUMBER`."""
    found = {}
    for line in text(path).splitlines():
        name, _, value = line.partition(" ")
        if value.strip().isdigit():
            found[name] = int(value)
    return found


def processors() -> dict[str, float]:
    """Busy and total time of this node's processors in seconds, since it started."""
    ticks = [int(word) for word in text("/proc/stat").splitlines()[0].split()[1:9]]
    hertz = os.sysconf("SC_CLK_TCK")
    idle = ticks[3] + ticks[4]
    return {"busy": (sum(ticks) - idle) / hertz, "all": sum(ticks) / hertz}


#: Where the kernel counts processor time by control group: cgroup v2, then v1's possible places.
TREES = ("/sys/fs/cgroup", "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/cpu")


def own_group() -> str:
    """The control group of this node's PID 1, as seen from here: a container has its own."""
    found = {}
    for line in text("/proc/1/cgroup").splitlines():
        _, kinds, place = line.split(":", 2)
        found["cpu" if "cpu" in kinds.split(",") else kinds] = place.strip("/")
    return found.get("cpu", found.get("", "")).removesuffix("init.scope").strip("/")


def group(units: list[str]) -> dict[str, float]:
    """CPU quota periods, and how many of them were throttled, for this node's own control group and
    the units. Also the processor time that its own group used, if it is counted."""
    places = ["", own_group(), *(f"system.slice/{u}" for u in units)]
    found: dict[str, float] = {}
    for tree in TREES:
        for place in dict.fromkeys(places):
            stat = numbers(f"{tree}/{place}/cpu.stat")
            if "usage_usec" in stat:
                found.setdefault("used", stat["usage_usec"] / 1e6)
            for name in ("nr_periods", "nr_throttled") if "nr_periods" in stat else ():
                found[name] = found.get(name, 0.0) + stat[name]
    return {"used": 0.0, "nr_periods": 0.0, "nr_throttled": 0.0, **found} if found else {}


def stalled() -> float:
    """Total seconds in which some task waited for a processor (PSI)."""
    match = re.search(r"^some .*total=(\d+)", text("/proc/pressure/cpu"), re.MULTILINE)
    return int(match.group(1)) / 1e6 if match else 0.0


def cards() -> dict[str, list[int]]:
    """Bytes sent and received, by interface."""
    found = {}
    for line in text("/proc/net/dev").splitlines()[2:]:
        name, _, rest = line.partition(":")
        fields = rest.split()
        if name.strip() != "lo":
            found[name.strip()] = [int(fields[8]), int(fields[0])]
    return found


def inputs(*patterns: str) -> list[Path]:
    return [path for pattern in patterns for path in sorted(Path("/sys").glob(pattern))]


Kinds = dict[str, tuple[float, list[Path]]]


def of_cards() -> tuple[Kinds, list[Path]]:
    """Files of accelerators by unit, and those that count milliseconds without work."""
    gauges: Kinds = {}
    idle: list[Path] = []
    for card in sorted(Path("/sys/class/drm").glob("card*")):
        device = card / "device"
        table = TABLES.get("sysfs", {}).get(text(str(device / "vendor")).strip())
        if not card.name[4:].isdigit() or not table:
            continue
        for fact, (patterns, factor) in table["facts"].items():
            files = [path for each in patterns for path in sorted(device.glob(each))]
            unit = TABLES["units"].get(fact)
            if unit and files:
                gauges.setdefault(unit, (factor, []))[1].append(files[0])
        idle += [path for each in table.get("idle", ()) for path in sorted(device.glob(each))]
    return gauges, idle


CARDS, IDLE = of_cards()
#: Sensors of the hardware: unit -> (value of one step in that unit, files). They are searched once,
#: since they do not change during a workload. Containers have none of their own.
GAUGES_OF: Kinds = {
    "W": (1e-6, inputs("class/hwmon/hwmon*/power*_input", "class/hwmon/hwmon*/power*_average")),
    "C": (1e-3, inputs("class/hwmon/hwmon*/temp*_input")),
    "MHz": (1e-3, inputs("devices/system/cpu/cpu*/cpufreq/scaling_cur_freq")),
    **CARDS,
}
#: Energy that is counted, and time without work.
COUNTERS_OF: Kinds = {
    "J": (
        1e-6,
        inputs("class/hwmon/hwmon*/energy*_input", "class/powercap/intel-rapl:?/energy_uj"),
    ),
    "s GPU idle": (1e-3, IDLE),
}


def hardware(kinds: Kinds) -> dict[str, float]:
    """The sensors' values by "UNIT of PLACE"; for processors' clocks, their mean."""
    found: dict[str, list[float]] = {}
    for unit, (scale, files) in kinds.items():
        for file in files:
            if (value := text(str(file)).strip()).isdigit():
                name = text(str(file.with_name("name"))).strip()
                place = " ".join(filter(None, [name, *file.parts[4:]]))
                key = "the processors' clock" if unit == "MHz" else place
                found.setdefault(f"{unit} of {key}", []).append(int(value) * scale)
    return {name: sum(values) / len(values) for name, values in found.items()}


class Printing:
    """A driver's program that prints a line for each card, again and again: starting it is slow."""

    def __init__(self, table: Tables) -> None:
        self.found: dict[str, float] = {}
        self.rest = b""
        self.process = None
        self.vendor = table["vendor"]
        units = TABLES["printed_units"]
        #: Unit and factor of each column behind the card's number.
        self.columns = [(units[k], f) for k, (_, f) in table["facts"].items() if k in units]
        if shutil.which(table["program"]):
            asked = [query for key, (query, _) in table["facts"].items() if key in units]
            words = [table["program"], table["ask"] + ",".join(["index", *asked]), *table["words"]]
            again = [word.replace("MS", str(int(PERIOD * 1000))) for word in table["loop"]]
            self.process = subprocess.Popen(
                [*words, *again],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            assert self.process.stdout is not None
            os.set_blocking(self.process.stdout.fileno(), False)

    def gauges(self) -> dict[str, float]:
        """The newest values by "UNIT of PLACE"."""
        if self.process is None or self.process.stdout is None:
            return {}
        while chunk := self._chunk(self.process.stdout.fileno()):
            *lines, self.rest = (self.rest + chunk).split(b"\n")
            for line in lines:
                self._line(line.decode(errors="replace").split(", "))
        return self.found

    def _chunk(self, handle: int) -> bytes:
        try:
            return os.read(handle, 1 << 16)
        except BlockingIOError:
            return b""

    def _line(self, words: list[str]) -> None:
        for (unit, factor), word in zip(self.columns, words[1:]):  # noqa: B905 - Python 3.9
            if word.strip().replace(".", "", 1).isdigit():
                self.found[f"{unit} of {self.vendor} {words[0]}"] = float(word) * factor

    def end(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()


def memory() -> float:
    match = re.search(r"^MemAvailable:\s+(\d+)", text("/proc/meminfo"), re.MULTILINE)
    return int(match.group(1)) * 1024.0 if match else 0.0


@functools.cache
def opener() -> Any:
    import urllib.request  # takes half a second, and only one node needs it

    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def gauges(url: str) -> dict[str, float]:
    """vLLM's gauges, added over engines."""
    try:
        with opener().open(url, timeout=2) as answer:
            page = answer.read().decode()
    except (OSError, HTTPException):
        return {}
    found = {}
    for name in GAUGES:
        values = re.findall(rf"^vllm:{name}(?:\{{[^}}]*\}})? (\S+)", page, re.MULTILINE)
        found[name] = sum(map(float, values))
    return found


def main(url: str, units: list[str]) -> None:
    printing = [Printing(table) for table in TABLES.get("printed", ())]
    try:
        sample(url, units, printing)
    finally:
        for each in printing:
            each.end()


def sample(url: str, units: list[str], printing: list[Printing]) -> None:
    due = time.monotonic()
    while True:
        line = {
            "time": time.time(),
            "at": time.monotonic(),
            "cpu": processors(),
            "group": group(units),
            "stalled": stalled(),
            "net": cards(),
            "memory": memory(),
            "hardware": {
                **hardware(GAUGES_OF),
                **{k: v for p in printing for k, v in p.gauges().items()},
            },
            "counters": hardware(COUNTERS_OF),
            "gauges": gauges(url) if url else {},
        }
        print(json.dumps(line, separators=(",", ":")), flush=True)
        due = max(due + PERIOD, time.monotonic())
        ready, _, _ = select.select([0], [], [], max(0.0, due - time.monotonic()))
        if ready and not os.read(0, 4096):
            return


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
