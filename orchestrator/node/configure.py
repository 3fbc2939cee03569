"""Configuration over SSH: look at all nodes at once, or change one.

One round trip per node and call. A node that does not answer ends its own thread only, and does
not keep the others waiting. Only a look is tried again; an agent that changes things runs once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from orchestrator.core.errors import UserError
from orchestrator.core.run import Result
from orchestrator.core.slots import JOBS, Slots
from orchestrator.node.agent_program import program
from orchestrator.node.differences import Difference, found
from orchestrator.node.paths import PYTHON
from orchestrator.node.remote import Unreachable
from orchestrator.node.resources import Step
from orchestrator.node.state import NodeState

#: Seconds for one node: long enough for a model's files over the slowest network in use.
LOOK_TIMEOUT = 120.0
APPLY_TIMEOUT = 1800.0
#: Seconds before that in which an agent ends by itself, to report how far it came.
REPORT_TIME = 10.0
#: Seconds in which a look is tried again where the connection fails at once, and between tries.
RETRY_TIME = 5.0
RETRY_PAUSE = 1.0

#: Reads the agent from the first ARGV[1] bytes of stdin; the request follows.
LOADER = (
    "import sys; source = sys.stdin.buffer.read(int(sys.argv[1]));"
    " exec(compile(source, 'agent.py', 'exec'))"
)


class Runner(Protocol):
    """Where an agent runs: remote.Remote."""

    def run(
        self, argv: Sequence[str], *, what: str = "", stdin: str | None = None, timeout: float = 60
    ) -> Result: ...


@dataclass(frozen=True)
class Target:
    """A node, and what it has to be."""

    runner: Runner
    state: NodeState
    root: str = "/"

    @property
    def name(self) -> str:
        return self.state.node

    def only(self, steps: Sequence[Step]) -> Target:
        """The same node, and what it has to be in these steps."""
        return replace(self, state=self.state.only(*steps))


@dataclass(frozen=True)
class Outcome:
    """The result for one node. ``error``: it could not be asked at all; ``failed``: resource and
    reason."""

    changed: tuple[str, ...] = ()
    unchanged: int = 0
    failed: tuple[tuple[str, str], ...] = ()
    error: str = ""
    #: What only time can make: links whose interface is not there yet.
    pending: tuple[str, ...] = ()
    #: Of a plan only.
    differences: tuple[Difference, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.error and not self.failed

    @property
    def summary(self) -> str:
        if self.error:
            return self.error
        parts = [f"{len(self.changed)} changed", f"{self.unchanged} unchanged"]
        if self.pending:
            parts.append(f"{len(self.pending)} pending: {', '.join(self.pending)}")
        if self.failed:
            parts.append(f"{len(self.failed)} failed: {self.failed[0][0]}: {self.failed[0][1]}")
        return ", ".join(parts)


def plan(
    targets: Sequence[Target], *, jobs: int = JOBS, timeout: float = LOOK_TIMEOUT
) -> dict[str, Outcome]:
    """What an apply of every step would change, by node, ``jobs`` at once; changes nothing."""
    slots = Slots(jobs)

    def one(target: Target) -> Outcome:
        with slots.one():
            try:
                return _planned(target.state, _looked(target, timeout))
            except UserError as error:
                return Outcome(error=str(error))

    if not targets:
        return {}
    # A thread each: what limits them is slots, which a slow node gives back.
    with ThreadPoolExecutor(len(targets)) as pool:
        try:
            outcomes = list(pool.map(one, targets))
        except BaseException:
            slots.close()
            raise
    return {target.name: outcome for target, outcome in zip(targets, outcomes, strict=True)}


def apply(target: Target, step: Step, *, timeout: float = APPLY_TIMEOUT) -> Outcome:
    """Make a node what its state says, of one step; changes only what differs."""
    try:
        return _applied(_agent(target.only([step]), "apply", timeout))
    except UserError as error:
        return Outcome(error=str(error))


def _looked(target: Target, timeout: float) -> dict[str, Any]:
    """The report of a look, retried if the connection was refused or lost at once."""
    end = time.monotonic() + RETRY_TIME
    while True:
        try:
            return _agent(target, "look", timeout)
        except Unreachable:
            if time.monotonic() + RETRY_PAUSE > end:
                raise
            time.sleep(RETRY_PAUSE)


def _agent(target: Target, verb: str, timeout: float) -> dict[str, Any]:
    """Run the agent on the node and return its report."""
    source = program()
    request = {
        "verb": verb,
        "root": target.root,
        "limit_s": max(timeout - REPORT_TIME, timeout / 2),
        "state": target.state.document(),
    }
    # -I -S: nothing but the standard library, whatever the environment says.
    argv = [PYTHON, "-I", "-S", "-c", LOADER, str(len(source.encode()))]
    result = target.runner.run(
        argv,
        what=f"the agent ({verb})",
        stdin=source + json.dumps(request),
        timeout=timeout,
    )
    try:
        report: dict[str, Any] = json.loads(result.out)
    except ValueError:
        raise UserError(
            f"{target.name}: the agent's report cannot be read: {result.out[:200]!r}",
            "A login script on the node prints text; see /etc/bash.bashrc and /root/.bashrc.",
        ) from None
    return report


def _planned(state: NodeState, report: Mapping[str, Any]) -> Outcome:
    differences = found(state, report["resources"])
    return Outcome(
        changed=tuple(item.resource for item in differences if not item.error),
        unchanged=len(report["resources"]) - len(differences),
        failed=tuple((item.resource, item.error) for item in differences if item.error),
        differences=differences,
        facts=report["facts"],
    )


def _applied(report: Mapping[str, Any]) -> Outcome:
    entries = report["resources"]
    return Outcome(
        changed=tuple(entry["id"] for entry in entries if entry["status"] == "changed"),
        unchanged=sum(entry["status"] == "unchanged" for entry in entries),
        failed=tuple((entry["id"], entry["error"]) for entry in entries if "error" in entry),
        pending=tuple(entry["id"] for entry in entries if entry["status"] == "pending"),
        facts=report["facts"],
    )
