"""`orchestrate control`, and what sends other commands to the control host."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from orchestrator.cli.cluster import json_option
from orchestrator.cli.sim import replace_by
from orchestrator.core.console import err, out, print_json
from orchestrator.profile import active, profile_option

if TYPE_CHECKING:
    from orchestrator.profile import Profile


#: The commands that run others, which may read their standard input.
READ_INPUT = (("node", "ssh"), ("sim", "shell"))


@click.group()
def control() -> None:
    """The control host, from your laptop: sync the checkout, run commands, open a shell.

    Your own ssh reaches it: by the profile's control_host.ssh, else by the control node's name.
    Any command runs there with --on-control; with control_host in the profile, all that concern
    the cluster, its images or models do without it.
    """


@control.command()
@profile_option
@json_option
def sync(profile: str | None, as_json: bool) -> None:
    """Bring the checkout to the control host as it is here, and set it up there.

    What git ignores stays here; what was removed here is removed there. Nothing is half replaced.

    Example: orchestrate control sync --profile 0.1
    """
    from orchestrator.cli.control_host import ControlHost

    host = ControlHost(active(profile, anywhere=True))
    done = host.sync(lambda line: err.print(line, markup=False))
    if as_json:
        print_json({"host": host.name, "path": host.path, "files": done.files,
                    "changed": done.changed})  # fmt: skip
    else:
        said = "synced and set up" if done.changed else "nothing changed"
        out.print(f"{host.name}:{host.path}: {done.files} files, {said}", markup=False)


@control.command(context_settings={"ignore_unknown_options": True})
@profile_option
@click.argument("words", metavar="COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
def cmd(profile: str | None, words: tuple[str, ...]) -> None:
    """Run a command in the checkout on the control host, as your account there.

    Example: orchestrate control cmd -- journalctl -u orchestrate-watch -n 50
    """
    from orchestrator.cli.control_host import ControlHost

    replace_by(ControlHost(active(profile, anywhere=True)).shell_argv(words))


@control.command()
@profile_option
def ssh(profile: str | None) -> None:
    """Open a shell in the checkout on the control host.

    Example: orchestrate control ssh
    """
    from orchestrator.cli.control_host import ControlHost

    replace_by(ControlHost(active(profile, anywhere=True)).shell_argv())


def run_there(profile: Profile, words: list[str]) -> int:
    """Sync, then run this very command on the control host; its exit code."""
    from orchestrator.cli.control_host import SSH_FAILED, ControlHost

    host = ControlHost(profile)
    host.sync(lambda line: err.print(line, markup=False))
    sys.stdout.flush()
    code = host.run(without_profile(words), reads_input=tuple(words[:2]) in READ_INPUT)
    if code == SSH_FAILED:
        err.print(f"{host.name}: the connection broke; what ran there is interrupted", markup=False)
    return code


def without_profile(words: list[str]) -> list[str]:
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
