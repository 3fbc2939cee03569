"""What several verbs have: --json, the choice of nodes and steps, an exit code for "differs"."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

from orchestrator.cli import complete
from orchestrator.core.slots import JOBS
from orchestrator.node.resources import Step

if TYPE_CHECKING:
    from orchestrator.node.selection import Selection
    from orchestrator.profile import Profile

Verb = Callable[..., Any]
_Command = TypeVar("_Command", bound=Verb)


class Looking(click.Command):
    """A command whose exit code 2 means something else than a wrong use, which is 1 here."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        try:
            return super().make_context(*args, **extra)
        except click.UsageError as error:
            vars(error)["exit_code"] = 1
            raise

    def invoke(self, ctx: click.Context) -> Any:
        from orchestrator.core.errors import UserError

        try:
            return super().invoke(ctx)
        except (UserError, click.UsageError) as error:
            vars(error)["exit_code"] = 1
            raise


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


model_option = click.option(
    "--model",
    metavar="NAME",
    help="Which of the profile's models. Default: the only one, or the first.",
)


def of_model(profile: Profile, name: str | None) -> Profile:
    """The part of a profile that is about one model. Raises BadInput for an unknown name."""
    from orchestrator.core.console import err
    from orchestrator.profile import services

    if name:
        return services.of_model(profile, name)
    first, *others = profile.services
    if others:
        names = ", ".join(each.serving.model for each in others)
        told = f"model {first.serving.model}; --model NAME takes another one: {names}"
        err.print(told, markup=False, soft_wrap=True)
    return first


def must_be_alone(profile: Profile, option: str) -> None:
    """Raises BadInput for an option that serves a model otherwise for a while, beside others."""
    from orchestrator.core.errors import BadInput

    if profile.whole is not profile:
        raise BadInput(
            f"{option} is only for a profile of one model, on all compute nodes",
            "Make a profile that serves this model alone.",
        )


def nodes_option(text: str) -> Callable[[_Command], _Command]:
    """``--node NAMES``, several times if wished; the verb gets it as ``nodes``."""
    return click.option(
        "--node", "nodes", metavar="NAMES", multiple=True, shell_complete=complete.nodes, help=text
    )


OPTIONS = (
    nodes_option(
        "Only these nodes: names, indexes of compute nodes (from 0), sets such as compute[0-7];"
        " separated by commas, or repeat the option.",
    ),
    click.option(
        "--exclude",
        "excluded",
        metavar="NAMES",
        multiple=True,
        shell_complete=complete.nodes,
        help="All nodes except these; same syntax as --node.",
    ),
    click.option(
        "--only",
        type=click.Choice([step.value for step in Step]),
        help="Only this step of the desired state.",
    ),
    click.option(
        "--jobs",
        type=click.IntRange(min=1),
        default=JOBS,
        show_default=True,
        help="Nodes in parallel. A slow or dead node stops counting after 10 s.",
    ),
)


@dataclass(frozen=True)
class NodeChoice:
    """What the user chose."""

    nodes: Sequence[str]
    excluded: Sequence[str]
    only: str | None
    jobs: int

    def of(self, profile: Profile) -> Selection:
        """The nodes and steps. Raises BadInput for nodes that the profile does not have."""
        from orchestrator.node.selection import select

        return select(profile, self.nodes, self.excluded, Step(self.only) if self.only else None)


def choice_options(verb: Verb) -> Verb:
    """Give a verb --node, --exclude, --only and --jobs, as one parameter `choice`."""

    @wraps(verb)
    def with_choice(
        *, nodes: Sequence[str], excluded: Sequence[str], only: str | None, jobs: int, **others: Any
    ) -> Any:
        return verb(choice=NodeChoice(nodes, excluded, only, jobs), **others)

    for option in reversed(OPTIONS):
        with_choice = option(with_choice)
    return with_choice
