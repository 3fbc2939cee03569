"""What the node's kernel and programs say: settings, links, units, memory.

Runs on a node as a part of the agent (agent.py): the standard library and agent_base only.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from orchestrator.node.agent_base import COMMAND_TIMEOUT_S, Failed, command


def sysctl(root: Path, name: str) -> str:
    """What the kernel has. Raises Failed where it has no such setting."""
    try:
        return " ".join(setting(root, name).read_text().split())
    except FileNotFoundError:
        raise Failed("this kernel has no such setting") from None


def setting(root: Path, name: str) -> Path:
    """Its file. As sysctl(8) reads a name: a dot separates, and a slash stands for a dot."""
    return root / "proc/sys" / name.translate(str.maketrans("./", "/."))


def available_memory() -> int:
    """Bytes that could be used without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def link(name: str) -> dict[str, Any] | None:
    """What the kernel says of an interface (iproute2's JSON); None where there is none."""
    try:
        said = command(["ip", "-json", "address", "show", "dev", name])
    except Failed as failed:
        if "does not exist" in str(failed):
            return None
        raise
    found: dict[str, Any] = json.loads(said)[0]
    return found


def addresses_of(found: dict[str, Any] | None) -> list[str]:
    """The IPv4 addresses of an interface, each ADDRESS/BITS."""
    return [
        f"{each['local']}/{each['prefixlen']}"
        for each in (found or {"addr_info": []})["addr_info"]
        if each["family"] == "inet"
    ]


def reload_links(root: Path) -> None:
    """Let systemd-networkd, where it runs, read its files again."""
    if (root / "run/systemd/netif/state").exists():
        command(["networkctl", "reload"])


def active_state(name: str) -> str:
    return command(["systemctl", "show", name, "--property=ActiveState", "--value"]).strip()


def forgive(name: str) -> None:
    """Let a unit's failures be forgotten; nothing where there are none."""
    argv = ["systemctl", "reset-failed", name]
    subprocess.run(argv, check=False, capture_output=True, timeout=COMMAND_TIMEOUT_S)


def last_words(name: str) -> str:
    """What a unit's own process said last, on one line: systemctl only says where to look."""
    log = ["journalctl", f"--unit={name}", "--output=cat", "--no-pager", "--lines=12"]
    lines = command([*log, "_TRANSPORT=stdout", "+", f"UNIT={name}", "_TRANSPORT=stdout"])
    return "; ".join(dict.fromkeys(line.strip() for line in lines.splitlines() if line.strip()))


def conditions_hold(name: str) -> bool:
    """Would the unit's own conditions let it start? (`systemctl show` soon forgets.)"""
    argv = ["systemd-analyze", "condition", f"--unit={name}"]
    return (
        subprocess.run(argv, check=False, capture_output=True, timeout=COMMAND_TIMEOUT_S).returncode
        == 0
    )


def facts() -> dict[str, Any]:
    """What the node is, as far as it can tell without asking anyone."""
    return {
        "hostname": platform.node(),
        "kernel": platform.release(),
        "boot_id": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }
