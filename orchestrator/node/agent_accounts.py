"""Accounts on a node: made, and taken away when they have left the profile.

Runs on a node as a part of the agent (agent.py): the standard library and agent_base only.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from orchestrator.node.agent_base import Failed, FileTree, command, look_at

#: Accounts below are the image's own.
FIRST_UID = 1000
END_TRIES, END_PAUSE = 50, 0.1  # an account's processes are killed until there are none


class Accounts:
    """The accounts of the node, and their homes below ``tree``."""

    def __init__(self, tree: FileTree) -> None:
        self.tree = tree

    def differs(self, user: dict[str, Any]) -> dict[str, Any]:
        try:
            entry = pwd.getpwnam(user["name"])
        except KeyError:
            return {"create": None}
        if entry.pw_uid < FIRST_UID:
            raise Failed(f"is an account of the image (uid {entry.pw_uid}): choose another name")
        found = {"uid": entry.pw_uid, "shell": entry.pw_shell}
        changes: dict[str, Any] = {key: value for key, value in found.items() if value != user[key]}
        if missing := self._missing_groups(user):
            changes["groups"] = f"not in {', '.join(missing)}"
        if wrong := self._wrong_home(entry):
            changes["home"] = wrong
        return changes

    def apply(self, user: dict[str, Any], changes: dict[str, Any]) -> None:
        uid, shell = str(user["uid"]), user["shell"]
        argv = ["usermod", "--uid", uid, "--shell", shell]
        if "create" in changes:
            argv = ["useradd", "--create-home", "--user-group", "--uid", uid, "--shell", shell]
        if groups := self._missing_groups(user):
            argv += ["--groups", ",".join(groups)] + ([] if "create" in changes else ["--append"])
        if changes.keys() - {"home"}:
            command([*argv, user["name"]])
        entry = pwd.getpwnam(user["name"])
        if self._wrong_home(entry):  # a useradd that was killed, or one that found a home
            self._make_home(entry)

    def _wrong_home(self, entry: pwd.struct_passwd) -> str:
        """What is wrong with an account's home, in words."""
        home = self.tree.look(entry.pw_dir)
        if home is not None and home.st_uid == entry.pw_uid:
            return ""
        return "missing" if home is None else f"of uid {home.st_uid}"

    def _make_home(self, entry: pwd.struct_passwd) -> None:
        """A home from /etc/skel, whole when it appears; one that is there is given to its owner."""
        with self.tree.parent(entry.pw_dir, make=True) as (above, name):
            if look_at(above, name) is None:
                new = f".{name}.new"
                if look_at(above, new) is not None:  # of a run that was killed
                    shutil.rmtree(new, dir_fd=above)
                shutil.copytree("/etc/skel", f"/proc/self/fd/{above}/{new}", symlinks=True)
                # From below: what the account owns already is not entered any more.
                for _, below, names, at in os.fwalk(new, topdown=False, dir_fd=above):
                    for each in (*names, *below):
                        os.chown(each, *own(entry), dir_fd=at, follow_symlinks=False)
                os.chown(new, *own(entry), dir_fd=above, follow_symlinks=False)
                os.rename(new, name, src_dir_fd=above, dst_dir_fd=above)
        with self.tree.directory(entry.pw_dir) as home:
            os.fchown(home, *own(entry))

    def _missing_groups(self, user: dict[str, Any]) -> list[str]:
        """The user's groups that this node has and the user is not yet in."""
        return [
            group.gr_name
            for group in grp.getgrall()
            if group.gr_name in user["groups"] and user["name"] not in group.gr_mem
        ]

    def left(self, undo: dict[str, Any]) -> str | None:
        try:
            uid = pwd.getpwnam(undo["name"]).pw_uid
        except KeyError:
            return None
        return f"uid {uid}" if uid >= FIRST_UID else None

    def remove(self, undo: dict[str, Any]) -> None:
        """No login, then no process, then no account. Its home stays, as root's."""
        entry = pwd.getpwnam(undo["name"])
        command(["usermod", "--lock", "--expiredate", "1", undo["name"]])
        end_processes(entry.pw_uid)
        with contextlib.suppress(FileNotFoundError), self.tree.directory(entry.pw_dir) as home:
            if os.fstat(home).st_uid == entry.pw_uid:
                os.fchown(home, 0, 0)
                os.fchmod(home, 0o700)
        command(["userdel", undo["name"]])
        with contextlib.suppress(KeyError):
            if grp.getgrnam(undo["name"]).gr_gid >= FIRST_UID:
                command(["groupdel", undo["name"]])


def own(entry: pwd.struct_passwd) -> tuple[int, int]:
    return entry.pw_uid, entry.pw_gid


def end_processes(uid: int) -> None:
    """Kill all that runs as an account. Raises Failed where it goes on."""
    for _ in range(END_TRIES):
        found = processes_of(uid)
        if not found:
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                handle = os.pidfd_open(pid)
                try:
                    if runs_as(uid, pid):  # still the same process
                        signal.pidfd_send_signal(handle, signal.SIGKILL)
                finally:
                    os.close(handle)
        time.sleep(END_PAUSE)
    raise Failed(f"processes of uid {uid} do not end: {', '.join(map(str, found))}")


def processes_of(uid: int) -> list[int]:
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [pid for pid in pids if runs_as(uid, pid)]


def runs_as(uid: int, pid: int) -> bool:
    """Whether a process has the account's rights, in any of its four user ids."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has ended
        return False
    said = dict(line.split(":", 1) for line in lines if ":" in line)
    return str(uid) in said["Uid"].split() and said["State"].split()[0] != "Z"
