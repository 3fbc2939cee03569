"""Which image a cluster's nodes boot: publish it, use another one, roll back."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.cluster import kernels
from orchestrator.cluster.cluster import Cluster, built
from orchestrator.core.errors import UserError
from orchestrator.provision.netboot import images
from orchestrator.provision.netboot.images import ImageChoice
from orchestrator.provision.netboot.publish import publish as publish_netboot


def publish_image(cluster: Cluster) -> bool:
    """Serve the image and boot documents to booting machines. Returns whether anything changed.

    A newly built image becomes the current one, unless another one is held.
    """
    choice = cluster.choice
    if not choice.held or choice.current is None:
        choice = choice.moved(
            images.publish(cluster.profile.name, cluster.profile.image, cluster.image)
        )
    return _serve(cluster, choice)


def use_image(cluster: Cluster, name: str) -> ImageChoice:
    """Make nodes boot the built image `name` from now on. Raises UserError if it is not built."""
    image = images.publish(cluster.profile.name, name, built(name))
    # Hold an image other than the profile's, or `up` would switch back to the profile's.
    choice = replace(cluster.choice.moved(image), held=name != cluster.profile.image)
    _serve(cluster, choice)
    return choice


def roll_back_image(cluster: Cluster) -> ImageChoice:
    """Make nodes boot the previous image. Raises UserError if there is none, or it was removed."""
    choice = cluster.choice.back()
    assert choice.current is not None
    if not images.directory(cluster.profile.name, choice.current.id).is_dir():
        raise UserError(
            f"the files of the previous image, {choice.current.id[:12]}, are missing",
            "Choose one: orchestrate image use NAME",
        )
    _serve(cluster, choice)
    return choice


def _serve(cluster: Cluster, choice: ImageChoice) -> bool:
    name = cluster.profile.name
    changed = publish_netboot(cluster.profile, choice, cluster.trust.user_ca_public)
    if choice != images.read(name):
        images.write(name, choice)
    images.forget_others(name, choice)
    kernels.forget(name, [image.id for image in (choice.current, choice.previous) if image])
    return changed
