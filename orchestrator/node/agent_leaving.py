"""What an earlier state asked for, and what of it has left the profile and is to be removed.

Runs on a node as a part of the agent (agent.py): the standard library and the other parts only.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.node.agent_accounts import Accounts
from orchestrator.node.agent_base import Failed, FileTree, command
from orchestrator.node.agent_system import (
    active_state,
    addresses_of,
    forgive,
    link,
    reload_links,
    setting,
    sysctl,
)

Resource = dict[str, Any]

#: Users come before what they own, files before the units that read them. By kind, its singular.
ORDER = {
    "sysctls": "sysctl",
    "links": "link",
    "users": "user",
    "directories": "directory",
    "files": "file",
    "units": "unit",
}
#: What this agent did since boot, below the root.
MEMORY = "run/orchestrate/agent.json"
#: In MEMORY: what has been asked for, and what it takes to undo that.
PLACED = "placed"
#: What has left the profile is to be removed.
REMOVE = "remove"


def identify(kind: str, resource: Resource) -> str:
    """A resource's name in reports: kind and name or path."""
    return f"{ORDER[kind]}:{resource.get('name') or resource['path']}"


def resources(state: dict[str, Any]) -> Iterator[tuple[str, Resource]]:
    for kind in ORDER:
        for resource in state[kind]:
            yield kind, resource


class Memory:
    """What was asked for, the configuration that each unit was started with, and which big files
    were verified."""

    def __init__(self, tree: FileTree) -> None:
        self.tree = tree
        try:
            self.known: dict[str, Any] = json.loads(tree.read(MEMORY))
        except (OSError, ValueError, Failed):
            self.known = {}

    def get(self, key: str) -> Any:
        return self.known.get(key)

    def note(self, key: str, value: Any) -> None:
        if value is None:
            self.known.pop(key, None)
        else:
            self.known[key] = value
        self.tree.write(MEMORY, [json.dumps(self.known).encode()], 0, 0, 0o600)


class Leaving:
    """The notes about the node below ``root``, and what has to go."""

    def __init__(self, root: Path, tree: FileTree, memory: Memory, accounts: Accounts) -> None:
        self.root = root
        self.tree = tree
        self.memory = memory
        self.accounts = accounts

    def expect(self, state: dict[str, Any]) -> None:
        """Note what is asked for, before it is made, with what it takes to undo it."""
        before: dict[str, Any] = self.memory.get(PLACED) or {}
        after = dict(before)
        for kind, resource in resources(state):
            for name, undo in placed(kind, resource).items():
                after[name] = undo | {"step": resource["step"]}
                if kind == "sysctls":  # as it was before the first time
                    known = before.get(name, {}).get("before")
                    with contextlib.suppress(Failed, OSError):
                        after[name]["before"] = known or sysctl(self.root, resource["name"])
        if after != before:
            self.memory.note(PLACED, after)

    def leavers(self, state: dict[str, Any]) -> dict[str, Any]:
        """What was asked for once, in the steps that this state is of, and is not any more.

        What uses others comes first: units, then their files, then accounts.
        """
        now = {name for kind, each in resources(state) for name in placed(kind, each)}
        gone = {
            name: undo
            for name, undo in (self.memory.get(PLACED) or {}).items()
            if undo["step"] in state["steps"] and name not in now
        }
        order = list(reversed(ORDER))
        return dict(sorted(gone.items(), key=lambda item: order.index(item[1]["kind"])))

    def forget(self, name: str) -> None:
        """It is not there any more."""
        self.memory.note(PLACED, {k: v for k, v in self.memory.get(PLACED).items() if k != name})
        if name.startswith("unit:"):
            self.memory.note(name, None)

    def differs(self, undo: Resource) -> dict[str, Any]:
        """What there is still to do about something that has left."""
        found: object = getattr(self, f"left_{undo['kind']}")(undo)
        return {} if found is None else {REMOVE: found}

    def remove(self, undo: Resource) -> None:
        getattr(self, f"remove_{undo['kind']}")(undo)

    def left_sysctls(self, undo: Resource) -> str | None:
        if "before" not in undo:  # the kernel never had it
            return None
        now = sysctl(self.root, undo["name"])
        return now if now != undo["before"] else None

    def remove_sysctls(self, undo: Resource) -> None:
        setting(self.root, undo["name"]).write_text(undo["before"])

    def left_links(self, undo: Resource) -> str | None:
        return undo["address"] if undo["address"] in addresses_of(link(undo["name"])) else None

    def remove_links(self, undo: Resource) -> None:
        others = set(addresses_of(link(undo["name"]))) - {undo["address"]}
        try:
            command(["ip", "address", "delete", undo["address"], "dev", undo["name"]])
        except Failed:
            if self.left_links(undo) is not None:  # networkd did not take it first
                raise
        # With a subnet's first address the kernel takes the others of that subnet.
        for lost in others.difference(addresses_of(link(undo["name"]))):
            command(["ip", "address", "replace", lost, "dev", undo["name"]])

    def left_users(self, undo: Resource) -> str | None:
        return self.accounts.left(undo)

    def remove_users(self, undo: Resource) -> None:
        self.accounts.remove(undo)

    def left_files(self, undo: Resource) -> str | None:
        return None if self.tree.look(undo["path"]) is None else ""

    def remove_files(self, undo: Resource) -> None:
        self.tree.remove(undo["path"])
        if undo["path"].startswith("/etc/systemd/network/"):
            reload_links(self.root)
        systemd_runs = (self.root / "run/systemd/system").exists()
        if undo["path"].startswith("/etc/systemd/system/") and systemd_runs:
            command(["systemctl", "daemon-reload"])

    def left_units(self, undo: Resource) -> str | None:
        state = active_state(undo["name"])
        return None if state == "inactive" else state

    def remove_units(self, undo: Resource) -> None:
        command(["systemctl", "stop", undo["name"]])
        forgive(undo["name"])  # what it ends with: else a unit that is gone is shown as failed


def placed(kind: str, resource: Resource) -> dict[str, Resource]:
    """What a resource puts on the node and a later state may leave out: name in reports -> what it
    takes to undo it.

    Directories stay, since their content may be somebody's data; so do fetched files, until their
    room is needed.
    """
    if kind == "directories" or "url" in resource:
        return {}
    if kind == "links":
        addresses = [(f"link:{resource['name']} {each}", each) for each in resource["addresses"]]
        return {
            f"file:{resource['file']}": {"kind": "files", "path": resource["file"]},
            **{
                name: {"kind": kind, "name": resource["name"], "address": address}
                for name, address in addresses
            },
        }
    key = "path" if kind == "files" else "name"
    return {identify(kind, resource): {"kind": kind, key: resource[key]}}
