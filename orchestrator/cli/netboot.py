"""`orchestrate netboot`: what machines are told when they boot."""

from __future__ import annotations

import click

from orchestrator.console import out, print_json
from orchestrator.profile import active, profile_option


@click.group()
def netboot() -> None:
    """How machines boot from the control node."""


@netboot.command()
@profile_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def options(profile: str | None, as_json: bool) -> None:
    """Show what a DHCP server has to answer machines that boot.

    For boot.dhcp 'off', to set on the other server; with 'authoritative' and 'proxy' the control
    node answers so by itself.

    Example: orchestrate netboot options
    """
    from rich.table import Table

    from orchestrator.netboot.wire import options as rows_of

    rows = rows_of(active(profile))
    if as_json:
        print_json([{"who": who, "option": name, "value": value} for who, name, value in rows])
        return
    table = Table("who asks", "option", "value", box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    out.print(table)
