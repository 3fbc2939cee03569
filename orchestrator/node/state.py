"""The desired state of a node: what has to be on it and run on it, as a document for the agent.

What an earlier document of the same steps asked for, and this one leaves out, is removed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from orchestrator.node.resources import (
    Directory,
    File,
    NetworkLink,
    Resource,
    Step,
    Sysctl,
    Unit,
    User,
)


@dataclass(frozen=True)
class NodeState:
    """One node's document. ``steps``: those that it is of; of others it says nothing."""

    node: str
    sysctls: tuple[Sysctl, ...] = ()
    links: tuple[NetworkLink, ...] = ()
    users: tuple[User, ...] = ()
    directories: tuple[Directory, ...] = ()
    files: tuple[File, ...] = ()
    units: tuple[Unit, ...] = ()
    steps: tuple[Step, ...] = tuple(Step)

    def only(self, *steps: Step) -> NodeState:
        """The part that belongs to these steps."""
        parts = {
            kind.name: tuple(item for item in getattr(self, kind.name) if item.step in steps)
            for kind in fields(self)
            if kind.name not in ("node", "steps")
        }
        covered = tuple(step for step in self.steps if step in steps)
        return NodeState(self.node, **parts, steps=covered)

    @property
    def resources(self) -> tuple[Resource, ...]:
        """All of it, in the order in which it is made."""
        return (
            *self.sysctls,
            *self.links,
            *self.users,
            *self.directories,
            *self.files,
            *self.units,
        )

    def document(self) -> dict[str, Any]:
        """As JSON types, secrets in clear: for the node's agent, not for people."""
        document = asdict(self)
        document["files"] = [
            {key: value for key, value in file.items() if value is not None}
            for file in document["files"]
        ]
        return document
