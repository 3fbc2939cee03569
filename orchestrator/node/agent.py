"""The node's side of configuration: compares a node with its desired state, and makes it so.

This file is sent to the node with the parts of agent_program.py and run there by root: the standard
library only, nothing else of this package. It reads one JSON request from stdin,
{"verb": "look" | "apply", "root": "/", "limit_s": 100, "state": {...}} (state.py says what a state
is), and writes one JSON report to stdout, also where a resource fails, time is up, or it is told to
stop (SIGTERM).

Nothing here depends on having run to its end before: a file is replaced whole, and a unit is
restarted until the revision of its configuration has been noted. What the state asked for is noted
before it is made; what a later state leaves out has left the profile, and is removed.

Accounts on the node are not trusted. Files are reached from one directory's descriptor to the next
(FileTree): never through a link, and never through a directory that another account can write.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import hashlib
import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from orchestrator.node.agent_accounts import Accounts
from orchestrator.node.agent_base import (
    Failed,
    FileTree,
    Unsafe,
    command,
    group_name,
    look_at,
    must_be_roots,
    regular,
    user_name,
)
from orchestrator.node.agent_fetch import download, verified
from orchestrator.node.agent_leaving import Leaving, Memory, Resource, identify, resources
from orchestrator.node.agent_system import (
    active_state,
    addresses_of,
    available_memory,
    conditions_hold,
    facts,
    forgive,
    last_words,
    link,
    reload_links,
    setting,
    sysctl,
)

#: What differs -> what is there now, where that says more.
Changes = dict[str, Any]

#: The change that only time makes: a link whose interface is not there (yet).
ABSENT = "absent"
#: A directory above can be changed by another account: nothing is done below it.
UNSAFE = "unsafe"
LOCK = "run/orchestrate/agent.lock"
LOCK_WAIT_S = 20.0
SHOWN_BYTES = 1 << 16  # a longer file is not shown in differences


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


class ThisNode:
    """The node below ``root``: for each kind of resource, what differs, and how to fix it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tree = FileTree(root)
        self.accounts = Accounts(self.tree)
        self.memory = Memory(self.tree)
        self.leaving = Leaving(root, self.tree, self.memory, self.accounts)
        self.reloaded = False

    def differs(self, kind: str, resource: Resource) -> Changes:
        try:
            found: Changes = getattr(self, f"differs_{kind}")(resource)
        except Unsafe as unsafe:  # a directory above may be mended before this is made
            found = {UNSAFE: str(unsafe)}
        return found

    def apply(self, kind: str, resource: Resource, changes: Changes) -> None:
        if UNSAFE in changes:
            raise Failed(changes[UNSAFE])
        getattr(self, f"apply_{kind}")(resource, changes)

    # Kernel settings: the next boot forgets them, as it does everything here.

    def differs_sysctls(self, wanted: Resource) -> Changes:
        found = sysctl(self.root, wanted["name"])
        return {} if found.split() == wanted["value"].split() else {"value": found}

    def apply_sysctls(self, wanted: Resource, changes: Changes) -> None:
        try:
            setting(self.root, wanted["name"]).write_text(wanted["value"])
        except OSError as error:
            raise Failed(f"the kernel rejects {wanted['value']!r}: {error}") from None
        if (found := sysctl(self.root, wanted["name"])).split() != wanted["value"].split():
            raise Failed(f"the kernel set {found!r} instead of {wanted['value']!r}")

    # Links: systemd-networkd's file for the time after, and the kernel's own state for now

    def differs_links(self, wanted: Resource) -> Changes:
        changes: Changes = {}
        if not self._holds(wanted["file"], wanted["content"].encode()):
            changes["file"] = None
        elif self.memory.get(identify("links", wanted)):
            changes["reload"] = None
        found = link(wanted["name"])
        if found is None:
            return changes | {ABSENT: None}
        addresses = addresses_of(found)
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
            self.tree.write(wanted["file"], [wanted["content"].encode()], 0, 0, 0o644)
        if {"file", "reload"} & set(changes):
            reload_links(self.root)
            self.memory.note(note, None)
        if ABSENT in changes:
            return  # networkd sets it up when it appears
        for address in wanted["addresses"]:
            command(["ip", "address", "replace", address, "dev", name])
        command(["ip", "link", "set", name, "up"])

    def _holds(self, path: str, content: bytes) -> bool:
        try:
            return self.tree.read(path, len(content) + 1) == content
        except Unsafe:
            raise
        except (FileNotFoundError, Failed):
            return False

    # Users

    def differs_users(self, user: Resource) -> Changes:
        return self.accounts.differs(user)

    def apply_users(self, user: Resource, changes: Changes) -> None:
        self.accounts.apply(user, changes)

    # Directories and files

    def differs_directories(self, wanted: Resource) -> Changes:
        found = self.tree.look(wanted["path"])
        changes: Changes = {}
        if stray := self._stray(wanted):
            changes["stray"] = ", ".join(sorted(Path(path).name for path in stray))
        if lacking := self._lacking(wanted):
            changes["room"] = lacking
        if found is None:
            return {"create": None} | changes
        if not stat.S_ISDIR(found.st_mode):
            raise Failed("exists and is not a directory")
        return changes | self._ownership(wanted, found)

    def apply_directories(self, wanted: Resource, changes: Changes) -> None:
        with self.tree.directory(wanted["path"], make=True) as directory:
            os.fchown(directory, *self._owner(wanted))
            os.fchmod(directory, int(wanted["mode"], 8))
        for stray in self._stray(wanted):
            self.tree.remove(stray)
        if "room" in changes:
            self._make_room(wanted)

    def _stray(self, wanted: Resource) -> list[str]:
        """Paths of files outside the declared list, if there is one."""
        held = {f"{wanted['path']}/{name}" for name, _ in wanted["holds"]}
        if not held:
            return []
        try:
            with self.tree.directory(wanted["path"]) as top:
                found = [
                    os.path.normpath(f"{wanted['path']}/{below}/{name}")
                    for below, _, names, _ in os.fwalk(".", dir_fd=top)
                    for name in names
                ]
        except FileNotFoundError:
            return []
        return [path for path in found if path not in held]

    def _coming(self, wanted: Resource) -> dict[str, int]:
        """The files that are not there as they should be, and their sizes."""
        held = {f"{wanted['path']}/{name}": size for name, size in wanted["holds"]}
        return {
            path: size
            for path, size in held.items()
            if (there := self.tree.look(path)) is None or there.st_size != size
        }

    def _lacking(self, wanted: Resource) -> str:
        """The missing space for files still to come, in words; empty if there is enough."""
        coming = sum(self._coming(wanted).values())
        disk = self._disk(wanted["path"])
        free = disk.f_bavail * disk.f_frsize
        if wanted["in_memory"]:
            free = min(free, available_memory())
        told = f"{coming / 2**30:.1f} GiB needed, {free / 2**30:.1f} GiB free"
        return told + " in memory" * wanted["in_memory"] if coming > free else ""

    def _disk(self, path: str) -> os.statvfs_result:
        """The file system of a path that may not be there yet."""
        for each in (path, *map(str, PurePosixPath(path).parents)):
            with contextlib.suppress(FileNotFoundError), self.tree.directory(each) as directory:
                return os.fstatvfs(directory)
        raise Failed("the root is gone")

    def _make_room(self, wanted: Resource) -> None:
        """Free space: remove replaced files, then other entries of the shelf, oldest first."""
        for outdated in self._coming(wanted):
            self.tree.remove(outdated)
        own = PurePosixPath(wanted["path"]).relative_to(wanted["shelf"]).parts[0]
        with self.tree.directory(wanted["shelf"]) as shelf:
            must_be_roots(shelf, PurePosixPath(wanted["shelf"]))
            others = {
                name: os.stat(name, dir_fd=shelf, follow_symlinks=False).st_mtime
                for name in os.listdir(shelf)  # noqa: PTH208 (a descriptor)
                if name != own
            }
            for old in sorted(others, key=others.__getitem__):
                if self._lacking(wanted):
                    shutil.rmtree(old, dir_fd=shelf)
        if lacking := self._lacking(wanted):
            raise Failed(f"no space: {lacking}")

    def differs_files(self, wanted: Resource) -> Changes:
        try:
            with self.tree.parent(wanted["path"]) as (above, name):
                found = look_at(above, name)
                if found is None:
                    return {"create": None}
                if stat.S_ISDIR(found.st_mode):
                    raise Failed("is a directory")
                if not stat.S_ISREG(found.st_mode):
                    return {"content": "not a regular file"}
                if found.st_nlink > 1:  # its owner and mode would be another file's, too
                    return {"content": f"{found.st_nlink} hard links"}
                same = self._sha256(above, name, wanted) == digest_of(wanted)
        except FileNotFoundError:
            return {"create": None}
        return ({} if same else {"content": None}) | self._ownership(wanted, found)

    def apply_files(self, wanted: Resource, changes: Changes) -> None:
        uid, gid = self._owner(wanted)
        mode = int(wanted["mode"], 8)
        if not {"create", "content"} & set(changes):
            with self.tree.parent(wanted["path"]) as (above, name), regular(above, name) as file:
                os.fchown(file.fileno(), uid, gid)
                os.fchmod(file.fileno(), mode)
        elif "content" in wanted:
            self.tree.write(wanted["path"], [wanted["content"].encode()], uid, gid, mode)
        else:
            chunks = verified(download(wanted["url"]), wanted)
            self.tree.write(wanted["path"], chunks, uid, gid, mode)
            self.remember_hash(wanted)

    def _sha256(self, above: int, name: str, wanted: Resource) -> str:
        """The file's hash; a download that was verified and not touched since is not read."""
        known = self.memory.get(identify("files", wanted))
        with regular(above, name) as file:
            if "url" in wanted and known and known["stamp"] == stamp(os.fstat(file.fileno())):
                return str(known["sha256"])
            return hashlib.file_digest(file, "sha256").hexdigest()

    def remember_hash(self, wanted: Resource) -> None:
        """The file is what it should be: it need not be read again until it changes."""
        found = self.tree.look(wanted["path"])
        note = {"stamp": stamp(found), "sha256": wanted["sha256"]} if found else None
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
        forgive(name)  # one that failed too often is refused until then
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


def look(node: ThisNode, state: dict[str, Any]) -> list[dict[str, Any]]:
    """For each resource what differs, after what has left the profile; changes nothing."""
    report = []
    for name, undo in node.leaving.leavers(state).items():
        entry: dict[str, Any] = {"id": name, "left": True, "changes": []}
        with reported(entry):
            not_stopped()
            entry["found"] = node.leaving.differs(undo)
            entry["changes"] = list(entry["found"])
        if entry["changes"] or "error" in entry:
            report.append(entry)
    for kind, resource in resources(state):
        entry = {"id": identify(kind, resource), "changes": []}
        with reported(entry):
            not_stopped()
            changes = node.differs(kind, resource)
            entry["changes"] = list(changes)
            entry["found"] = {key: value for key, value in changes.items() if value is not None}
            if kind == "files" and "content" in changes and not resource["secret"]:
                entry["current"] = shown_text(node.tree, resource["path"])
                if entry["current"] is None:
                    entry["found"].setdefault("content", "not text, or too long to show")
            if kind == "links" and "file" in changes:
                entry["current"] = shown_text(node.tree, resource["file"])
        report.append(entry)
    return report


def apply(node: ThisNode, state: dict[str, Any]) -> list[dict[str, Any]]:
    """Fix what differs. A failure is reported and stops only what depends on it."""
    node.leaving.expect(state)
    report = removed(node, state)
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


def removed(node: ThisNode, state: dict[str, Any]) -> list[dict[str, Any]]:
    """Remove what has left the profile. What cannot be removed is tried again the next time."""
    report = []
    for name, undo in node.leaving.leavers(state).items():
        entry: dict[str, Any] = {"id": name, "left": True, "changes": [], "status": "failed"}
        with reported(entry):
            not_stopped()
            changes = node.leaving.differs(undo)
            entry["changes"] = list(changes)
            if changes:
                node.leaving.remove(undo)
            node.leaving.forget(name)
            entry["status"] = "changed" if changes else "unchanged"
        if entry["status"] != "unchanged":
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


def stamp(found: os.stat_result) -> list[int]:
    return [found.st_ino, found.st_size, found.st_mtime_ns]


def digest_of(wanted: Resource) -> str:
    if "content" in wanted:
        return hashlib.sha256(wanted["content"].encode()).hexdigest()
    return str(wanted["sha256"])


def shown_text(tree: FileTree, path: str) -> str | None:
    """The file's text for a difference; None where it is long or no text."""
    try:
        content = tree.read(path, SHOWN_BYTES + 1)
        return content.decode() if len(content) <= SHOWN_BYTES else None
    except (OSError, Failed, UnicodeDecodeError):
        return None


@contextlib.contextmanager
def alone(root: Path) -> Iterator[None]:
    """Hold the lock: a lost connection can leave an earlier agent running."""
    deadline = time.monotonic() + LOCK_WAIT_S
    with FileTree(root).parent(LOCK, make=True) as (above, name):
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        file = os.open(name, flags, 0o600, dir_fd=above)
    try:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    sys.exit(f"an earlier run is still active on this node (/{LOCK} is locked)")
            time.sleep(0.2)
        yield
    finally:
        os.close(file)


def main() -> None:
    request = json.load(sys.stdin)
    root = Path(request["root"])
    STOP.listen(request.get("limit_s"))
    try:
        if request["verb"] == "apply":
            with alone(root):
                report = apply(ThisNode(root), request["state"])
        else:
            report = look(ThisNode(root), request["state"])
    except Failed as failed:  # its own notes cannot be written
        sys.exit(str(failed))
    json.dump({"facts": facts(), "resources": report}, sys.stdout)


if __name__ == "__main__":
    main()
