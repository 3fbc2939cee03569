"""The attacker: root in a container, its PID 1. Standard library only.

It tries each attempt once and writes what came of it: DONE, or why not. Attempts change nothing on
a machine where they succeed: files are opened and not written, and calls get arguments without
effect.

    python root_in_a_container.py '{"home": DIRECTORY, "device": [MAJOR, MINOR], ...}'
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import socket
import stat
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

DONE = "done"
#: Settings of a namespace, which are its root's own (pid_max: from Linux 6.14 on).
OWN = (
    "hostname",
    "domainname",
    "msg",
    "sem",
    "shm",
    "ns_last_pid",
    "auto_msgmni",
    "mqueue",
    "pid_max",
)
LIBC = ctypes.CDLL(None, use_errno=True)
MS_RDONLY, MS_REMOUNT, MS_BIND = 1, 32, 4096
AT_FDCWD, CLONE_NEWNS, PTRACE_ATTACH, CLOCK_REALTIME = -100, 0x20000, 16, 0
#: System calls by their numbers on x86-64, with arguments that have no effect.
CALLS: dict[str, tuple[int, tuple[int | bytes, ...]]] = {
    "kexec_load": (246, (0, 0, 0, 0)),
    "init_module": (175, (b"", 0, b"")),
    "finit_module": (313, (-1, b"", 0)),
    "bpf": (321, (0, b"\1\0\0\0\4\0\0\0\4\0\0\0\1" + bytes(107), 120)),  # an array of one
    "add_key": (248, (b"user", b"attack", b"x", 1, -2)),
    "keyctl": (250, (0, -2, 1)),
    "perf_event_open": (298, (bytes(128), 0, -1, -1, 0)),
    "userfaultfd": (323, (0,)),
    "io_uring_setup": (425, (1, bytes(120))),
    "open_by_handle_at": (304, (AT_FDCWD, b"\10\0\0\0\1\0\0\0\2\0\0\0\0\0\0\0", 0)),
    "quotactl": (179, (0x80000400, 0, 0, bytes(4))),
    "swapoff": (168, (b"/nowhere",)),
    "iopl": (172, (3,)),
}

#: What the test says of its machine.
asked: dict[str, Any] = {}


class Refused(Exception):
    """An attempt's error, by its name."""


def call(what: str, result: int) -> int:
    if result < 0:
        raise Refused(f"{what}: {errno.errorcode[ctypes.get_errno()]}")
    return result


def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    words = [os.fsencode(word) for word in (source, target, kind)]
    call("mount", LIBC.mount(*words, ctypes.c_ulong(flags), os.fsencode(data)))


def place(name: str) -> str:
    path = Path("/tmp", name)
    path.mkdir(exist_ok=True)
    return str(path)


def writable(path: str | Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))


def every(*roots: str) -> None:
    """Some file below can be opened for writing."""
    found = []
    for root in roots:
        for directory, _, names in os.walk(root):
            for name in names:
                if name.startswith(OWN) or "/mqueue" in directory:
                    continue
                with suppress(OSError):
                    writable(Path(directory, name))
                    found.append(str(Path(directory, name)))
    if not found:
        raise Refused("none can be opened")
    raise Succeeded(" ".join(found[:5]))


class Succeeded(Exception):
    """An attempt that succeeded, and where."""


def proc_sys_made_writable() -> None:
    mount("", "/proc/sys", "", MS_REMOUNT | MS_BIND)
    writable("/proc/sys/kernel/core_pattern")


def proc_sys_uncovered() -> None:
    for path in ("/proc/sys/net", "/proc/sys/net", "/proc/sys"):
        call("umount", LIBC.umount2(os.fsencode(path), 2))
    writable("/proc/sys/kernel/core_pattern")


def new_proc(then: str) -> Callable[[], None]:
    def attempt() -> None:
        mount("proc", place("proc"), "proc")
        if then == "sys":
            every(*(f"/tmp/proc/sys/{name}" for name in ("kernel", "vm", "fs", "debug", "dev")))
        writable(f"/tmp/proc/{then}")

    return attempt


def new_sysfs() -> None:
    mount("sysfs", place("sys"), "sysfs")
    every("/tmp/sys/kernel", "/tmp/sys/power", "/tmp/sys/module")


def file_system(kind: str) -> Callable[[], None]:
    return lambda: mount(kind, place(kind), kind)


def release_agent() -> None:
    mount("cgroup", place("cgroup"), "cgroup", data="memory")
    writable("/tmp/cgroup/release_agent")


def device(directory: str) -> Callable[[], None]:
    def attempt() -> None:
        path = Path(directory, "disk")
        major, minor = asked["device"]
        os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(major, minor))
        os.close(os.open(path, os.O_RDONLY))

    return attempt


def loop_device() -> None:
    writable("/dev/loop-control")


def chroot_out() -> None:
    handle = os.open("/", os.O_RDONLY)
    os.chroot(place("cell"))
    os.fchdir(handle)
    for _ in range(40):
        os.chdir("..")
    os.chroot(".")
    Path(asked["only_there"]).stat()


def root_of_init() -> None:
    Path("/proc/1/root" + asked["only_there"]).stat()


def open_host_process(name: str) -> Callable[[], None]:
    return lambda: os.close(os.open(f"/proc/{asked['pid']}/{name}", os.O_RDONLY))


def trace() -> None:
    call("ptrace", LIBC.ptrace(PTRACE_ATTACH, asked["pid"], 0, 0))


def replace_served(how: str) -> Callable[[], None]:
    def attempt() -> None:
        path = Path(asked["served"])
        if how == "remounted":
            mount("", str(path), "", MS_REMOUNT | MS_BIND)
        if how == "owner":
            os.chown(path / "file", 1000, 1000)
        if how == "new":
            (path / "more").write_text("more")
        writable(path / "file")

    return attempt


def host_network() -> None:
    seen = {name for _, name in socket.if_nameindex()} & set(asked["interfaces"])
    if not seen:
        raise Refused("no interface of it is here")


def host_socket() -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("\0" + asked["socket"])


def clock() -> None:
    time.clock_settime(CLOCK_REALTIME, time.time())


def system_call(name: str) -> Callable[[], None]:
    def attempt() -> None:
        if platform.machine() != "x86_64":
            raise Refused("not tried on this architecture")
        number, words = CALLS[name]
        found = [ctypes.c_long(word) if isinstance(word, int) else word for word in words]
        result = LIBC.syscall(ctypes.c_long(number), *found)
        # What the kernel looked at and did not like was not refused.
        if result < 0 and ctypes.get_errno() in (errno.EPERM, errno.EACCES, errno.ENOSYS):
            raise Refused(errno.errorcode[ctypes.get_errno()])

    return attempt


def mount_own() -> None:
    mount("tmpfs", place("own"), "tmpfs")


def configure_network() -> None:
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as packets:
        packets.bind(("lo", 0))


def keep() -> None:
    kept = Path(asked["lasting"], "program")
    kept.write_text("#!/bin/sh\n")
    kept.chmod(0o4755)


def change_layer() -> None:
    Path("/etc/hostname").write_text("attacked\n")


ATTEMPTS: dict[str, Callable[[], None]] = {
    "core_pattern": lambda: writable("/proc/sys/kernel/core_pattern"),
    "core_pattern, remounted": proc_sys_made_writable,
    "core_pattern, uncovered": proc_sys_uncovered,
    "settings of the kernel": lambda: every("/proc/sys/kernel", "/proc/sys/vm", "/proc/sys/fs"),
    "settings of the kernel, in a new /proc": new_proc("sys"),
    "sysrq": lambda: writable("/proc/sysrq-trigger"),
    "sysrq, in a new /proc": new_proc("sysrq-trigger"),
    "settings of drivers": lambda: every("/sys/kernel", "/sys/power", "/sys/module"),
    "settings of drivers, in a new /sys": new_sysfs,
    "debugfs": file_system("debugfs"),
    "tracefs": file_system("tracefs"),
    "release_agent": release_agent,
    "disk": device("/"),
    "disk, on a tmpfs": device("/dev"),
    "disk, in what lasts": device("/var/lib/orchestrate/control"),
    "loop device": loop_device,
    "chroot": chroot_out,
    "root of PID 1": root_of_init,
    "a process's memory": open_host_process("mem"),
    "a process's root": open_host_process("root"),
    "signal": lambda: os.kill(asked["pid"], 0),
    "ptrace": trace,
    "served file": replace_served(""),
    "served directory": replace_served("new"),
    "served file, remounted": replace_served("remounted"),
    "served file, with another owner": replace_served("owner"),
    "image's id": lambda: writable("/run/orchestrate/image-id"),
    "network": host_network,
    "abstract socket": host_socket,
    "clock": clock,
    **{name: system_call(name) for name in CALLS},
}
#: What root needs in a container, for its own services.
RIGHTS: dict[str, Callable[[], None]] = {
    "own mounts": mount_own,
    "own network": configure_network,
    "what lasts": keep,
    "own root": change_layer,
}


def outcome(attempt: Callable[[], None]) -> str:
    """Of an attempt, in a process of its own: some cannot be undone."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            attempt()
            said = DONE
        except Succeeded as error:
            said = f"{DONE}: {error}"
        except Refused as error:
            said = str(error)
        except OSError as error:
            said = errno.errorcode[error.errno or 0]
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as words:
        said = words.read()
    os.waitpid(pid, 0)
    return said or "it ended"


def main() -> None:
    found = {name: outcome(attempt) for name, attempt in {**RIGHTS, **ATTEMPTS}.items()}
    lasting = Path(asked["lasting"])
    (lasting / "new.json").write_text(json.dumps(found))
    (lasting / "new.json").rename(lasting / "found.json")
    while True:
        time.sleep(60)


if __name__ == "__main__":
    asked.update(json.loads(sys.argv[1]))
    main()
