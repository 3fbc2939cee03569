"""A cluster as one thing: profile, built image, keys and machines together."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from orchestrator.cluster.desired import Context, desired
from orchestrator.core import paths
from orchestrator.core.errors import UserError
from orchestrator.core.files import locked
from orchestrator.core.run import Result
from orchestrator.core.slots import JOBS
from orchestrator.image import ident, store
from orchestrator.models import capacity
from orchestrator.models.catalog import Model, ModelFile, served
from orchestrator.models.profiles import how_to_pull
from orchestrator.models.publish import bring, publish
from orchestrator.models.serving import Layout, resolve
from orchestrator.node import configure
from orchestrator.node.plan import Plan
from orchestrator.node.remote import Remote
from orchestrator.node.selection import Selection, everything
from orchestrator.node.trust import Trust, open_trust
from orchestrator.profile import Node, Profile
from orchestrator.provision.identity import boot_files, principals
from orchestrator.provision.machines import Driver, driver
from orchestrator.provision.netboot import images
from orchestrator.provision.netboot.diary import Diary
from orchestrator.provision.netboot.images import ImageChoice
from orchestrator.provision.netboot.publish import publish as publish_netboot
from orchestrator.verify.gather import VerifyContext

#: Seconds that the endpoint may take to answer a question.
ANSWER_TIMEOUT = 300.0


@dataclass(frozen=True)
class Cluster:
    """All that a verb needs to reach and to judge a cluster. Opening one changes nothing on it."""

    profile: Profile
    image: Path
    choice: ImageChoice
    model: Model
    layout: Layout
    trust: Trust
    driver: Driver

    @property
    def image_id(self) -> str:
        """The id of the image that nodes should have; a held one is known without its files."""
        if self.choice.held and self.choice.current:
            return self.choice.current.id
        return ident(self.image)

    @property
    def endpoint(self) -> str:
        """Where the model is reached, without /v1."""
        profile = self.profile
        return f"http://{profile.ray_address(profile.control)}:{profile.serving.endpoint_port}"

    def remote(self, node: Node) -> Remote:
        return Remote(node.name, str(self.profile.boot_link(node).address), self.trust)

    def boot(self, node: Node) -> None:
        """Power a node on, with an identity of its own for this boot.

        A node that netboots asks for it when it is that far.
        """
        if self.driver.netboots(node):
            self.driver.power_on(node, {})
            return
        identity = self.trust.host_identity(principals(node))
        files = boot_files(self.profile, node, identity, self.trust.user_ca_public)
        self.driver.power_on(node, files)

    @property
    def diary(self) -> Diary:
        """Where `up` writes down what it did to each node."""
        return Diary(paths.cluster(self.profile.name) / "timeline.jsonl")

    def publish_image(self) -> bool:
        """Serve the image to machines that boot, with all that they are told; whether that changed.

        An image that was built anew becomes the current one, unless another one is held.
        """
        choice = self.choice
        if not choice.held or choice.current is None:
            choice = choice.moved(images.publish(self.profile.name, self.profile.image, self.image))
        return self._serve(choice)

    def use_image(self, name: str) -> ImageChoice:
        """Let nodes boot the built image `name` from now on. Raises UserError where it is none."""
        image = images.publish(self.profile.name, name, built(name))
        # Another image than the profile's is held: `up` would go back to that one.
        choice = replace(self.choice.moved(image), held=name != self.profile.image)
        self._serve(choice)
        return choice

    def roll_back_image(self) -> ImageChoice:
        """Let nodes boot the image before. Raises UserError where there is none (any more)."""
        choice = self.choice.back()
        assert choice.current is not None
        if not images.directory(self.profile.name, choice.current.id).is_dir():
            raise UserError(
                f"the files of the image before, {choice.current.id[:12]}, are gone",
                "Choose one: orchestrate image use NAME",
            )
        self._serve(choice)
        return choice

    def _serve(self, choice: ImageChoice) -> bool:
        name = self.profile.name
        changed = publish_netboot(self.profile, choice, self.trust.user_ca_public)
        if choice != images.read(name):
            images.write(name, choice)
        images.forget_others(name, choice)
        return changed

    def publish_model(self, line: Callable[[str], None]) -> tuple[ModelFile, ...]:
        """Make the model or take it from the hub's files, and put it where nodes can fetch it."""
        source = bring(self.model, how_to_pull(self.profile), line)
        return publish(source, self.profile.name, self.model.name)

    def short_of_memory(self, seen: Mapping[str, int] | None = None) -> list[str]:
        """Why the model has no room in nodes' memory; ``seen``: bytes that nodes said they have."""
        boots = self.driver.netboots(self.profile.server)
        return list(
            capacity.misfits(
                self.profile,
                capacity.of_model(self.model),
                capacity.of_image(self.image) if boots else 0,
                capacity.of_nodes(self.profile, seen or {}),
            )
        )

    def targets(self, files: Sequence[ModelFile]) -> dict[str, configure.Target]:
        """By node, what it has to be."""
        context = Context(
            operator_public=self.trust.operator_public,
            ray_token=self.trust.ray_token,
            api_key=self.trust.api_key,
            host_ca=self.trust.host_ca,
            user_ca_public=self.trust.user_ca_public,
            layout=self.layout,
            model_files=tuple(files),
        )
        return {
            node.name: configure.Target(self.remote(node), desired(self.profile, node, context))
            for node in self.profile.nodes
        }

    def plan(
        self, files: Sequence[ModelFile], chosen: Selection | None = None, jobs: int = JOBS
    ) -> Plan:
        """What `up` would change on the chosen nodes; changes nothing. Machines that are off, and
        such as do not answer, are unknown."""
        chosen = chosen or everything(self.profile)
        targets = self.targets(files)
        on = [node.name for node in chosen.nodes if self.driver.running(node)]
        outcomes: dict[str, configure.Outcome] = {}
        if on:
            with self.driver.network():
                asked = [targets[name].only(chosen.steps) for name in on]
                outcomes = configure.plan(asked, jobs=jobs)
        off = tuple(name for name in chosen.names if name not in on)
        unknown = configure.Outcome(error="it is off")
        seen = {name: each.facts["memory_bytes"] for name, each in outcomes.items() if each.facts}
        return Plan(
            {name: outcomes.get(name, unknown) for name in chosen.names},
            off,
            tuple(self.short_of_memory(seen)),
        )

    def client(self) -> httpx.Client:
        """A client of the endpoint. It connects from the network of the thread that uses it."""
        return httpx.Client(
            base_url=self.endpoint,
            headers={"Authorization": f"Bearer {self.trust.api_key.reveal()}"},
            timeout=ANSWER_TIMEOUT,
            trust_env=False,
        )

    def verify_context(
        self, files: Sequence[ModelFile], chosen: Selection | None = None, jobs: int = JOBS
    ) -> VerifyContext:
        """How verification reaches this cluster, and what it should hold."""
        targets = self.targets(files)

        def run_on(node: Node, argv: Sequence[str], stdin: str | None, timeout: float) -> Result:
            return self.remote(node).run(argv, stdin=stdin, timeout=timeout, ok=None)

        def plan() -> Mapping[str, Sequence[str]]:
            found = self.plan(files, chosen, jobs)
            return {name: differences(outcome) for name, outcome in found.outcomes.items()}

        return VerifyContext(
            run_on=run_on,
            http=self.client,
            network=self.driver.network,
            plan=plan,
            units={name: [u.name for u in target.state.units] for name, target in targets.items()},
            layout=self.layout,
            answers=self.model.answers,
            image_id=self.image_id,
        )

    def locked(self, verb: str) -> AbstractContextManager[None]:
        """Only one verb at a time changes a cluster. Raises UserError naming who does."""
        return locked(
            paths.cluster(self.profile.name) / "changing",
            f"'orchestrate {verb}' (process {os.getpid()})",
            lambda other: UserError(
                f"the cluster {self.profile.name!r} is being changed by {other}",
                "Wait until it ends.",
            ),
        )


def open_cluster(
    profile: Profile, machines: str | None = None, accel: str | None = None
) -> Cluster:
    """Put a cluster together; `machines` names another driver than the profile does, `accel` what
    QEMU machines run under.

    Raises UserError where the image is not built, or the cluster runs with another driver.
    """
    choice = images.read(profile.name)
    if choice.held and choice.current:
        image = images.directory(profile.name, choice.current.id)
    else:
        image = built(profile.image)
    return Cluster(
        profile=profile,
        image=image,
        choice=choice,
        model=served(profile),
        layout=resolve(profile),
        trust=open_trust(profile.name),
        driver=driver(profile, machines, accel),
    )


def built(name: str) -> Path:
    """The built image `name`. Raises UserError where it is not built."""
    image = store.built(name)
    if image is None:
        raise UserError(
            f"the image {name!r} is not built on this machine",
            f"Run: orchestrate image fetch {name}, then image build {name}",
        )
    return image


def differences(outcome: configure.Outcome) -> list[str]:
    """What a plan found on one node, a line each; a node that could not be asked is one."""
    if outcome.error:
        return [outcome.error]
    return [item.line for item in outcome.differences]
