"""`orchestrate up`: power, SSH, base, Ray, vLLM, answer; all nodes in parallel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from threading import Event

from orchestrator.cluster import certificates, members
from orchestrator.cluster.cluster import Cluster
from orchestrator.cluster.down import end_children, undo
from orchestrator.cluster.first_run import Meeting, asked_by_up, before_ray
from orchestrator.cluster.images import publish_image
from orchestrator.cluster.power_intent import forget_others, kept_off, want_on
from orchestrator.cluster.readiness import (
    NodeLost,
    must_have_power,
    wait_for_layers,
    wait_for_model,
    wait_for_ray,
)
from orchestrator.cluster.targets import (
    Files,
    publish_models,
    short_of_memory,
    targets,
    verify_context,
)
from orchestrator.core.errors import UserError
from orchestrator.core.progress import CLUSTER, Board
from orchestrator.core.slots import JOBS, Slots
from orchestrator.models.serving import must_be_chosen
from orchestrator.node import configure
from orchestrator.node.configure import Target
from orchestrator.node.remote import PROBE_TIMEOUT
from orchestrator.node.resources import Step
from orchestrator.node.selection import Selection, everything
from orchestrator.profile import Node
from orchestrator.provision.netboot.look import Watch
from orchestrator.verify.everything import verify
from orchestrator.verify.report import Report

#: Where `up` can stop, in order: when the control node can boot others; at SSH; after a step.
CONTROL, SSH = "control", "ssh"
STOPS = (CONTROL, SSH, *Step)
#: The boot timeline's name for the end of a step.
REACHED = {Step.BASE: "configured", Step.RAY: "ray"}


@dataclass
class Bringup:
    """The result of one `up`: failures and changes by node. `until` is its last step."""

    board: Board
    until: str = Step.SERVING
    started: list[Node] = field(default_factory=list)
    changed: dict[str, list[str]] = field(default_factory=dict)
    failures: dict[str, UserError] = field(default_factory=dict)
    #: The first run, where it was made.
    first_run: Report | None = None
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
    """Bring the chosen nodes up and verify them; a failing node does not stop the others.

    It stops after the step `until`, one of STOPS. It verifies only after the last step, and the
    endpoint only with all nodes. After an interrupt it powers off the nodes that it started.
    """
    chosen = chosen or everything(cluster.profile)
    want_on(cluster.profile.name, chosen.names)
    return bring(cluster, board, until, chosen, jobs)


def bring(
    cluster: Cluster, board: Board, until: str, chosen: Selection, jobs: int = JOBS
) -> Bringup:
    """Like `up`, but nodes that the user switched off stay off."""
    cluster.driver.check_rights()  # fail before minutes of work
    if until == Step.SERVING:
        must_be_chosen(cluster.profile)
    forget_others(cluster.profile.name, [node.name for node in cluster.profile.nodes])
    members.give(cluster.profile.name, chosen.names)
    whole = chosen.nodes == cluster.profile.nodes
    result = Bringup(board, until)
    serves = until == Step.SERVING
    found_running = any(cluster.driver.running(node) for node in cluster.profile.nodes)
    try:
        files = prepare(cluster, board, serves=serves)
        configure_nodes(cluster, targets(cluster, files), result, chosen, Slots(jobs))
        # Threads and processes that are started here are in the cluster's network too.
        with cluster.driver.network():
            joins = cluster.profile.serving.by_ray and (until == Step.RAY or (serves and whole))
            if joins and not result.failures:
                attempt(result, CLUSTER, lambda: wait_for_ray(cluster, board, chosen))
            if serves and whole and not result.failures:
                attempt(result, CLUSTER, lambda: wait_for_model(cluster, board))
                if not result.failures:
                    for node in result.started:
                        cluster.diary.add(node.name, "ready")
            if serves and not result.failures:
                with board.step(CLUSTER, "verify") as done:
                    context = verify_context(cluster, files, chosen, jobs)
                    # With only some nodes, checks of Ray and of serving cannot pass.
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


def prepare(cluster: Cluster, board: Board, *, serves: bool) -> Files:
    """Prepare networks and the files that nodes fetch; return the models' files if it serves."""
    files: Files = {}
    if serves:
        with board.step(CLUSTER, "model") as done:
            files = publish_models(cluster, lambda line: board.note(CLUSTER, line))
            done.detail = "; ".join(short_of_memory(cluster))
    with board.step(CLUSTER, "image") as done:
        changed = publish_image(cluster)
        held = ", held: see orchestrate status" if cluster.choice.held else ""
        done.detail = f"{cluster.image_id[:12]} {'served' if changed else 'is served'}{held}"
    with board.step(CLUSTER, "machines") as done:
        cluster.driver.prepare(cluster.image)
        told = (cluster.driver.why_shared, members.told(members.left(cluster.profile)))
        done.detail = "; ".join(filter(None, told))
    return files


def attempt(result: Bringup, name: str, action: Callable[[], object]) -> None:
    """Record a user error as the failure of `name`, or of the node that was lost, and go on."""
    try:
        action()
    except NodeLost as error:
        result.failures[error.node] = error
    except UserError as error:
        result.failures[name] = error


def configure_nodes(
    cluster: Cluster, targets: dict[str, Target], result: Bringup, chosen: Selection, slots: Slots
) -> None:
    """Bring all chosen nodes from power to configured services, in parallel.

    First the control node gets power alone: with its container comes the cluster's network.
    """
    control = Gates()
    watch = Watch(cluster.profile, cluster.diary, cluster.remote(cluster.profile.control))
    meeting = meeting_of(cluster, result, chosen)
    course = Course(chosen, control, slots, watch, meeting)
    ways = [Way(cluster, node, targets[node.name], result, course) for node in chosen.nodes]
    for way in ways:
        if cluster.profile.is_control(way.node):
            attempt(result, way.node.name, way.switch_on)
    ways = [way for way in ways if way.node.name not in result.failures]
    if not any(cluster.profile.is_control(way.node) for way in ways):
        control.open()
    # A thread each: the most of it is waiting.
    with cluster.driver.network(), ThreadPoolExecutor(len(chosen.nodes)) as pool:
        ends = {way.node.name: pool.submit(way.go) for way in ways}
        try:
            for name, end in ends.items():
                attempt(result, name, end.result)
        except KeyboardInterrupt:
            # The threads are in ssh or in a wait: end both, or leaving the pool would hang.
            control.open()
            meeting.close()
            slots.close()
            end_children()
            raise
    result.changed = {n: result.changed[n] for n in chosen.names if n in result.changed}


def meeting_of(cluster: Cluster, result: Bringup, chosen: Selection) -> Meeting:
    """The first run of the nodes that have one, once all of them have come so far."""
    named = {node.name: node for node in asked_by_up(cluster, chosen)}

    def run(here: Sequence[str]) -> Report | None:
        result.first_run = before_ray(cluster, result.board, [named[name] for name in here])
        return result.first_run

    return Meeting(list(named), run)


@dataclass(frozen=True)
class Gates:
    """What compute nodes wait for: netboot services, and a Ray head that accepts workers."""

    boots_others: Event = field(default_factory=Event)
    has_ray: Event = field(default_factory=Event)

    def open(self) -> None:
        """Open all gates, when the control node will make no more progress."""
        self.boots_others.set()
        self.has_ray.set()


@dataclass(frozen=True)
class Course:
    """The state that all nodes' ways of one `up` share."""

    chosen: Selection
    control: Gates
    slots: Slots
    watch: Watch
    meeting: Meeting


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
            try:
                self.go_after()
            finally:
                self.course.meeting.leave(self.node.name)

    def go_first(self) -> None:
        """The control node's way, after its power. Its base is configured in any case, since
        others boot from it."""
        try:
            self.reach_ssh()
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
        self.switch_on()
        self.reach_ssh()
        if self.wanted(Step.BASE):
            self.renew()
            self.apply(Step.BASE)
        if self.wanted(Step.RAY):
            self.wait_for_layers()
            self.course.meeting.arrive(self.node.name, self.cluster.driver.boot_timeout)
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

    def switch_on(self) -> None:
        with self.result.board.step(self.node.name, "power") as done, self.course.slots.one():
            done.detail = self.power()

    def reach_ssh(self) -> None:
        with self.result.board.step(self.node.name, SSH):
            self.wait_for_ssh()
        self.reached("sshd")

    def reached(self, step: str) -> None:
        """Record that this boot reached a step, unless the node ran before."""
        if self.node in self.result.started:
            self.cluster.diary.add(self.node.name, step)

    def power(self) -> str:
        if self.cluster.driver.running(self.node):
            if not self.hopeless():
                return "on already"
            self.cluster.driver.power_off(self.node, timeout=0)
        self.must_be_wanted()
        self.result.started.append(self.node)
        self.cluster.diary.add(self.node.name, "power")
        self.cluster.boot(self.node)
        try:
            # 'node down' records its intent, then checks the power. So either it sees this boot,
            # or this sees its intent.
            self.must_be_wanted()
        except UserError:
            self.cluster.driver.power_off(self.node)
            raise
        return ""

    def hopeless(self) -> bool:
        """Whether a machine with power can never come up; False if it answers."""
        if self.cluster.driver.trouble(self.node) is None:
            return False
        try:
            self.cluster.remote(self.node).run(["true"], timeout=PROBE_TIMEOUT)
        except UserError:
            return True
        return False

    def must_be_wanted(self) -> None:
        if self.node.name in kept_off(self.cluster.profile.name):
            raise UserError(f"{self.node.name} was switched off meanwhile, and stays off")

    def wait_for_ssh(self) -> None:
        def waiting(reason: str) -> None:
            step = self.course.watch.step(self.node.name) if netboots else ""
            self.result.board.note(self.node.name, step or reason.splitlines()[0])
            self.must_run()

        netboots = self.cluster.driver.netboots(self.node)
        limit = self.cluster.driver.boot_timeout
        self.cluster.remote(self.node).wait_for_ssh(limit, waiting)

    def wait_for_layers(self) -> None:
        """Wait for layers that a netbooted node still fetches: Ray is in one."""

        def waiting(unit: str) -> None:
            self.result.board.note(self.node.name, self.course.watch.step(self.node.name) or unit)
            self.must_run()

        if self.cluster.driver.netboots(self.node):
            wait_for_layers(self.cluster, self.node, self.result.board, waiting)

    def renew(self) -> None:
        """Renew the host certificate of a long-running node before it expires."""
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
        """Raises UserError if waiting for the node is pointless."""
        if self.course.slots.closed:
            raise UserError(f"{self.node.name}: interrupted while waiting for it")
        must_have_power(self.cluster, self.node)

    def apply(self, step: Step) -> None:
        """Apply one step of the node's desired state. Raises UserError if a resource fails."""
        part = self.target.state.only(step)
        if not part.resources:
            return
        name = self.node.name
        with self.course.slots.one(), self.result.board.step(name, step) as done:
            outcome = configure.apply(self.target, step)
            self.result.changed.setdefault(name, []).extend(outcome.changed)
            done.detail = outcome.summary
            if outcome.error:
                self.must_run()
                raise UserError(outcome.error)
            if outcome.failed:
                raise UserError("\n".join(f"{what}: {why}" for what, why in outcome.failed))
        if step in REACHED:
            self.reached(REACHED[step])
