"""Where a command runs: here, or on the control host of the profile that it is about.

Each verb says by a decorator what it is about; what has none of them runs here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import wraps
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

import click

from orchestrator.cli import complete
from orchestrator.core.console import err
from orchestrator.core.errors import BadInput
from orchestrator.profile.choose import VARIABLE

if TYPE_CHECKING:
    from orchestrator.profile import Profile

_Verb = TypeVar("_Verb", bound=Callable[..., Any])

#: The key of a context's ``meta`` with the words after ``orchestrate``.
WORDS = __name__
#: The commands that run others, which may read their standard input.
READ_INPUT = (("node", "ssh"), ("sim", "shell"))

profile_name_option = click.option(
    "--profile",
    metavar="NAME_OR_PATH",
    shell_complete=complete.profiles,
    help=f"The cluster's profile. Default: ${VARIABLE}, else what 'profile use' chose.",
)


def on_cluster(
    verb: Callable[..., Any],
    *,
    pinned: bool = True,
    attached: str | bool = False,
    alone: Callable[[dict[str, Any]], bool] = lambda _: False,
    here: Callable[[dict[str, Any]], bool] = lambda _: False,
) -> Callable[..., Any]:
    """A verb about a cluster, with ``--profile``: it gets the checked ``profile``.

    It runs on the profile's control host, but with ``--machines``: those are this computer's.
    Not ``pinned``: also where the served model lacks its commit. ``attached``: MODULE:VERB for a
    cluster that others run, with the same parameters; true: the verb takes both kinds of profile;
    without it, such a cluster is refused. ``alone``: whether the other parameters say all, so that
    without --profile the verb gets none. ``here``: whether, by the other parameters, the verb runs
    here although the control host is another computer.
    """

    @wraps(verb)
    def there(*, profile: str | None, **others: Any) -> Any:
        from orchestrator.profile.load import attached_profile

        if profile is None and alone(others):
            return verb(profile=None, **others)
        if attached and (theirs := attached_profile(profile)):
            if (named := others.get("model")) and named != theirs.serving.model:
                raise BadInput(f"{theirs.name} serves {theirs.serving.model}, not '{named}'")
            if attached is not True:
                others.pop("model", None)
            module, _, name = str(attached).partition(":")
            instead = verb if attached is True else getattr(import_module(module), name)
            return instead(profile=theirs, **others)
        from orchestrator.models.profiles import active

        chosen = active(profile, pinned=pinned)
        if others.get("machines") is None and not here(others):
            go(chosen)
        return verb(profile=chosen, **others)

    return profile_name_option(there)


def on_clusters_computer(verb: _Verb) -> _Verb:
    """A verb about the cluster's computer and no cluster: images, models.

    Without an active profile, or with a wrong one, it runs here.
    """

    @wraps(verb)
    def there(**parameters: Any) -> Any:
        from orchestrator.models.profiles import active

        try:
            chosen = active()
        except BadInput:
            return verb(**parameters)
        go(chosen)
        return verb(**parameters)

    return there  # type: ignore[return-value]


def go(profile: Profile) -> None:
    """Run this command on the control host and end with its exit code, if there is another one."""
    if not profile.control_host:
        return
    from orchestrator.cli.control_host import is_here

    if not is_here(profile):
        context = click.get_current_context()
        context.exit(run_there(profile, context.meta[WORDS]))


def run_there(profile: Profile, words: Sequence[str]) -> int:
    """Sync, then run this very command on the control host; its exit code."""
    from orchestrator.cli.control_host import SSH_FAILED, RemoteCheckout

    host = RemoteCheckout(profile)
    host.sync(lambda line: err.print(line, markup=False))
    sys.stdout.flush()
    code = host.run(without_profile(words), reads_input=tuple(words[:2]) in READ_INPUT)
    if code == SSH_FAILED:
        err.print(f"{host.name}: connection lost; the command there was interrupted", markup=False)
    return code


def without_profile(words: Sequence[str]) -> list[str]:
    """The words without --profile: there the profile is named by a variable."""
    left: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--":
            return [*left, word, *rest]
        if word == "--profile":
            next(rest, None)
        elif not word.startswith("--profile="):
            left.append(word)
    return left
