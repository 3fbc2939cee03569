"""What `plan` and `up` share about ``serving.layout: auto``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from orchestrator.core.console import out

if TYPE_CHECKING:
    from orchestrator.cluster.cluster import Cluster
    from orchestrator.performance.predict.auto import Settled
    from orchestrator.profile import Profile

change_layout_option = click.option(
    "--change-layout",
    is_flag=True,
    help="With 'serving.layout: auto': take the layout that 'plan' says would be better. Without"
    " this, what was chosen before stays. Changing it loads the model again.",
)


def settled_layout(
    cluster: Cluster, *, change: bool, write: bool = False
) -> tuple[Cluster, Settled | None]:
    """The cluster in the layout that `up` serves, and how that was settled; None where the profile
    has the sizes. ``change``: take what is pending; ``write``: from now on, this is it."""
    from orchestrator.models import chosen

    settled = settled_profile(cluster.profile, cluster.image_id, change=change)
    if settled is None:
        return cluster, None
    if write and settled.new:
        chosen.write(cluster.profile.name, settled.choice)
    return replace(cluster, layout=settled.layout), settled


def settled_profile(
    profile: Profile, image_id: str | None = None, *, change: bool = False
) -> Settled | None:
    """As ``settled_layout``, also where no image is built."""
    from orchestrator.cluster.cluster import image_of
    from orchestrator.core.errors import BadInput
    from orchestrator.performance.predict.auto import settle

    if profile.serving.layout is None:
        if change:
            where = profile.where("serving")
            raise BadInput(
                f"--change-layout: {where} has no 'layout: auto', but sizes of its own",
                "Change them there: tensor_parallel, pipeline_parallel, data_parallel.",
            )
        return None
    return settle(profile, image_of(profile) if image_id is None else image_id, change=change)


def tell_layout(settled: Settled | None) -> None:
    """Say which layout is served, and why."""
    for line in settled.lines if settled else ():
        out.print(f"layout: {line}", markup=False, soft_wrap=True)
