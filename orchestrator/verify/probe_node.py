"""Runs on a node, sent over SSH: print its facts as JSON (facts.NodeFacts).

Standard library only. Its one argument is a JSON document: image_id_file, host_key_file, nodes,
accounts, units.
"""

from __future__ import annotations

import json
import pwd
import re
import socket
import subprocess
import sys
import time
from pathlib import Path


def systemctl(*words: str) -> list[str]:
    """The lines that systemctl prints; its exit code says nothing that they do not."""
    ran = subprocess.run(
        ["systemctl", *words], stdout=subprocess.PIPE, text=True, timeout=20, check=False
    )
    return ran.stdout.splitlines()


def unit_state(unit: str) -> str:
    """active, failed, ... or "declined (WHY)": its own conditions keep it from running here."""
    state = "".join(systemctl("show", unit, "--property=ActiveState", "--value"))
    if state == "inactive":
        argv = ["systemd-analyze", "condition", f"--unit={unit}"]
        ran = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
        if ran.returncode != 0:
            unmet = re.findall(r"((?:Condition|Assert)\w+=\S+) failed", ran.stdout + ran.stderr)
            return f"declined ({', '.join(unmet) or 'its conditions'})"
    return state or "unknown"


def addresses(name: str) -> list[str]:
    try:
        found = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
    except socket.gaierror:
        return []
    return sorted({str(entry[4][0]) for entry in found})


def uid(account: str) -> int | None:
    try:
        return pwd.getpwnam(account).pw_uid
    except KeyError:
        return None


def loopback(hosts: str) -> list[str]:
    """Names on the 127.0.0.1 lines of an /etc/hosts file."""
    lines = (line.partition("#")[0].split() for line in hosts.splitlines())
    return [name for words in lines if words and words[0] == "127.0.0.1" for name in words[1:]]


def text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def facts(want: dict[str, object]) -> dict[str, object]:
    now = time.time()
    nodes, accounts, units = (
        [str(name) for name in words]
        for words in (want["nodes"], want["accounts"], want["units"])
        if isinstance(words, list)
    )
    failed = systemctl("list-units", "--failed", "--plain", "--no-legend", "--no-pager")
    return {
        "time": now,
        "image": text(str(want["image_id_file"])),
        "host_key": " ".join(text(str(want["host_key_file"])).split()[:2]),
        "hostname": socket.gethostname(),
        "loopback": loopback(text("/etc/hosts")),
        "names": {name: addresses(name) for name in nodes},
        "accounts": {name: uid(name) for name in accounts},
        "system": " ".join(systemctl("is-system-running")),
        "failed": [line.split()[0] for line in failed if line.split()],
        "units": {unit: unit_state(unit) for unit in units},
    }


if __name__ == "__main__":
    print(json.dumps(facts(json.loads(sys.argv[1]))))
