"""The first run on a cluster: `verify --hardware`, and the first part of `up` after each boot."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import Any

import httpx

from orchestrator.cluster.cluster import Cluster
from orchestrator.core import paths
from orchestrator.core.errors import UserError
from orchestrator.core.files import write_json
from orchestrator.core.progress import CLUSTER, Board
from orchestrator.core.run import Result
from orchestrator.models import catalog
from orchestrator.models.publish import bring, publish
from orchestrator.node.remote import PROBE_TIMEOUT
from orchestrator.node.selection import Selection
from orchestrator.profile import Node
from orchestrator.provision import boot_parameters
from orchestrator.verify import first_run as steps
from orchestrator.verify import gather, judge
from orchestrator.verify.first_run import FirstModel, FirstRunContext, first_run_of
from orchestrator.verify.judge import Verdict
from orchestrator.verify.layers import LAYERS
from orchestrator.verify.report import Report

#: What passed, below the cluster's state.
RECORD = "first-run.json"
BOOT_ID = ("cat", "/proc/sys/kernel/random/boot_id")
#: Processes of an engine, as vLLM and Ray name them; the brackets keep pgrep's own words out.
ENGINE = ("pgrep", "--full", "[V]LLM::|[r]ay::RayWorker")


def first_run(cluster: Cluster, board: Board, chosen: Selection, *, forced: bool) -> Report:
    """All steps on the chosen nodes that have accelerators, up to the model's answer.

    Raises UserError where none of them has.
    """
    nodes = [node for node in chosen.nodes if node.accelerators]
    if not nodes:
        raise UserError(
            "no chosen node has accelerators",
            "Choose compute nodes whose 'accelerators' is 1 or more.",
        )
    with cluster.driver.network():
        context = context_of(cluster, board, served(cluster, nodes), endpoint=True)
        return steps.first_run(cluster.profile, context, nodes, board, forced=forced)


def asked_by_up(cluster: Cluster, chosen: Selection) -> list[Node]:
    """The nodes that `up` makes the steps on: those whose kind names a device of torch."""
    kinds = cluster.profile.hardware
    return [
        node
        for node in chosen.nodes
        if node.accelerators
        and (kind := kinds.get(node.hardware or ""))
        and kind.torch
        and first_run_of(cluster.profile, node).in_up
    ]


def before_ray(cluster: Cluster, board: Board, nodes: Sequence[Node]) -> Report | None:
    """The steps before Ray; None where they passed since these nodes booted, or serve already."""
    held = served(cluster, nodes)
    wanted = mark(cluster, [node for node in nodes if node.name not in held])
    if covers(_recorded(cluster), wanted):
        with board.step(CLUSTER, steps.STEP) as done:
            done.detail = "passed since boot" if wanted["boots"] else "the model is being served"
        return None
    free = [node for node in nodes if node.name not in held]
    report = steps.first_run(
        cluster.profile, context_of(cluster, board, held, endpoint=False), free, board
    )
    if report.ok:
        write_json(paths.cluster(cluster.profile.name) / RECORD, wanted)
    return report


def mark(cluster: Cluster, nodes: Sequence[Node]) -> dict[str, Any]:
    """What a first run is of: these boots, this image, and all that the steps are told."""
    profile = cluster.profile
    boots = {node.name: cluster.remote(node).run(BOOT_ID).out.strip() for node in nodes}
    told = profile.document()
    parts = [told[key] for key in ("hardware", "ray", "serving", "verification", "models")]
    parts += [cluster.model.config, steps.source("first_run_steps")]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return {"image": cluster.image_id, "told": digest, "boots": boots}


def _recorded(cluster: Cluster) -> Any:
    """What passed last; None where nothing did, or nobody can tell any more."""
    try:
        return json.loads((paths.cluster(cluster.profile.name) / RECORD).read_text())
    except (OSError, ValueError):
        return None


def covers(recorded: Any, wanted: dict[str, Any]) -> bool:
    """Whether what passed at once includes what is wanted: the same, on these boots and maybe
    others. (What passed one after the other had no collective.)"""
    if not isinstance(recorded, dict) or not isinstance(recorded.get("boots"), dict):
        return not wanted["boots"]
    same = all(recorded.get(key) == wanted[key] for key in ("image", "told"))
    boots: dict[str, str] = wanted["boots"]
    return not boots or (same and boots.items() <= recorded["boots"].items())


def context_of(
    cluster: Cluster, board: Board, held: Collection[str], *, endpoint: bool
) -> FirstRunContext:
    """How the steps reach this cluster, and what they use."""

    def run_on(node: Node, argv: Sequence[str], stdin: str | None, timeout: float) -> Result:
        return cluster.remote(node).run(argv, stdin=stdin, timeout=timeout, ok=None)

    return FirstRunContext(
        run_on=run_on,
        network=cluster.driver.network,
        config=cluster.model.config,
        first_model=first_model(cluster, board),
        served=held,
        endpoint=(lambda: answers(cluster)) if endpoint else None,
    )


def first_model(cluster: Cluster, board: Board) -> FirstModel | str:
    """The small model, its files where nodes can fetch them; or why there is none."""
    profile, name = cluster.profile, cluster.profile.verification.first_model
    if name is None:
        return "the profile has no verification.first_model"
    model = catalog.named(profile, name)
    if not model.answers:
        return f"nobody knows an answer of {name}: the profile has no verification.prompts"
    try:
        pull = f"orchestrate model pull {name}"
        found = bring(model, pull, lambda line: board.note(CLUSTER, line))
        files = publish(found, profile.name, name)
    except UserError as error:
        return f"{error.message.splitlines()[0]}. {error.hint or ''}".strip()
    base = f"{boot_parameters.server(profile)}/models/{name}"
    return FirstModel(
        files=[
            {"path": file.path, "url": f"{base}/{file.path}", "sha256": file.sha256}
            for file in files
        ],
        answers=[
            {"question": each.question, "answer": each.answer, "whole": each.whole}
            for each in model.answers
        ],
    )


def served(cluster: Cluster, nodes: Sequence[Node]) -> frozenset[str]:
    """On which nodes an engine runs: it holds their devices."""

    def runs(node: Node) -> bool:
        try:
            said = cluster.remote(node).run(ENGINE, ok=None, timeout=PROBE_TIMEOUT)
        except UserError:
            return False  # the steps say why it does not answer
        return said.code == 0

    return frozenset(node.name for node in nodes if runs(node))


def answers(cluster: Cluster) -> Verdict:
    """Whether the endpoint lists each model, and each answers; else the first failure."""
    found = [_answers(each) for each in cluster.services]
    return next((each for each in found if not each.ok), found[0])


def _answers(cluster: Cluster) -> Verdict:
    question = cluster.model.answers[0] if cluster.model.answers else None
    with cluster.client() as client:
        try:
            listed = judge.listed(cluster.profile, gather.models(client))
            if not listed.ok or question is None:
                return listed
            said = gather.ask(client, cluster.profile, question.question)
        except httpx.TransportError as error:
            return Verdict(False, "an answer of the endpoint", f"{cluster.endpoint}: {error}")
    return judge.answer(question, said)


@dataclass
class Meeting:
    """Where nodes that come up by themselves wait for each other: a step is of all of them."""

    expected: Collection[str]
    run: Callable[[Sequence[str]], Report | None]
    come: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    report: Report | None = None
    error: BaseException | None = None
    _over: Event = field(default_factory=Event)
    _lock: Lock = field(default_factory=Lock)
    _begun: bool = False

    def arrive(self, name: str, limit: float) -> None:
        """Return when the first run has passed. Raises UserError where it did not, or not in time:
        ``limit`` is for the others to come."""
        if name not in self.expected:
            return
        with self._lock:
            self.come.add(name)
        self._go_if_all()
        limit += sum(layer.limit_s for layer in LAYERS)
        if not self._over.wait(limit):
            raise UserError(f"{name}: the first run did not end in {limit:g} s")
        if self.error:
            raise UserError(f"{name}: the first run broke: {self.error}") from self.error
        if self.report and not self.report.ok:
            raise UserError(why(self.report, name), HINT)

    def leave(self, name: str) -> None:
        """It does not come, or has been there."""
        if name in self.expected:
            with self._lock:
                self.gone.add(name)
            self._go_if_all()

    def close(self) -> None:
        """Let nobody wait any more."""
        self.error = self.error or UserError("interrupted")
        self._over.set()

    def _go_if_all(self) -> None:
        with self._lock:
            here = [name for name in self.expected if name in self.come]
            missing = set(self.expected) - self.come - self.gone
            if self._begun or missing or not here or self._over.is_set():
                return
            self._begun = True
        try:
            self.report = self.run(here)
        except BaseException as error:
            self.error = error
            if not isinstance(error, UserError):
                raise
        finally:
            self._over.set()


HINT = "The node stays usable. By itself: orchestrate verify --hardware"


def why(report: Report, name: str) -> str:
    """Why a node goes no further: its own failed steps, or those of others."""
    own = [check for check in report.failed if check.node == name]
    if own:
        return "\n".join(f"{check.name}: {check.seen}\n{check.look}" for check in own)
    others = ", ".join(f"'{check.name}' failed on {check.node}" for check in report.failed)
    return f"not started: {others}"
