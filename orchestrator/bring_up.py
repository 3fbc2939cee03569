"""`orchestrate up`: power, SSH, base, Ray, vLLM, answer; nodes side by side."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from threading import Event

import httpx

from orchestrator import certificates, configure
from orchestrator.cluster import Cluster
from orchestrator.configure import Target
from orchestrator.errors import UserError
from orchestrator.machines import PowerState
from orchestrator.netboot.look import Watch
from orchestrator.profile import Node, Profile
from orchestrator.progress import CLUSTER, Board
from orchestrator.resources import Step
from orchestrator.selection import Selection, everything
from orchestrator.slots import JOBS, Slots
from orchestrator.state import FRONT_UNIT, SERVER_UNIT, WORKER_UNIT, ModelFile
from orchestrator.take_down import end_children, undo
from orchestrator.verify import gather
from orchestrator.verify.everything import verify
from orchestrator.verify.gather import VerifyContext
from orchestrator.verify.report import Report
from orchestrator.wanted import want_on

#: Where `up` can stop, in order: the control node alone, ready for others to boot; SSH; the steps.
CONTROL, SSH = "control", "ssh"
STOPS = (CONTROL, SSH, *Step)
#: A step of `up` as the boot timeline calls its end.
REACHED = {Step.BASE: "configured", Step.RAY: "ray"}
#: Seconds for the model from start to first answer.
SERVE_TIMEOUT = 1200.0
#: Seconds between two looks at the model while it loads.
POLL = 1.0


@dataclass
class Bringup:
    """What came of one `up`: failures by node, and what was changed. `until` is its last step."""

    board: Board
    until: str = Step.SERVING
    started: list[Node] = field(default_factory=list)
    changed: dict[str, list[str]] = field(default_factory=dict)
    failures: dict[str, UserError] = field(default_factory=dict)
    report: Report | None = None

    @property
    def ok(self) -> bool:
        if self.failures:
            return False
        return self.report.ok if self.report else self.until != Step.SERVING

    @property
    def nothing_changed(self) -> bool:
        return self.ok and not self.started and not any(self.changed.values())


def up(
    cluster: Cluster,
    board: Board,
    until: str = Step.SERVING,
    chosen: Selection | None = None,
    jobs: int = JOBS,
) -> Bringup:
    """Bring the chosen nodes up and verify them; a failing node does not hold the others.

    It stops after the step `until`, one of STOPS; only what serves is verified, and the endpoint
    only with all nodes. Interrupted, it powers off what it started, and leaves what ran before.
    """
    chosen = chosen or everything(cluster.profile)
    whole = chosen.nodes == cluster.profile.nodes
    result = Bringup(board, until)
    serves = until == Step.SERVING
    want_on(cluster.profile.name, chosen.names)
    found_running = any(cluster.driver.running(node) for node in cluster.profile.nodes)
    try:
        files = prepare(cluster, board, serves=serves)
        # Threads and processes started in here are in the cluster's network too.
        with cluster.driver.network():
            configure_nodes(cluster, cluster.targets(files), result, chosen, Slots(jobs))
            if until == Step.RAY and not result.failures:
                attempt(result, CLUSTER, lambda: wait_for_ray(cluster, board, chosen))
            if serves and whole and not result.failures:
                attempt(result, CLUSTER, lambda: wait_for_model(cluster, board))
                if not result.failures:
                    for node in result.started:
                        cluster.diary.add(node.name, "ready")
            if serves and not result.failures:
                with board.step(CLUSTER, "verify") as done:
                    context = cluster.verify_context(files, chosen, jobs)
                    # Part of a cluster cannot promise what all of it does together.
                    judged = chosen if whole else replace(chosen, steps=(Step.BASE,))
                    result.report = verify(cluster.profile, context, judged, jobs)
                    done.failed = not result.report.ok
                    done.detail = (
                        f"{len(result.report.failed)} of {len(result.report.checks)} failed"
                    )
    except BaseException:
        undo(cluster, result.started, shared=not found_running)
        raise
    return result


def prepare(cluster: Cluster, board: Board, *, serves: bool) -> tuple[ModelFile, ...]:
    """What nodes will ask for, and their networks; returns the model's files if one is served."""
    files: tuple[ModelFile, ...] = ()
    if serves:
        with board.step(CLUSTER, "model") as done:
            files = cluster.publish_model(lambda line: board.note(CLUSTER, line))
            done.detail = "; ".join(cluster.short_of_memory())
    with board.step(CLUSTER, "image") as done:
        changed = cluster.publish_image()
        held = ", held: see orchestrate status" if cluster.choice.held else ""
        done.detail = f"{cluster.image_id[:12]} {'served' if changed else 'is served'}{held}"
    with board.step(CLUSTER, "machines"):
        cluster.driver.prepare(cluster.image)
    return files


def attempt(result: Bringup, name: str, action: Callable[[], object]) -> None:
    """Note a user error as the failure of `name`, and go on."""
    try:
        action()
    except UserError as error:
        result.failures[name] = error


def configure_nodes(
    cluster: Cluster, targets: dict[str, Target], result: Bringup, chosen: Selection, slots: Slots
) -> None:
    """Power to configured services, all chosen nodes at once."""
    control = Gates()
    if cluster.profile.control not in chosen:
        control.open()
    watch = Watch(cluster.profile, cluster.diary, cluster.remote(cluster.profile.control))
    # A thread each: the most of it is waiting.
    with ThreadPoolExecutor(len(chosen.nodes)) as pool:
        ways = {
            node.name: pool.submit(
                Way(
                    cluster, node, targets[node.name], result, Course(chosen, control, slots, watch)
                ).go
            )
            for node in chosen.nodes
        }
        try:
            for name, way in ways.items():
                attempt(result, name, way.result)
        except KeyboardInterrupt:
            # The threads sit in ssh or in a wait: end both, so that leaving the pool does not hang.
            control.open()
            slots.close()
            end_children()
            raise
    result.changed = {n: result.changed[n] for n in chosen.names if n in result.changed}


@dataclass(frozen=True)
class Gates:
    """What compute nodes wait for: the control node boots others, its Ray takes workers."""

    boots_others: Event = field(default_factory=Event)
    has_ray: Event = field(default_factory=Event)

    def open(self) -> None:
        """Let all through: the control node has come as far as it will."""
        self.boots_others.set()
        self.has_ray.set()


@dataclass(frozen=True)
class Course:
    """What all ways of one `up` share."""

    chosen: Selection
    control: Gates
    slots: Slots
    watch: Watch


@dataclass
class Way:
    """One node's way from power to its services."""

    cluster: Cluster
    node: Node
    target: Target
    result: Bringup
    course: Course

    @property
    def control(self) -> Gates:
        return self.course.control

    def go(self) -> None:
        if self.cluster.profile.is_control(self.node):
            self.go_first()
        elif self.result.until != CONTROL:
            self.go_after()

    def go_first(self) -> None:
        """The control node's way. Others boot from it, so it is made ready for that in any case."""
        try:
            self.reach()
            if Step.BASE in self.course.chosen.steps:
                self.renew()
                self.apply(Step.BASE)
            self.control.boots_others.set()
            if self.wanted(Step.RAY):
                self.apply(Step.RAY)
        finally:
            self.control.open()
        if self.wanted(Step.SERVING):
            self.apply(Step.SERVING)

    def go_after(self) -> None:
        """A compute node's way."""
        if self.cluster.driver.netboots(self.node):
            self.wait(self.control.boots_others)
        self.reach()
        if self.wanted(Step.BASE):
            self.renew()
            self.apply(Step.BASE)
        if self.wanted(Step.RAY):
            self.wait(self.control.has_ray)
            self.apply(Step.RAY)
        if self.wanted(Step.SERVING):
            self.apply(Step.SERVING)

    def wanted(self, step: Step) -> bool:
        in_time = STOPS.index(step) <= STOPS.index(self.result.until)
        return in_time and step in self.course.chosen.steps

    def wait(self, gate: Event) -> None:
        limit = self.cluster.driver.boot_timeout
        if not gate.wait(limit):
            raise UserError(f"{self.node.name}: the control node was not ready in {limit:g} s")

    def reach(self) -> None:
        """Power, then SSH."""
        board, name = self.result.board, self.node.name
        with board.step(name, "power") as done, self.course.slots.one():
            done.detail = self.power()
        with board.step(name, SSH):
            self.wait_for_ssh()
        self.reached("sshd")

    def reached(self, step: str) -> None:
        """Write down how far this boot is; what ran already is not booting."""
        if self.node in self.result.started:
            self.cluster.diary.add(self.node.name, step)

    def power(self) -> str:
        if self.cluster.driver.running(self.node):
            return "on already"
        self.result.started.append(self.node)
        self.cluster.diary.add(self.node.name, "power")
        self.cluster.boot(self.node)
        return ""

    def wait_for_ssh(self) -> None:
        def waiting(reason: str) -> None:
            step = self.course.watch.step(self.node.name) if netboots else ""
            self.result.board.note(self.node.name, step or reason.splitlines()[0])
            self.must_run()

        netboots = self.cluster.driver.netboots(self.node)
        limit = self.cluster.driver.boot_timeout
        self.cluster.remote(self.node).wait_for_ssh(limit, waiting)

    def renew(self) -> None:
        """Of a node that has run for long, the host's certificate before it ends."""
        name = self.node.name
        if self.node in self.result.started:
            return
        with self.course.slots.one():
            if not certificates.shown_by(self.cluster, self.node).ends_soon:
                return
            with self.result.board.step(name, "certificate"):
                certificates.certify(self.cluster, self.node, self.cluster.trust)
        self.result.changed.setdefault(name, []).append("certificate")

    def must_run(self) -> None:
        must_have_power(self.cluster, self.node)

    def apply(self, step: Step) -> None:
        """Make the node what it should be in one step. Raises UserError if it is not after it."""
        part = self.target.state.only(step)
        if not part.resources:
            return
        name = self.node.name
        with self.course.slots.one(), self.result.board.step(name, step) as done:
            outcome = configure.apply([self.target], step)[name]
            self.result.changed.setdefault(name, []).extend(outcome.changed)
            done.detail = outcome.summary
            if outcome.error:
                self.must_run()
                raise UserError(outcome.error)
            if outcome.failed:
                raise UserError("\n".join(f"{what}: {why}" for what, why in outcome.failed))
        if step in REACHED:
            self.reached(REACHED[step])


def wait_for_ray(cluster: Cluster, board: Board, chosen: Selection) -> None:
    """Return when every chosen node has joined: its unit may run while it is on its way there.

    (Where a model is served, its answer says the same.) Raises UserError that names who is missing.
    """
    profile, limit = cluster.profile, cluster.driver.boot_timeout
    context = cluster.verify_context(())
    deadline = time.monotonic() + limit
    with board.step(CLUSTER, "ray"):
        while missing := not_joined(context, profile, chosen):
            names = ", ".join(missing)
            board.note(CLUSTER, f"Ray does not have {names} yet")
            if time.monotonic() > deadline:
                raise UserError(
                    f"not in Ray after {limit:g} s: {names}",
                    f"Its log: orchestrate node ssh {missing[0]} -- journalctl -u {WORKER_UNIT}",
                )
            time.sleep(POLL)


def not_joined(context: VerifyContext, profile: Profile, chosen: Selection) -> list[str]:
    """Chosen nodes that Ray does not have; all of them, where it does not answer."""
    try:
        there = {node.address for node in gather.ray(context, profile).nodes}
    except UserError:
        there = set()
    return [node.name for node in chosen.nodes if profile.ray_address(node) not in there]


def wait_for_model(cluster: Cluster, board: Board) -> None:
    """Return when the endpoint serves the model; end early if one of its services ended."""
    profile = cluster.profile
    behind = [(profile.server, SERVER_UNIT), (profile.control, FRONT_UNIT)]
    deadline = time.monotonic() + SERVE_TIMEOUT
    with board.step(CLUSTER, "serving"), cluster.client() as client:
        while reason := why_not(client):
            for node in profile.nodes:
                must_have_power(cluster, node)
            for node, unit in behind:
                must_be_up(cluster, node, unit)
            said = last_lines(cluster, profile.server, SERVER_UNIT, 1)
            board.note(CLUSTER, f"{reason}; vLLM: {said[-90:]}")
            if time.monotonic() > deadline:
                raise UserError(
                    f"no answer at {cluster.endpoint} after {SERVE_TIMEOUT:g} s: {reason}",
                    f"vLLM's last line on {profile.server.name}: {said}",
                )
            time.sleep(POLL)


def why_not(client: httpx.Client) -> str:
    """Why the endpoint does not serve yet; empty when it does."""
    try:
        response = client.get("/health")
    except httpx.TransportError as error:
        return f"endpoint: {error}"
    return "" if response.status_code == httpx.codes.OK else f"HTTP {response.status_code}"


def must_have_power(cluster: Cluster, node: Node) -> None:
    """Raises UserError where a node is off that was on."""
    if cluster.driver.state(node) == PowerState.OFF:
        console = cluster.driver.console(node)
        raise UserError(f"{node.name} has lost power", f"Its console: {console}")


def must_be_up(cluster: Cluster, node: Node, unit: str) -> None:
    """Raises UserError, with the last lines of its log, where a unit has ended for good."""
    argv = ["systemctl", "is-active", unit]
    if cluster.remote(node).run(argv, ok=None).out.strip() in ("failed", "inactive"):
        lines = last_lines(cluster, node, unit, 20)
        hint = f"Its whole log: orchestrate node ssh {node.name} -- journalctl -u {unit}"
        raise UserError(f"{unit} ended on {node.name}:\n{lines}", hint)


def last_lines(cluster: Cluster, node: Node, unit: str, count: int) -> str:
    """The end of a unit's log."""
    argv = ["journalctl", f"--unit={unit}", "--output=cat", "--no-pager", f"--lines={count}"]
    return cluster.remote(node).run(argv, ok=None).out.strip()
