"""Every command of the command line."""

from __future__ import annotations

from collections.abc import Iterator

import click

from orchestrator.cli import orchestrate


def leaves(
    group: click.Group = orchestrate, path: str = "orchestrate"
) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from leaves(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command
