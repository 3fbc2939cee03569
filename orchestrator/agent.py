"""The node's side of configuration: compares a node with its desired state, and makes it so.

This file is sent to the node and run there by root: the standard library only, nothing else of
this package. It reads one JSON request from stdin, {"verb": "look" | "apply", "root": "/",
"state": {...}} (state.py says what a state is), and writes one JSON report to stdout.

Nothing here depends on having run to its end before: a file is replaced whole, and a unit is
restarted until the revision of its configuration has been noted.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import hashlib
import json
import os
import platform
import pwd
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

#: Users come before what they own, files before the units that read them.
ORDER = ("users", "directories", "files", "units")
#: What this agent did since boot, below the root.
MEMORY = "run/orchestrate/agent.json"
LOCK = "run/orchestrate/agent.lock"
LOCK_WAIT_S = 20.0
COMMAND_TIMEOUT_S = 180.0
DOWNLOAD_TIMEOUT_S = 60.0  # without a byte
CHUNK = 1 << 20
SHOWN_BYTES = 1 << 16  # a longer file is not shown in differences


class Failed(Exception):
    """A resource cannot be made as desired; the text is for people."""


def identify(kind: str, resource: Resource) -> str:
    """A resource's name in reports: kind and name or path."""
    singular = {"users": "user", "directories": "directory", "files": "file", "units": "unit"}
    return f"{singular[kind]}:{resource.get('path') or resource['name']}"


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


class Node:
    """The node below ``root``: for each kind, what differs, and how it is put right."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.memory = Memory(root)
        self.reloaded = False

    def at(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    # Users

    def differs_users(self, user: Resource) -> list[str]:
        try:
            entry = pwd.getpwnam(user["name"])
        except KeyError:
            return ["create"]
        found = {"uid": entry.pw_uid, "shell": entry.pw_shell}
        changes = [key for key in found if found[key] != user[key]]
        return changes + (["groups"] if self._missing_groups(user) else [])

    def apply_users(self, user: Resource, changes: list[str]) -> None:
        uid, shell = str(user["uid"]), user["shell"]
        argv = ["usermod", "--uid", uid, "--shell", shell]
        if "create" in changes:
            argv = ["useradd", "--create-home", "--user-group", "--uid", uid, "--shell", shell]
        if groups := self._missing_groups(user):
            argv += ["--groups", ",".join(groups)] + ([] if "create" in changes else ["--append"])
        command([*argv, user["name"]])

    def _missing_groups(self, user: Resource) -> list[str]:
        """The user's groups that this node has and the user is not yet in."""
        return [
            group.gr_name
            for group in grp.getgrall()
            if group.gr_name in user["groups"] and user["name"] not in group.gr_mem
        ]

    # Directories and files

    def differs_directories(self, wanted: Resource) -> list[str]:
        found = look_at(self.at(wanted["path"]))
        if found is None:
            return ["create"]
        if not stat.S_ISDIR(found.st_mode):
            raise Failed("something else than a directory is there")
        return self._ownership(wanted, found)

    def apply_directories(self, wanted: Resource, changes: list[str]) -> None:
        path = self.at(wanted["path"])
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chown(path, *self._owner(wanted))
        path.chmod(int(wanted["mode"], 8))

    def differs_files(self, wanted: Resource) -> list[str]:
        path = self.at(wanted["path"])
        found = look_at(path)
        if found is None:
            return ["create"]
        if stat.S_ISDIR(found.st_mode):
            raise Failed("a directory is there")
        if not stat.S_ISREG(found.st_mode):
            return ["content"]
        same = self._sha256(path, found, wanted) == digest_of(wanted)
        return ([] if same else ["content"]) + self._ownership(wanted, found)

    def apply_files(self, wanted: Resource, changes: list[str]) -> None:
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
            self._remember_hash(path, wanted)

    def _sha256(self, path: Path, found: os.stat_result, wanted: Resource) -> str:
        """The file's hash; a download that was verified and not touched since is not read."""
        known = self.memory.get(identify("files", wanted))
        if "url" in wanted and known and known["stamp"] == stamp(found):
            return str(known["sha256"])
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _remember_hash(self, path: Path, wanted: Resource) -> None:
        note = {"stamp": stamp(path.lstat()), "sha256": wanted["sha256"]}
        self.memory.note(identify("files", wanted), note)

    def _owner(self, wanted: Resource) -> tuple[int, int]:
        try:
            return pwd.getpwnam(wanted["owner"]).pw_uid, grp.getgrnam(wanted["group"]).gr_gid
        except KeyError as error:
            raise Failed(f"owner or group does not exist: {error.args[0]}") from None

    def _ownership(self, wanted: Resource, found: os.stat_result) -> list[str]:
        try:
            right = (found.st_uid, found.st_gid) == self._owner(wanted)
        except Failed:  # the owner is yet to be made
            right = False
        same_mode = stat.S_IMODE(found.st_mode) == int(wanted["mode"], 8)
        return ([] if right else ["owner"]) + ([] if same_mode else ["mode"])

    # Units

    def differs_units(self, unit: Resource) -> list[str]:
        wants_running = unit["state"] == "running"
        state = active_state(unit["name"])
        is_running = state in ("active", "activating", "reloading")
        # A unit whose own conditions keep it from running here is as it should be.
        declined = state == "inactive" and not conditions_hold(unit["name"])
        if not wants_running:
            return ["stop"] if is_running else []
        started_with = self.memory.get(identify("units", unit))
        if started_with is not None and (is_running or declined):
            return [] if started_with == unit["revision"] else ["restart"]
        return ["restart" if is_running else "start"]

    def apply_units(self, unit: Resource, changes: list[str]) -> None:
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
        if kind == "users":
            return []
        parents = [f"directory:{parent}" for parent in Path(resource["path"]).parents]
        return [f"user:{resource['owner']}", *parents]


def resources(state: dict[str, Any]) -> Iterator[tuple[str, Resource]]:
    for kind in ORDER:
        for resource in state[kind]:
            yield kind, resource


def look(node: Node, state: dict[str, Any]) -> list[dict[str, Any]]:
    """For each resource what differs; changes nothing."""
    report = []
    for kind, resource in resources(state):
        entry: dict[str, Any] = {"id": identify(kind, resource), "changes": []}
        try:
            entry["changes"] = getattr(node, f"differs_{kind}")(resource)
            if "content" in entry["changes"] and "content" in resource and not resource["secret"]:
                entry["current"] = shown_text(node.at(resource["path"]))
        except (Failed, OSError, subprocess.SubprocessError) as error:
            entry["error"] = str(error)
        report.append(entry)
    return report


def apply(node: Node, state: dict[str, Any]) -> list[dict[str, Any]]:
    """Put right what differs. A failure is reported and stops only what depends on it."""
    report = []
    broken: set[str] = set()
    for kind, resource in resources(state):
        entry: dict[str, Any] = {"id": identify(kind, resource), "changes": []}
        if missing := broken.intersection(node.needs(kind, resource)):
            entry |= {"status": "skipped", "error": f"needs {', '.join(sorted(missing))}"}
        else:
            try:
                entry["changes"] = getattr(node, f"differs_{kind}")(resource)
                if entry["changes"]:
                    getattr(node, f"apply_{kind}")(resource, entry["changes"])
                entry["status"] = "changed" if entry["changes"] else "unchanged"
            except (Failed, OSError, subprocess.SubprocessError) as error:
                entry |= {"status": "failed", "error": str(error)}
        if "error" in entry:
            broken.add(entry["id"])
        report.append(entry)
    return report


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
    # No proxy: the control node is on the node's own network.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=DOWNLOAD_TIMEOUT_S) as answer:
            while chunk := answer.read(CHUNK):
                yield chunk
    except (urllib.error.URLError, OSError) as error:
        raise Failed(f"{url}: {error}") from None


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
    """Hold the lock: a lost connection can leave an earlier agent at work."""
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
                    sys.exit(f"an earlier run is still at work on this node ({path} is locked)")
            time.sleep(0.2)
        yield


def main() -> None:
    request = json.load(sys.stdin)
    root = Path(request["root"])
    if request["verb"] == "apply":
        with alone(root):
            report = apply(Node(root), request["state"])
    else:
        report = look(Node(root), request["state"])
    json.dump({"facts": facts(), "resources": report}, sys.stdout)


if __name__ == "__main__":
    main()
