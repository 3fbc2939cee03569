"""Runs on a node of somebody's cluster, for node_facts.py: accelerators, their links, RDMA devices.

What is read is in the tables of performance/bench/accelerators.py. Standard library only, Python
3.9 or later. The variable ORCHESTRATE_ROOT moves /proc and /sys: for tests.
"""

from __future__ import annotations

import csv
import json
import os
import re
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

ROOT = Path(os.environ.get("ORCHESTRATE_ROOT", "/"))
#: How much of anything is told.
MOST_WORDS, MOST_TEXT, MOST_THINGS = 200, 2000, 64
#: Seconds between two looks at what counts.
BETWEEN_S = 0.2

Facts = dict[str, Any]
unknown: list[str] = []


def text(path: Path, most: int = 1 << 16) -> str:
    return data(path, most).decode(errors="replace")


def data(path: Path, most: int = 1 << 16) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(most)
    except OSError:
        return b""


def number(word: str, factor: float) -> float | None:
    try:
        return float(word.split(maxsplit=1)[0]) * factor
    except (ValueError, IndexError):
        return None


def said(argv: list[str], timeout: float = 10.0) -> str:
    """What a command prints; "" if it is not there or fails."""
    try:
        ran = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            timeout=timeout, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ran.stdout[: 1 << 20].decode(errors="replace") if ran.returncode == 0 else ""


def accelerators(tables: Facts) -> list[Facts]:
    """All cards: those that a program tells, then those that the kernel's drivers show."""
    found: list[Facts] = []
    for table in tables["printed"]:
        found += printed(table)
    found += sysfs(tables, found)
    for table in tables["documents"]:
        documented(table, found)
    for place, links in topology(tables["topology"]).items():
        for card in found:
            if card["place"].lower()[-12:] == place:
                card["links"] = links
    return found


def printed(table: Facts) -> list[Facts]:
    asked = table["facts"]
    queries = table["ask"] + ",".join(query for query, _ in asked.values())
    page = said([table["program"], queries, *table["words"]])
    if not page and (ROOT / table["present"]).exists():
        unknown.append(
            f"{table['vendor']}'s driver is loaded, but {table['program']} does not answer"
        )
    found = []
    for row in list(csv.reader(page.splitlines(), skipinitialspace=True))[:MOST_THINGS]:
        facts: Facts = {"vendor": table["vendor"]}
        for (key, (_, factor)), word in zip(asked.items(), row):  # noqa: B905 - Python 3.9
            facts[key] = number(word, factor) if factor else word[:MOST_TEXT]
        if not facts.get("place"):
            continue  # something else was printed
        mask = facts.get("throttled", "")
        facts["throttled"] = reasons(int(mask, 16) if is_hex(mask) else 0, table["throttled"])
        for key, before in table["before"].items():
            facts[key] = f"{before}{facts[key]}" if facts.get(key, "").isdigit() else ""
        found.append(whole(facts))
    for index, links in (linked(table) if found else {}).items():
        if index < len(found):
            found[index]["links"] = links
    return found


def is_hex(word: str) -> bool:
    return bool(re.fullmatch(r"0x[0-9a-fA-F]{1,16}", word))


def reasons(mask: int, names: list[Any]) -> str:
    """The names of the bits that are on."""
    return ", ".join(dict.fromkeys(name for bits, name in names if bits & mask))


def linked(table: Facts) -> dict[int, str]:
    """The links that work of each card, by its number."""
    links = table["links"]
    cards: dict[int, list[float]] = {}
    index = 0
    for line in said([table["program"], *links["words"]]).splitlines():
        card, link = re.match(links["card"], line), re.match(links["link"], line)
        if card:
            index = int(card[1])
        if link and float(link[1]) > 0:
            cards.setdefault(index, []).append(float(link[1]))
    return {key: count_of(links["name"], rates) for key, rates in cards.items()}


def count_of(name: str, rates: list[float]) -> str:
    """Links of a card, like ``18 NVLink, 26.6 GB/s each``."""
    rate = max(rates, default=0.0)
    return f"{len(rates)} {name}" + (f", {rate:.3g} GB/s each" if rate else "")


def topology(table: Facts) -> dict[str, str]:
    """Links between cards by the card's PCI place, as the kernel tells them."""
    found = {}
    for node in sorted((ROOT / table["nodes"]).glob("[0-9]*"))[:MOST_THINGS]:
        own = properties(node / "properties")
        location = own.get("location_id", 0)
        if not location:
            continue
        rates: dict[str, list[float]] = {}
        for link in sorted(node.glob("io_links/*/properties"))[:MOST_THINGS]:
            told = properties(link)
            name = table["types"].get(str(told.get("type")))
            if name:
                rates.setdefault(name, []).append(told.get("max_bandwidth", 0) / 1000)
        bus, device, function = location >> 8 & 0xFF, location >> 3 & 0x1F, location & 7
        place = f"{own.get('domain', 0):04x}:{bus:02x}:{device:02x}.{function}"
        if rates:
            found[place] = "; ".join(count_of(name, each) for name, each in rates.items())
    return found


def properties(path: Path) -> dict[str, int]:
    lines = (line.partition(" ") for line in text(path).splitlines())
    return {name: int(value) for name, _, value in lines if value.strip().isdigit()}


def whole(facts: Facts) -> Facts:
    """Widths are whole numbers."""
    for key in ("link_width", "link_width_most"):
        if facts.get(key) is not None:
            facts[key] = int(facts[key])
    return facts


def sysfs(tables: Facts, known: list[Facts]) -> list[Facts]:
    """Cards that the kernel's graphics drivers show, but not those that are known already."""
    places = {str(each["place"]).lower()[-12:] for each in known}
    found = []
    for card in sorted((ROOT / "sys/class/drm").glob("card*"))[: 2 * MOST_THINGS]:
        device = card / "device"
        table = tables["sysfs"].get(text(device / "vendor").strip())
        place = os.path.realpath(device).rpartition("/")[2]
        if not card.name[4:].isdigit() or not table or place.lower()[-12:] in places:
            continue
        found.append((device, table, *counted(device, table)))
    if any(rates or metrics for _, _, rates, metrics in found):
        time.sleep(BETWEEN_S)
    return [one(tables, *each) for each in found]


def one(tables: Facts, device: Path, table: Facts, before: Facts, metrics: bytes) -> Facts:
    """A card. ``before``: what counted, a moment ago; ``metrics``: its firmware's table then."""
    vendor = table["vendor"]
    place = os.path.realpath(device).rpartition("/")[2]
    facts: Facts = {"vendor": vendor, "place": place, "name": ""}
    facts["driver"] = os.path.realpath(device / "driver").rpartition("/")[2]
    link = counted_link(device)
    for key, (patterns, factor) in {**table["facts"], **tables["link"]}.items():
        word = first(link if key in tables["link"] else device, patterns)
        facts[key] = number(word, factor) if factor else word[:MOST_TEXT]
    after, now = counted(device, table)
    passed = after.pop("at") - before.pop("at")
    for key, value in after.items():
        if key in before and facts.get(key) is None:
            facts[key] = max(0.0, value - before[key]) / passed
    if "idle" in facts:  # seconds without work, each second
        facts["busy_percent"] = 100 * (1 - min(1.0, facts.pop("idle")))
    facts["name"] = facts["name"] or f"{vendor} {text(device / 'device').strip()}"
    slow = [*throttled(device, table), *slowed(table.get("metrics", {}), metrics, now)]
    facts["throttled"] = ", ".join(dict.fromkeys(filter(None, slow)))
    if "memory_bar" in table:
        facts["memory_bytes"] = bar(device, table["memory_bar"])
    return whole(facts)


def counted_link(device: Path) -> Path:
    """Of all PCIe links between a card and the processor, by its lower end, the one with the
    smallest part of its lanes; of equal ones the outermost. A card may have a switch of its own,
    behind which its own link says x1 whatever the slot gives. verify/probe_hardware.py has the
    same rule."""
    best, found = 2.0, device
    lower = device.resolve()
    while re.fullmatch(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", lower.name):
        width = number(text(lower / "current_link_width"), 1.0)
        most = number(text(lower / "max_link_width"), 1.0)
        if width and most and width / most <= best:
            best, found = width / most, lower
        # Two steps: a switch's lower port and a root port describe the link below them.
        lower = lower.parent.parent
    return found


def counted(device: Path, table: Facts) -> tuple[Facts, bytes]:
    """What counts now, with the time; and the table of the card's firmware."""
    found: Facts = {"at": time.monotonic()}
    for key, (patterns, factor) in table.get("rates", {}).items():
        value = number(first(device, patterns), factor)
        if value is not None:
            found[key] = value
    idle = number(first(device, table.get("idle", ())), 1e-3)
    if idle is not None:
        found["idle"] = idle
    metrics = table.get("metrics")
    return found, data(device / metrics["file"]) if metrics else b""


def slowed(table: Facts, before: bytes, now: bytes) -> list[str]:
    """What slows a card down, by its firmware's table: bits, or counters that grow."""
    if len(now) < 4:
        return []
    kind = f"{now[2]}.{now[3]}"
    at = table["bits"].get(kind)
    if at is not None and len(now) >= at + 8:
        (mask,) = struct.unpack_from("<Q", now, at)
        # All bits are on where the firmware tells none.
        return [] if mask == (1 << 64) - 1 else [reasons(mask, table["reasons"])]
    grown = []
    for at, name in table["growing"].get(kind, ()):
        if len(now) >= at + 4 and len(before) >= at + 4:
            old, new = struct.unpack_from("<I", before, at)[0], struct.unpack_from("<I", now, at)[0]
            grown += [name] if old < new < 0xFFFFFFFF else []
    return grown


def documented(table: Facts, found: list[Facts]) -> None:
    """Complete cards by what a program tells of them, where it is there."""
    listed = document(said(table["list"]))
    for card in (listed.get(table["cards"]) or [])[:MOST_THINGS] if listed else []:
        if not isinstance(card, dict):
            continue
        place = str(card.get(table["place"], "")).lower()[-12:]
        mine = [each for each in found if each["place"].lower()[-12:] == place]
        if not mine:
            continue
        told = dict(card)
        for words in table["each"]:
            more = document(said([str(card.get(table["id"])) if w == "ID" else w for w in words]))
            told.update(more)
            named = table["named"]
            for each in more.get(named["in"]) or ():
                if isinstance(each, dict):
                    told[str(each.get(named["name"]))] = each.get(named["value"])
        for key, (name, factor) in table["facts"].items():
            word = str(told.get(name, ""))[:MOST_TEXT]
            value: Any = number(word, factor) if factor else word
            # A name by its number is none.
            if value and (mine[0].get(key) is None or " 0x" in str(mine[0][key])):
                mine[0][key] = value


def document(page: str) -> Facts:
    try:
        found = json.loads(page)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def first(device: Path, patterns: list[str]) -> str:
    """The first of these files that says something."""
    for pattern in patterns:
        for path in sorted(device.glob(pattern)):
            if text(path).strip():
                return text(path).strip()
    return ""


def throttled(device: Path, table: Facts) -> list[str]:
    files = [path for each in table.get("throttled", ()) for path in sorted(device.glob(each))]
    on = [path.name.rpartition("reason_")[2] for path in files if text(path).strip() == "1"]
    return [reason for reason in on if reason != "status"]


def bar(device: Path, index: int) -> float | None:
    """Bytes of a memory region; None without it, and for the small one of a BAR that is not
    resized: it shows the driver's window, not the card's memory."""
    lines = text(device / "resource").splitlines()
    try:
        start, end = (int(word, 16) for word in lines[index].split()[:2])
    except (IndexError, ValueError):
        return None
    return float(end - start + 1) if end - start >= 1 << 30 else None


def rdma() -> list[Facts]:
    """Ports of RDMA devices: InfiniBand's, or Ethernet's with RoCE."""
    found = []
    for port in sorted((ROOT / "sys/class/infiniband").glob("*/ports/[0-9]*")):
        device = port.parent.parent
        nets = sorted(path.name for path in (device / "device/net").glob("*"))
        found.append(
            {
                "device": device.name,
                "port": int(port.name),
                "layer": text(port / "link_layer").strip()[:MOST_TEXT],
                # As "4: ACTIVE" and "100 Gb/sec (4X EDR)".
                "state": text(port / "state").strip().rpartition(" ")[2][:MOST_TEXT],
                "gbits": number(text(port / "rate"), 1.0),
                "interface": nets[0] if nets else "",
            }
        )
    return found[:MOST_THINGS]
