"""`orchestrate plan`: what `up` would change."""

from __future__ import annotations

import sys
from typing import Any

import click

from orchestrator.cli.choice import Choice, choice_options
from orchestrator.cli.cluster import json_option, opened
from orchestrator.console import out, print_json
from orchestrator.profile import profile_option


class Looking(click.Command):
    """A command whose exit code 2 means something else than a wrong use, which is 1 here."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        try:
            return super().make_context(*args, **extra)
        except click.UsageError as error:
            vars(error)["exit_code"] = 1
            raise

    def invoke(self, ctx: click.Context) -> Any:
        from orchestrator.errors import UserError

        try:
            return super().invoke(ctx)
        except UserError as error:
            error.exit_code = 1
            raise


@click.command(cls=Looking)
@profile_option
@json_option
@choice_options
def plan(
    profile: str | None,
    as_json: bool,
    choice: Choice,
) -> None:
    """Show what 'up' would change on the nodes. Changes nothing.

    Files are shown as unified differences, of secrets only that they differ; what several nodes
    share is shown once. Exit code 0: nothing differs; 2: something does; 1: could not look (nodes
    that are off or do not answer are named as unknown).

    Example: orchestrate plan --node compute0..compute7 --only base
    """
    from orchestrator.plan import rendered
    from orchestrator.served_model import published

    cluster = opened(profile)
    selection = choice.of(cluster.profile)
    files = published(cluster.profile.name, cluster.profile.serving.model)
    found = cluster.plan(files, selection, choice.jobs)
    if as_json:
        print_json(found.document())
    else:
        for line in rendered(found):
            out.print(line)
    sys.exit(found.code)
