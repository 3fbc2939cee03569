"""The node's side of configuration: compares a node with its desired state, and makes it so.

This file is sent to the node and run there by root: the standard library only, nothing else of
this package. It reads one JSON request from stdin, {"verb": "look" | "apply", "root": "/",
"limit_s": 100, "state": {...}} (state.py says what a state is), and writes one JSON report to
stdout, also where a resource fails, time is up, or it is told to stop (SIGTERM).

Nothing here depends on having run to its end before: a file is replaced whole, and a unit is
restarted until the revision of its configuration has been noted.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import hashlib
import http.client
import json
import os
import platform
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Resource = dict[str, Any]
#: What differs -> what is there now, where that says more.
Changes = dict[str, Any]

#: Users come before what they own, files before the units that read them. By kind, its singular.
ORDER = {
    "sysctls": "sysctl",
    "links": "link",
    "users": "user",
    "directories": "directory",
    "files": "file",
    "units": "unit",
}
#: The change that only time makes: a link whose interface is not there (yet).
ABSENT = "absent"
#: What this agent did since boot, below the root.
MEMORY = "run/orchestrate/agent.json"
LOCK = "run/orchestrate/agent.lock"
LOCK_WAIT_S = 20.0
COMMAND_TIMEOUT_S = 180.0
DOWNLOAD_TIMEOUT_S = 60.0  # without a byte
DOWNLOAD_PAUSES = (1.0, 2.0, 4.0)  # before a download is taken up again
CHUNK = 1 << 20
SHOWN_BYTES = 1 << 16  # a longer file is not shown in differences


class Failed(Exception):
    """A resource cannot be made as desired; the text is for people."""


class Stopped(BaseException):
    """The run has to end here: time is up, or it was told to. The text says which."""


class Stop:
    """Turns signals into Stopped, but only in the midst of a resource: its report is kept."""

    def __init__(self) -> None:
        self.reason = ""
        self.armed = False

    def listen(self, limit_s: float | None) -> None:
        signal.signal(signal.SIGTERM, self._heard)
        signal.signal(signal.SIGALRM, self._heard)
        signal.setitimer(signal.ITIMER_REAL, limit_s or 0)

    def _heard(self, number: int, frame: object) -> None:
        self.reason = "timed out" if number == signal.SIGALRM else "stopped by a signal"
        if self.armed:
            self.armed = False
            raise Stopped(self.reason)


STOP = Stop()


def identify(kind: str, resource: Resource) -> str:
    """A resource's name in reports: kind and name or path."""
    return f"{ORDER[kind]}:{resource.get('name') or resource['path']}"


class Memory:
    """Which configuration each unit was started with, and which big files were verified."""

    def __init__(self, root: Path) -> None:
        self.path = root / MEMORY
        try:
            self.known: dict[str, Any] = json.loads(self.path.read_text())
        except (OSError, ValueError):
            self.known = {}

    def get(self, key: str) -> Any:
        return self.known.get(key)

    def note(self, key: str, value: Any) -> None:
        self.known[key] = value
        replace(self.path, [json.dumps(self.known).encode()], 0, 0, 0o600)


class ThisNode:
    """The node below ``root``: for each kind of resource, what differs, and how to fix it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.memory = Memory(root)
        self.reloaded = False

    def differs(self, kind: str, resource: Resource) -> Changes:
        found: Changes = getattr(self, f"differs_{kind}")(resource)
        return found

    def apply(self, kind: str, resource: Resource, changes: Changes) -> None:
        getattr(self, f"apply_{kind}")(resource, changes)

    def at(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    # Kernel settings: the next boot forgets them, as it does everything here.

    def differs_sysctls(self, wanted: Resource) -> Changes:
        found = self._sysctl(wanted)
        return {} if found.split() == wanted["value"].split() else {"value": found}

    def apply_sysctls(self, wanted: Resource, changes: Changes) -> None:
        try:
            self._setting(wanted).write_text(wanted["value"])
        except OSError as error:
            raise Failed(f"the kernel rejects {wanted['value']!r}: {error}") from None
        if (found := self._sysctl(wanted)).split() != wanted["value"].split():
            raise Failed(f"the kernel set {found!r} instead of {wanted['value']!r}")

    def _sysctl(self, wanted: Resource) -> str:
        try:
            return " ".join(self._setting(wanted).read_text().split())
        except FileNotFoundError:
            raise Failed("this kernel has no such setting") from None

    def _setting(self, wanted: Resource) -> Path:
        # As sysctl(8) reads it: a dot separates, and a slash stands for a dot in a name.
        return self.at("proc/sys/" + wanted["name"].translate(str.maketrans("./", "/.")))

    # Links: systemd-networkd's file for the time after, and the kernel's own state for now

    def differs_links(self, wanted: Resource) -> Changes:
        changes: Changes = {}
        path = self.at(wanted["file"])
        if not path.is_file() or path.read_bytes() != wanted["content"].encode():
            changes["file"] = None
        elif self.memory.get(identify("links", wanted)):
            changes["reload"] = None
        found = link(wanted["name"])
        if found is None:
            return changes | {ABSENT: None}
        addresses = [
            f"{each['local']}/{each['prefixlen']}"
            for each in found["addr_info"]
            if each["family"] == "inet"
        ]
        if not set(wanted["addresses"]) <= set(addresses):
            changes["address"] = ", ".join(addresses)
        if "UP" not in found["flags"]:
            changes["up"] = "down"
        return changes

    def apply_links(self, wanted: Resource, changes: Changes) -> None:
        name, note = wanted["name"], identify("links", wanted)
        if "file" in changes:
            # Noted first: killed after the file, the next run still knows what is to be reloaded.
            self.memory.note(note, "reload")
            path = self.at(wanted["file"])
            path.parent.mkdir(parents=True, exist_ok=True)
            replace(path, [wanted["content"].encode()], 0, 0, 0o644)
        if {"file", "reload"} & set(changes):
            if self.at("run/systemd/netif/state").exists():
                command(["networkctl", "reload"])
            self.memory.note(note, None)
        if ABSENT in changes:
            return  # networkd sets it up when it appears
        for address in wanted["addresses"]:
            command(["ip", "address", "replace", address, "dev", name])
        command(["ip", "link", "set", name, "up"])

    # Users

    def differs_users(self, user: Resource) -> Changes:
        try:
            entry = pwd.getpwnam(user["name"])
        except KeyError:
            return {"create": None}
        found = {"uid": entry.pw_uid, "shell": entry.pw_shell}
        changes: Changes = {key: value for key, value in found.items() if value != user[key]}
        if missing := self._missing_groups(user):
            changes["groups"] = f"not in {', '.join(missing)}"
        home = look_at(Path(entry.pw_dir))
        if home is None or home.st_uid != entry.pw_uid:
            changes["home"] = "missing" if home is None else f"of uid {home.st_uid}"
        return changes

    def apply_users(self, user: Resource, changes: Changes) -> None:
        uid, shell = str(user["uid"]), user["shell"]
        argv = ["usermod", "--uid", uid, "--shell", shell]
        if "create" in changes:
            argv = ["useradd", "--create-home", "--user-group", "--uid", uid, "--shell", shell]
        if groups := self._missing_groups(user):
            argv += ["--groups", ",".join(groups)] + ([] if "create" in changes else ["--append"])
        if changes.keys() - {"home"}:
            command([*argv, user["name"]])
        if "home" in changes:  # a useradd that was killed
            self._make_home(pwd.getpwnam(user["name"]))

    def _make_home(self, entry: pwd.struct_passwd) -> None:
        home = Path(entry.pw_dir)
        if not home.exists():
            shutil.copytree("/etc/skel", home, symlinks=True)
            for path in home.rglob("*"):
                os.lchown(path, entry.pw_uid, entry.pw_gid)
        os.chown(home, entry.pw_uid, entry.pw_gid)  # last: until then it counts as unmade

    def _missing_groups(self, user: Resource) -> list[str]:
        """The user's groups that this node has and the user is not yet in."""
        return [
            group.gr_name
            for group in grp.getgrall()
            if group.gr_name in user["groups"] and user["name"] not in group.gr_mem
        ]

    # Directories and files

    def differs_directories(self, wanted: Resource) -> Changes:
        found = look_at(self.at(wanted["path"]))
        changes: Changes = {}
        if stray := self._stray(wanted):
            changes["stray"] = ", ".join(sorted(path.name for path in stray))
        if lacking := self._lacking(wanted):
            changes["room"] = lacking
        if found is None:
            return {"create": None} | changes
        if not stat.S_ISDIR(found.st_mode):
            raise Failed("exists and is not a directory")
        return changes | self._ownership(wanted, found)

    def apply_directories(self, wanted: Resource, changes: Changes) -> None:
        path = self.at(wanted["path"])
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chown(path, *self._owner(wanted))
        path.chmod(int(wanted["mode"], 8))
        for stray in self._stray(wanted):
            stray.unlink()
        if "room" in changes:
            self._make_room(wanted, path)

    def _stray(self, wanted: Resource) -> list[Path]:
        """Files outside the declared list, if there is one."""
        path = self.at(wanted["path"])
        held = {path / name for name, _ in wanted["holds"]}
        return [each for each in path.rglob("*") if held and each not in held and each.is_file()]

    def _coming(self, wanted: Resource) -> dict[Path, int]:
        """The files that are not there as they should be, and their sizes."""
        held = {self.at(wanted["path"]) / name: size for name, size in wanted["holds"]}
        return {
            path: size
            for path, size in held.items()
            if (there := look_at(path)) is None or there.st_size != size
        }

    def _lacking(self, wanted: Resource) -> str:
        """The missing space for files still to come, in words; empty if there is enough."""
        path = self.at(wanted["path"])
        coming = sum(self._coming(wanted).values())
        disk = os.statvfs(next(each for each in (path, *path.parents) if each.exists()))
        free = disk.f_bavail * disk.f_frsize
        if wanted["in_memory"]:
            free = min(free, available_memory())
        told = f"{coming / 2**30:.1f} GiB needed, {free / 2**30:.1f} GiB free"
        return told + " in memory" * wanted["in_memory"] if coming > free else ""

    def _make_room(self, wanted: Resource, path: Path) -> None:
        """Free space: remove replaced files, then other entries of the shelf, oldest first."""
        for outdated in self._coming(wanted):
            outdated.unlink(missing_ok=True)
        shelf = self.at(wanted["shelf"])
        others = [each for each in shelf.iterdir() if each not in (path, *path.parents)]
        for old in sorted(others, key=lambda each: each.lstat().st_mtime):
            if self._lacking(wanted):
                shutil.rmtree(old)
        if lacking := self._lacking(wanted):
            raise Failed(f"no space: {lacking}")

    def differs_files(self, wanted: Resource) -> Changes:
        path = self.at(wanted["path"])
        found = look_at(path)
        if found is None:
            return {"create": None}
        if stat.S_ISDIR(found.st_mode):
            raise Failed("is a directory")
        if not stat.S_ISREG(found.st_mode):
            return {"content": "not a regular file"}
        same = self._sha256(path, found, wanted) == digest_of(wanted)
        return ({} if same else {"content": None}) | self._ownership(wanted, found)

    def apply_files(self, wanted: Resource, changes: Changes) -> None:
        path = self.at(wanted["path"])
        uid, gid = self._owner(wanted)
        mode = int(wanted["mode"], 8)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not {"create", "content"} & set(changes):
            os.chown(path, uid, gid)
            path.chmod(mode)
        elif "content" in wanted:
            replace(path, [wanted["content"].encode()], uid, gid, mode)
        else:
            replace(path, verified(download(wanted["url"]), wanted["sha256"]), uid, gid, mode)
            self.remember_hash(wanted)

    def _sha256(self, path: Path, found: os.stat_result, wanted: Resource) -> str:
        """The file's hash; a download that was verified and not touched since is not read."""
        known = self.memory.get(identify("files", wanted))
        if "url" in wanted and known and known["stamp"] == stamp(found):
            return str(known["sha256"])
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def remember_hash(self, wanted: Resource) -> None:
        """The file is what it should be: it need not be read again until it changes."""
        note = {"stamp": stamp(self.at(wanted["path"]).lstat()), "sha256": wanted["sha256"]}
        if self.memory.get(identify("files", wanted)) != note:
            self.memory.note(identify("files", wanted), note)

    def _owner(self, wanted: Resource) -> tuple[int, int]:
        try:
            return pwd.getpwnam(wanted["owner"]).pw_uid, grp.getgrnam(wanted["group"]).gr_gid
        except KeyError as error:
            raise Failed(f"owner or group does not exist: {error.args[0]}") from None

    def _ownership(self, wanted: Resource, found: os.stat_result) -> Changes:
        changes: Changes = {}
        try:
            right = (found.st_uid, found.st_gid) == self._owner(wanted)
        except Failed:  # the owner is yet to be made
            right = False
        if not right:
            changes["owner"] = f"{user_name(found.st_uid)}:{group_name(found.st_gid)}"
        mode = stat.S_IMODE(found.st_mode)
        if mode != int(wanted["mode"], 8):
            changes["mode"] = f"{mode:04o}"
        return changes

    # Units

    def differs_units(self, unit: Resource) -> Changes:
        wants_running = unit["state"] == "running"
        state = active_state(unit["name"])
        is_running = state in ("active", "activating", "reloading")
        # A unit whose own conditions keep it from running here is as it should be.
        declined = state == "inactive" and not conditions_hold(unit["name"])
        if not wants_running:
            return {"stop": state} if is_running else {}
        started_with = self.memory.get(identify("units", unit))
        if started_with is not None and (is_running or declined):
            return {} if started_with == unit["revision"] else {"restart": state}
        return {"restart" if is_running else "start": state}

    def apply_units(self, unit: Resource, changes: Changes) -> None:
        name = unit["name"]
        if not self.reloaded:
            command(["systemctl", "daemon-reload"])
            self.reloaded = True
        if "stop" in changes:
            command(["systemctl", "stop", name])
            return
        # A unit that failed too often is refused until it is forgiven.
        subprocess.run(
            ["systemctl", "reset-failed", name],
            check=False,
            capture_output=True,
            timeout=COMMAND_TIMEOUT_S,
        )
        try:
            command(["systemctl", "restart", name])
        except Failed as failed:
            raise Failed(f"{name} does not start: {last_words(name) or failed}") from None
        self.memory.note(identify("units", unit), unit["revision"])

    # Dependence

    def needs(self, kind: str, resource: Resource) -> list[str]:
        """What has to have succeeded before: the owner, the directories above, a unit's files."""
        if kind == "units":
            return [f"file:{path}" for path in resource["restart_on"]]
        if kind in ("sysctls", "links", "users"):
            return []
        parents = [f"directory:{parent}" for parent in Path(resource["path"]).parents]
        return [f"user:{resource['owner']}", *parents]


def resources(state: dict[str, Any]) -> Iterator[tuple[str, Resource]]:
    for kind in ORDER:
        for resource in state[kind]:
            yield kind, resource


def look(node: ThisNode, state: dict[str, Any]) -> list[dict[str, Any]]:
    """For each resource what differs; changes nothing."""
    report = []
    for kind, resource in resources(state):
        entry: dict[str, Any] = {"id": identify(kind, resource), "changes": []}
        with reported(entry):
            not_stopped()
            changes = node.differs(kind, resource)
            entry["changes"] = list(changes)
            entry["found"] = {key: value for key, value in changes.items() if value is not None}
            if kind == "files" and "content" in changes and not resource["secret"]:
                entry["current"] = shown_text(node.at(resource["path"]))
                if entry["current"] is None:
                    entry["found"].setdefault("content", "not text, or too long to show")
            if kind == "links" and "file" in changes:
                entry["current"] = shown_text(node.at(resource["file"]))
        report.append(entry)
    return report


def apply(node: ThisNode, state: dict[str, Any]) -> list[dict[str, Any]]:
    """Fix what differs. A failure is reported and stops only what depends on it."""
    report = []
    broken: set[str] = set()
    for kind, resource in resources(state):
        entry: dict[str, Any] = {"id": identify(kind, resource), "changes": []}
        if STOP.reason:
            entry |= {"status": "skipped", "error": f"not reached: {STOP.reason}"}
        elif missing := broken.intersection(node.needs(kind, resource)):
            entry |= {"status": "skipped", "error": f"needs {', '.join(sorted(missing))}"}
        else:
            entry["status"] = "failed"
            with reported(entry):
                changes = node.differs(kind, resource)
                entry["changes"] = list(changes)
                if changes:
                    node.apply(kind, resource, changes)
                elif "url" in resource:
                    node.remember_hash(resource)  # it was read: of an earlier boot, on a disk
                done = "changed" if entry["changes"] else "unchanged"
                entry["status"] = "pending" if ABSENT in changes else done
        if "error" in entry:
            broken.add(entry["id"])
        report.append(entry)
    return report


@contextlib.contextmanager
def reported(entry: dict[str, Any]) -> Iterator[None]:
    """An error of one resource becomes its entry's `error`; the others still run."""
    try:
        STOP.armed = True
        yield
    except (Failed, OSError, subprocess.SubprocessError, Stopped) as error:
        entry["error"] = str(error)
    except Exception as bug:
        entry["error"] = f"{type(bug).__name__}: {bug}"
    finally:
        STOP.armed = False


def not_stopped() -> None:
    """Raises Failed where the run has ended already."""
    if STOP.reason:
        raise Failed(f"not reached: {STOP.reason}")


def look_at(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except FileNotFoundError:
        return None


def stamp(found: os.stat_result) -> list[int]:
    return [found.st_ino, found.st_size, found.st_mtime_ns]


def digest_of(wanted: Resource) -> str:
    if "content" in wanted:
        return hashlib.sha256(wanted["content"].encode()).hexdigest()
    return str(wanted["sha256"])


def available_memory() -> int:
    """Bytes that could be used without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


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


def shown_text(path: Path) -> str | None:
    """The file's text for a difference; None where it is long or no text."""
    if not path.is_file() or path.is_symlink() or path.stat().st_size > SHOWN_BYTES:
        return None
    try:
        return path.read_text()
    except UnicodeDecodeError:
        return None


def replace(path: Path, chunks: Iterable[bytes], uid: int, gid: int, mode: int) -> None:
    """Write beside, with owner and mode, then rename: readers see the old file or the new one."""
    new = path.with_name(f".{path.name}.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    try:
        with os.fdopen(os.open(new, flags, 0o600), "wb") as file:
            os.fchmod(file.fileno(), 0o600)  # a leftover may be more open
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fchown(file.fileno(), uid, gid)
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def download(url: str) -> Iterator[bytes]:
    """A file's bytes; a cut connection is resumed at the same place."""
    # No proxy: the control node is on the node's own network.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    have = 0
    for pause in (*DOWNLOAD_PAUSES, None):
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        try:
            with opener.open(request, timeout=DOWNLOAD_TIMEOUT_S) as answer:
                if have and answer.status != 206:
                    raise Failed(f"{url}: the server does not resume after {have} bytes")
                size = have + int(answer.headers["Content-Length"])
                while chunk := answer.read(CHUNK):
                    have += len(chunk)
                    yield chunk
            if have >= size:
                return
            why: object = f"the connection ended after {have} of {size} bytes"
        except urllib.error.HTTPError as error:
            raise Failed(f"{url}: {error}") from None
        except (OSError, http.client.HTTPException) as error:
            why = error
        if pause is None:
            raise Failed(f"{url}: {why}")
        time.sleep(pause)


def verified(chunks: Iterable[bytes], sha256: str) -> Iterator[bytes]:
    """Pass ``chunks`` on; raise Failed at their end where they are not what was asked for."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
        yield chunk
    if digest.hexdigest() != sha256:
        raise Failed(f"the download's sha256 is {digest.hexdigest()}, not {sha256}")


def command(argv: list[str]) -> str:
    done = subprocess.run(
        argv, check=False, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise Failed(f"{' '.join(argv)}: exit code {done.returncode}: {said}")
    return done.stdout


def active_state(name: str) -> str:
    return command(["systemctl", "show", name, "--property=ActiveState", "--value"]).strip()


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


@contextlib.contextmanager
def alone(root: Path) -> Iterator[None]:
    """Hold the lock: a lost connection can leave an earlier agent running."""
    path = root / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + LOCK_WAIT_S
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    sys.exit(f"an earlier run is still active on this node ({path} is locked)")
            time.sleep(0.2)
        yield


def main() -> None:
    request = json.load(sys.stdin)
    root = Path(request["root"])
    STOP.listen(request.get("limit_s"))
    if request["verb"] == "apply":
        with alone(root):
            report = apply(ThisNode(root), request["state"])
    else:
        report = look(ThisNode(root), request["state"])
    json.dump({"facts": facts(), "resources": report}, sys.stdout)


if __name__ == "__main__":
    main()
