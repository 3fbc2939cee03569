"""What differs on a node, in words: an agent's report against the desired state. Pure.

No secret's text is in here, nor how it differs; only that it does.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.node.resources import Directory, File, NetworkLink, Resource, Sysctl, Unit, User
from orchestrator.node.state import NodeState

#: The kinds in the order shown, with their titles.
TITLES = {
    "file": "files",
    "directory": "directories",
    "unit": "units",
    "user": "users",
    "sysctl": "kernel settings",
    "link": "links",
}
#: Nothing before it: how `diff` names a file that is not there.
NOTHING = "/dev/null"
SECRET = "secret: not shown"
#: By kind, what happens to what has left the profile.
LEFT = {
    "file": "remove it",
    "unit": "stop it (now {now})",
    "user": "delete the account ({now}), end its processes; its home stays, for root only",
    "sysctl": "set {now} back to what it was",
    "link": "take the address {now} away",
}


@dataclass(frozen=True)
class Difference:
    """A resource that is not as desired: what would change, in words, and a text's difference.

    ``error``: why it cannot be checked or fixed.
    """

    resource: str
    changes: tuple[str, ...]
    details: tuple[str, ...] = ()
    diff: str = ""
    error: str = ""

    @property
    def kind(self) -> str:
        return self.resource.partition(":")[0]

    @property
    def name(self) -> str:
        return self.resource.partition(":")[2]

    @property
    def line(self) -> str:
        return f"{self.resource}: {self.error or '; '.join(self.details) or 'text differs'}"


def found(state: NodeState, entries: Sequence[Mapping[str, Any]]) -> tuple[Difference, ...]:
    """The differences in an agent's report.

    It has entries of what has left the profile, and one for each resource of ``state``, in order.
    """
    left = [entry for entry in entries if entry.get("left")]
    there = [entry for entry in entries if not entry.get("left")]
    wanted = zip(state.resources, there, strict=True)
    return (
        *(_left(entry) for entry in left),
        *(
            _difference(resource, entry)
            for resource, entry in wanted
            if entry["changes"] or "error" in entry
        ),
    )


def _left(entry: Mapping[str, Any]) -> Difference:
    """Something that an earlier state asked for, and this one does not."""
    kind = entry["id"].partition(":")[0]
    what = LEFT[kind].format(now=entry.get("found", {}).get("remove", ""))
    return Difference(
        entry["id"],
        tuple(entry["changes"]),
        (f"left the profile: {what}",),
        "",
        entry.get("error", ""),
    )


def _difference(wanted: Resource, entry: Mapping[str, Any]) -> Difference:
    changes = tuple(entry["changes"])
    now: Mapping[str, Any] = entry.get("found", {})
    details = tuple(text for change in changes if (text := _told(wanted, change, now.get(change))))
    return Difference(
        entry["id"], changes, details, _diff(wanted, changes, entry), entry.get("error", "")
    )


def _diff(wanted: Resource, changes: Sequence[str], entry: Mapping[str, Any]) -> str:
    """The unified difference of a text that is shown; empty where there is none."""
    current = entry.get("current")
    if isinstance(wanted, NetworkLink) and "file" in changes:
        return unified(wanted.file, current, wanted.content)
    if not isinstance(wanted, File) or wanted.secret or wanted.content is None:
        return ""
    if "create" in changes:
        return unified(wanted.path, None, wanted.content)
    if "content" in changes and current is not None:
        return unified(wanted.path, current, wanted.content)
    return ""


def unified(path: str, current: str | None, wanted: str) -> str:
    """A unified difference as `diff -u` writes it; ``current`` None: there is no such file."""
    lines = difflib.unified_diff(
        _lines(current or ""), _lines(wanted), NOTHING if current is None else f"{path} (now)", path
    )
    return "".join(_ended(line) for line in lines).rstrip("\n")


def _lines(text: str) -> list[str]:
    """Lines as `diff` sees them: only a line feed ends one."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def _ended(line: str) -> str:
    return line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


def _told(wanted: Resource, change: str, now: Any) -> str:
    """A change in words: ``mode 0644 -> 0600``. Empty where the difference of texts says it."""
    match wanted:
        case Sysctl():
            return f"{now} -> {wanted.value}"
        case NetworkLink():
            return _link(wanted, change, now)
        case User():
            return _user(wanted, change, now)
        case Directory() | File():
            return _on_disk(wanted, change, now)
        case Unit():
            return f"{change} (now {now})"


def _link(wanted: NetworkLink, change: str, now: Any) -> str:
    return {
        "file": "",
        "reload": "systemd-networkd must reload its file",
        "absent": "there is no such interface (yet)",
        "unsafe": str(now),
        "address": f"{now or 'no address'} -> {', '.join(wanted.addresses)}",
        "up": "down -> up",
    }[change]


def _user(wanted: User, change: str, now: Any) -> str:
    return {
        "create": f"create, uid {wanted.uid}",
        "uid": f"uid {now} -> {wanted.uid}",
        "shell": f"shell {now} -> {wanted.shell}",
        "groups": str(now),
        "home": f"home directory: {now}",
        "unsafe": str(now),
    }[change]


def _on_disk(wanted: Directory | File, change: str, now: Any) -> str:
    owner = f"{wanted.owner}:{wanted.group}"
    return {
        "create": " ".join(("create,", owner, wanted.mode, *_origin(wanted))),
        "content": " ".join(("content", *([f"(now {now})"] if now else ()), *_origin(wanted))),
        "owner": f"owner {now} -> {owner}",
        "mode": f"mode {now} -> {wanted.mode}",
        "stray": f"remove {now}",
        "room": f"free space: {now}",
        "unsafe": str(now),
    }[change]


def _origin(wanted: Directory | File) -> Iterator[str]:
    if isinstance(wanted, File) and wanted.secret:
        yield f"({SECRET})"
    if isinstance(wanted, File) and wanted.url:
        yield f"(sha256 {wanted.digest[:12]}, from {wanted.url})"
