"""`orchestrate control`, and what sends other commands to the control host."""

from __future__ import annotations

import click

from orchestrator.cli.choice import json_option
from orchestrator.cli.sim import replace_by
from orchestrator.cli.where import profile_name_option
from orchestrator.core.console import err, out, print_json
from orchestrator.models.profiles import active


@click.group()
def control() -> None:
    """The control host, from your laptop: sync the checkout, run commands, open a shell.

    Your own ssh reaches it: by the profile's control_host.ssh, else by the control node's name.
    Any command runs there with --on-control; with control_host in the profile, all that concern
    the cluster, its images or models do without it.
    """


@control.command()
@profile_name_option
@json_option
def sync(profile: str | None, as_json: bool) -> None:
    """Copy the checkout to the control host, and set it up there.

    Ignored files are not sent. Files removed here are removed there. The switch is atomic.

    Example: orchestrate control sync --profile 0.1
    """
    from orchestrator.cli.control_host import RemoteCheckout

    host = RemoteCheckout(active(profile))
    done = host.sync(lambda line: err.print(line, markup=False))
    if as_json:
        print_json({"host": host.name, "path": host.path, "files": done.files,
                    "changed": done.changed})  # fmt: skip
    else:
        said = "synced and set up" if done.changed else "nothing changed"
        out.print(f"{host.name}:{host.path}: {done.files} files, {said}", markup=False)


@control.command(context_settings={"ignore_unknown_options": True})
@profile_name_option
@click.argument("words", metavar="COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
def cmd(profile: str | None, words: tuple[str, ...]) -> None:
    """Run a command in the checkout on the control host, as your account there.

    Example: orchestrate control cmd -- journalctl -u orchestrate-watch -n 50
    """
    from orchestrator.cli.control_host import RemoteCheckout

    replace_by(RemoteCheckout(active(profile)).shell_argv(words))


@control.command()
@profile_name_option
def ssh(profile: str | None) -> None:
    """Open a shell in the checkout on the control host.

    Example: orchestrate control ssh
    """
    from orchestrator.cli.control_host import RemoteCheckout

    replace_by(RemoteCheckout(active(profile)).shell_argv())
