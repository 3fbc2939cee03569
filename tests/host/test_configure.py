"""Configuration of several nodes at once. Nodes are local processes in temporary roots, with this
Python; SSH itself is tested with trust."""

import json
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from orchestrator.core import slots
from orchestrator.core.errors import UserError
from orchestrator.core.run import Result, run
from orchestrator.node.configure import Outcome, Target, apply, plan
from orchestrator.node.remote import Unreachable
from orchestrator.node.resources import Directory, File, Step
from orchestrator.node.state import NodeState


@dataclass
class Here:
    """A node that is a process of this machine; ``before`` is called first."""

    before: list[threading.Event] = field(default_factory=list)

    def run(
        self, argv: Sequence[str], *, what: str = "", stdin: str | None = None, timeout: float = 60
    ) -> Result:
        for event in self.before:
            assert event.wait(timeout=60)
        return run([sys.executable, *argv[1:]], what=what, stdin=stdin, timeout=timeout)


class Dead:
    """A node that does not answer."""

    def run(
        self, argv: Sequence[str], *, what: str = "", stdin: str | None = None, timeout: float = 60
    ) -> Result:
        raise UserError("node1 (10.0.0.2): SSH does not answer: No route to host")


class Flaky(Here):
    """A node whose SSH is refused the first time; says how often it was asked."""

    asked = 0

    def run(
        self, argv: Sequence[str], *, what: str = "", stdin: str | None = None, timeout: float = 60
    ) -> Result:
        self.asked += 1
        if self.asked == 1:
            raise Unreachable("node0 (10.0.0.1): SSH does not answer: Connection refused")
        return super().run(argv, what=what, stdin=stdin, timeout=timeout)


def state(name: str, text: str = "one\n") -> NodeState:
    return NodeState(
        name,
        users=(),
        directories=(Directory(Step.BASE, "/etc/x"),),
        files=(
            File(Step.BASE, "/etc/x/plain", text),
            File(Step.BASE, "/etc/x/hidden", text, mode="0600", secret=True),
            File(Step.RAY, "/etc/x/later", "umlaut \u00fc \u2603\n"),
        ),
        units=(),
    )


def here(tmp_path: Path, name: str, text: str = "one\n") -> Target:
    root = tmp_path / name
    root.mkdir(exist_ok=True)
    return Target(Here(), state(name, text), str(root))


def test_plan_then_apply_then_nothing(tmp_path: Path) -> None:
    targets = [here(tmp_path, "node0"), here(tmp_path, "node1")]
    everything = ("directory:/etc/x", "file:/etc/x/plain", "file:/etc/x/hidden")
    planned = plan(targets)
    assert planned["node0"].changed == (*everything, "file:/etc/x/later")
    assert not list((tmp_path / "node0").iterdir())

    assert [apply(target, Step.BASE).changed for target in targets] == [everything, everything]
    assert plan(targets)["node1"].changed == ("file:/etc/x/later",)
    for target in targets:
        apply(target, Step.RAY)
    assert (tmp_path / "node0/etc/x/later").read_text() == "umlaut \u00fc \u2603\n"
    done = plan(targets)["node0"]
    assert (done.changed, done.unchanged, done.ok) == ((), 4, True)
    assert done.facts["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_a_plan_shows_text_but_no_secret(tmp_path: Path) -> None:
    apply(here(tmp_path, "node0", "old\n"), Step.BASE)
    planned = plan([here(tmp_path, "node0", "hunter2\n")])["node0"]
    diffs = {item.resource: item.diff for item in planned.differences}
    assert diffs["file:/etc/x/plain"].splitlines()[2:] == ["@@ -1 +1 @@", "-old", "+hunter2"]
    assert diffs["file:/etc/x/hidden"] == ""


def test_a_dead_node_does_not_hold_the_others(tmp_path: Path) -> None:
    outcomes = plan([Target(Dead(), state("node1")), here(tmp_path, "node0")])
    assert "No route to host" in outcomes["node1"].error
    assert not outcomes["node1"].ok
    assert outcomes["node0"].summary == "4 changed, 0 unchanged"
    assert "No route to host" in apply(Target(Dead(), state("node1")), Step.BASE).error


def test_a_look_is_tried_again_and_a_change_is_not(tmp_path: Path) -> None:
    target = here(tmp_path, "node0")
    flaky = Flaky()
    assert plan([Target(flaky, target.state, target.root)])["node0"].ok
    assert flaky.asked == 2
    flaky = Flaky()
    outcome = apply(Target(flaky, target.state, target.root), Step.BASE)
    assert "Connection refused" in outcome.error
    assert flaky.asked == 1


class Ends(Here):
    """A node that says when it has been asked."""

    def __init__(self, ended: threading.Event) -> None:
        super().__init__()
        self.ended = ended

    def run(
        self, argv: Sequence[str], *, what: str = "", stdin: str | None = None, timeout: float = 60
    ) -> Result:
        try:
            return super().run(argv, what=what, stdin=stdin, timeout=timeout)
        finally:
            self.ended.set()


@pytest.mark.parametrize("jobs", [1, 64])
def test_slow_nodes_do_not_hold_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    """The first two end only after the third has ended, also where only one slot is there."""
    monkeypatch.setattr(slots, "PATIENCE", 0.1)
    ended = threading.Event()
    targets = [here(tmp_path, f"node{number}") for number in range(3)]
    nodes = [Here(before=[ended]), Here(before=[ended]), Ends(ended)]
    asked = [Target(runner, t.state, t.root) for runner, t in zip(nodes, targets, strict=True)]
    outcomes = plan(asked, jobs=jobs)
    assert {name: outcome.ok for name, outcome in outcomes.items()} == {
        "node0": True, "node1": True, "node2": True,
    }  # fmt: skip


def test_a_failed_resource_is_named(tmp_path: Path) -> None:
    target = here(tmp_path, "node0")
    (tmp_path / "node0/etc").mkdir()
    (tmp_path / "node0/etc/x").write_text("in the way\n")
    outcome = apply(target, Step.BASE)
    assert not outcome.ok
    assert [name for name, _ in outcome.failed] == [
        "directory:/etc/x",
        "file:/etc/x/plain",
        "file:/etc/x/hidden",
    ]
    assert "directory:/etc/x" in outcome.summary


def test_no_nodes_is_nothing_to_do() -> None:
    assert plan([]) == {}
    assert Outcome().ok


def test_an_agent_ends_before_its_connection_does_and_has_time_to_report(tmp_path: Path) -> None:
    asked: list[tuple[float, float]] = []

    class Noting(Here):
        def run(
            self,
            argv: Sequence[str],
            *,
            what: str = "",
            stdin: str | None = None,
            timeout: float = 60,
        ) -> Result:
            request = json.loads((stdin or "").encode()[int(argv[-1]) :])
            asked.append((request["limit_s"], timeout))
            return super().run(argv, what=what, stdin=stdin, timeout=timeout)

    target = Target(Noting(), state("node0"), str(tmp_path))
    for timeout in (1800.0, 60.0, 12.0):
        assert apply(target, Step.BASE, timeout=timeout).ok
    assert asked == [(1790.0, 1800.0), (50.0, 60.0), (6.0, 12.0)]
