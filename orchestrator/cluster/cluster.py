"""A cluster: its profile, built image, keys and machines."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from orchestrator.core import paths
from orchestrator.core.connections import kept, public
from orchestrator.core.errors import UserError
from orchestrator.core.files import locked
from orchestrator.image import ident, store
from orchestrator.models.catalog import Model, served
from orchestrator.models.serving import Layout, resolve_all
from orchestrator.node.remote import Remote
from orchestrator.node.trust import Trust, open_trust
from orchestrator.profile import Node, Profile
from orchestrator.provision.identity import boot_files, principals
from orchestrator.provision.machines import driver
from orchestrator.provision.machines.composed import Driver
from orchestrator.provision.netboot import images
from orchestrator.provision.netboot.diary import Diary
from orchestrator.provision.netboot.images import ImageChoice

#: Timeout in seconds for an answer of the endpoint.
ANSWER_TIMEOUT = 300.0


@dataclass(frozen=True)
class Cluster:
    """Everything that commands need to access a cluster. Opening it changes nothing."""

    profile: Profile
    image: Path
    choice: ImageChoice
    model: Model
    layout: Layout
    trust: Trust
    driver: Driver
    #: Of several models, or of one that is not on all nodes: each with its layout, in the order of
    #: the profile's `services`. Then `model` and `layout` are the first one's.
    parts: tuple[tuple[Model, Layout], ...] = ()
    #: The whole cluster, where this is the part of it that serves one model.
    parent: Cluster | None = None

    @property
    def services(self) -> tuple[Cluster, ...]:
        """A cluster for each model, with the nodes that serve it."""
        if not self.parts:
            return (self,)
        found = zip(self.profile.services, self.parts, strict=True)
        return tuple(
            replace(self, profile=view, model=model, layout=layout, parts=(), parent=self)
            for view, (model, layout) in found
        )

    @property
    def whole(self) -> Cluster:
        return self.parent or self

    @property
    def image_id(self) -> str:
        """The id of the image that nodes should boot; a held image need not be built here."""
        if self.choice.held and self.choice.current:
            return self.choice.current.id
        return ident(self.image)

    @property
    def endpoint(self) -> str:
        """The base URL of the model's API, without /v1."""
        profile = self.profile
        return f"http://{profile.ray_address(profile.control)}:{profile.serving.endpoint_port}"

    def remote(self, node: Node) -> Remote:
        return Remote(node.name, str(self.profile.boot_link(node).address), self.trust)

    def boot(self, node: Node) -> None:
        """Power a node on, with a new identity for this boot.

        A node that netboots requests its identity from the control node instead.
        """
        if self.driver.netboots(node):
            self.driver.power_on(node, {})
            return
        identity = self.trust.host_identity(principals(node))
        files = boot_files(self.profile, node, identity, self.trust.user_ca_public)
        self.driver.power_on(node, files)

    @property
    def diary(self) -> Diary:
        """The log of the boot steps that `up` took."""
        return Diary(paths.cluster(self.profile.name) / "timeline.jsonl")

    def client(self) -> httpx.Client:
        """A client for the endpoint. Use it in a thread that is in the cluster's network."""
        return httpx.Client(**_to_endpoint(self))

    def client_for_load(self) -> httpx.AsyncClient:
        """The same, for as many requests at once as are wanted."""
        return httpx.AsyncClient(**_to_endpoint(self))

    def locked(self, verb: str) -> AbstractContextManager[None]:
        """Hold the lock for changing the cluster. Raises UserError, with its holder, if taken."""
        return locked(
            paths.cluster(self.profile.name) / "changing",
            f"'orchestrate {verb}' (process {os.getpid()})",
            lambda other: UserError(
                f"the cluster {self.profile.name!r} is being changed by {other}",
                "Wait until it ends.",
            ),
        )


def _to_endpoint(cluster: Cluster) -> dict[str, Any]:
    return {
        "base_url": cluster.endpoint,
        "headers": {"Authorization": f"Bearer {cluster.trust.api_key.reveal()}"},
        "timeout": ANSWER_TIMEOUT,
        "limits": kept(),
        "verify": public(),
        "trust_env": False,
    }


def open_cluster(
    profile: Profile, machines: str | None = None, accel: str | None = None
) -> Cluster:
    """Open a profile's cluster; with the profile of one of its models, that part of it.

    `machines`: a driver, instead of the profile's; `accel`: the accelerator of QEMU machines.
    Raises UserError where a model cannot be served as the profile says, the image is not built,
    or the cluster runs with another driver.
    """
    if profile.whole is not profile:
        named = profile.serving.model
        whole = open_cluster(profile.whole, machines, accel)
        return next(each for each in whole.services if each.profile.serving.model == named)
    layouts = resolve_all(profile)  # first: a profile that is refused needs no image
    views = profile.services
    choice = images.read(profile.name)
    if choice.held and choice.current:
        image = images.directory(profile.name, choice.current.id)
    else:
        image = built(profile.image)
    models = [served(view) for view in views]
    return Cluster(
        profile=profile,
        image=image,
        choice=choice,
        model=models[0],
        layout=layouts[0],
        trust=open_trust(profile.name),
        driver=driver(profile, machines, accel),
        parts=() if views == (profile,) else tuple(zip(models, layouts, strict=True)),
    )


def image_of(profile: Profile) -> str:
    """The id of the image that nodes should boot; empty where it is not built."""
    choice = images.read(profile.name)
    if choice.held and choice.current:
        return choice.current.id
    image = store.built(profile.image)
    return ident(image) if image else ""


def built(name: str) -> Path:
    """The store path of the built image `name`. Raises UserError if it is not built."""
    image = store.built(name)
    if image is None:
        raise UserError(
            f"the image {name!r} is not built on this machine",
            f"Run: orchestrate image fetch {name}, then image build {name}",
        )
    return image
