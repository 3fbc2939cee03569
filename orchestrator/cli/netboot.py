"""`orchestrate netboot`: what machines are told when they boot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from orchestrator.cli.where import on_cluster
from orchestrator.core.console import out, print_json, print_text
from orchestrator.provision.netboot import dhcp

if TYPE_CHECKING:
    from orchestrator.profile import Profile


@click.group()
def netboot() -> None:
    """How machines boot from the control node."""


@netboot.command()
@on_cluster
@click.option(
    "--for",
    "server",
    type=click.Choice(list(dhcp.SERVERS)),
    help="Print configuration lines for this DHCP server instead.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def options(profile: Profile, server: str | None, as_json: bool) -> None:
    """Show which DHCP options machines need to boot.

    With boot.dhcp 'off', set these options on the other server. With 'authoritative' and 'proxy',
    the control node sends them itself.

    Example: orchestrate netboot options --for kea
    """
    from rich.table import Table

    if server:
        text = dhcp.lines(profile, server)
        if as_json:
            print_json({"server": server, "lines": text})
        else:
            print_text(text)
        return
    rows = dhcp.options(profile)
    if as_json:
        print_json([{"who": who, "option": name, "value": value} for who, name, value in rows])
        return
    table = Table("client", "option", "value", box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    out.print(table)
