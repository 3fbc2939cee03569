"""Runs on every node while a load runs, standard library only: a line of JSON each half second.

    python -c SAMPLER [URL]     URL: vLLM's metrics, on the node of its server

Ends when its standard input does. Counters are as the kernel has them; differences are taken later.
"""

from __future__ import annotations

import json
import os
import re
import select
import sys
import time
import urllib.request
from pathlib import Path

PERIOD = 0.5
GAUGES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")


def text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def numbers(path: str) -> dict[str, int]:
    """A file of lines NAME NUMBER."""
    found = {}
    for line in text(path).splitlines():
        name, _, value = line.partition(" ")
        if value.strip().isdigit():
            found[name] = int(value)
    return found


def processors() -> dict[str, float]:
    """Busy and all time of this node's processors, in seconds, since it started."""
    ticks = [int(word) for word in text("/proc/stat").splitlines()[0].split()[1:9]]
    hertz = os.sysconf("SC_CLK_TCK")
    idle = ticks[3] + ticks[4]
    return {"busy": (sum(ticks) - idle) / hertz, "all": sum(ticks) / hertz}


def group() -> dict[str, float]:
    """This node's own control group, where it has one: processor time used, periods cut short."""
    for home in ("/sys/fs/cgroup", "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/cpu"):
        stat = numbers(f"{home}/cpu.stat")
        if "nr_periods" in stat or "usage_usec" in stat:
            used = stat.get("usage_usec", 0) / 1e6
            if not used:
                used = int(text(f"{home}/cpuacct.usage").strip() or 0) / 1e9
            periods = {name: float(stat.get(name, 0)) for name in ("nr_periods", "nr_throttled")}
            return {"used": used, **periods}
    return {}


def stalled() -> float:
    """Seconds in which a task waited for a processor (PSI)."""
    match = re.search(r"^some .*total=(\d+)", text("/proc/pressure/cpu"), re.MULTILINE)
    return int(match.group(1)) / 1e6 if match else 0.0


def cards() -> dict[str, list[int]]:
    """By interface, bytes sent and received."""
    found = {}
    for home in Path("/sys/class/net").iterdir():
        if home.name != "lo":
            both = (home / "statistics/tx_bytes", home / "statistics/rx_bytes")
            found[home.name] = [int(file.read_text()) for file in both]
    return found


def hardware() -> dict[str, float]:
    """What the machine gives: MHz, degrees, watts and joules. Containers give none of their own."""
    found = {}
    for file in Path("/sys/class/hwmon").glob("hwmon*/power*_input"):
        found[f"power {file.parent.name}"] = float(text(str(file)) or 0) / 1e6
    for file in Path("/sys/class/powercap").glob("intel-rapl:?/energy_uj"):
        found[f"energy {file.parent.name}"] = float(text(str(file)) or 0) / 1e6
    for file in Path("/sys/class/drm").glob("card?/gt/gt0/rps_act_freq_mhz"):
        found[f"GPU MHz {file.parts[-4]}"] = float(text(str(file)) or 0)
    return found


def memory() -> float:
    match = re.search(r"^MemAvailable:\s+(\d+)", text("/proc/meminfo"), re.MULTILINE)
    return int(match.group(1)) * 1024.0 if match else 0.0


def gauges(url: str) -> dict[str, float]:
    """vLLM's gauges, added over engines."""
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=2) as answer:
            page = answer.read().decode()
    except OSError:
        return {}
    found = {}
    for name in GAUGES:
        values = re.findall(rf"^vllm:{name}(?:\{{[^}}]*\}})? (\S+)", page, re.MULTILINE)
        found[name] = sum(map(float, values))
    return found


def main(url: str) -> None:
    due = time.monotonic()
    while True:
        line = {
            "time": time.time(),
            "cpu": processors(),
            "group": group(),
            "stalled": stalled(),
            "net": cards(),
            "memory": memory(),
            "hardware": hardware(),
            "gauges": gauges(url) if url else {},
        }
        print(json.dumps(line, separators=(",", ":")), flush=True)
        due = max(due + PERIOD, time.monotonic())
        ready, _, _ = select.select([0], [], [], max(0.0, due - time.monotonic()))
        if ready and not os.read(0, 4096):
            return


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
