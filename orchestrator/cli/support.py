"""`orchestrate support-bundle`: what somebody else needs to see what is wrong."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.choice import json_option
from orchestrator.cli.where import on_cluster
from orchestrator.core.console import err, out, print_json
from orchestrator.core.sizes import human_size

if TYPE_CHECKING:
    from orchestrator.profile import Profile


@click.command("support-bundle")
@on_cluster
@json_option
@click.option(
    "--out",
    "to",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help="Default: a name with profile and time, in the state directory. '-' is standard output.",
)
def support_bundle(profile: Profile, as_json: bool, to: Path | None) -> None:
    """Write logs, versions, facts and check results of all nodes to one archive, without secrets.

    Works with nodes that are off and with nothing up; the manifest inside lists what is missing,
    and why. Keys, tokens and passwords are removed, also from logs. Look through it before you
    send it.

    \b
    Example: orchestrate support-bundle
    Example: orchestrate support-bundle --out - >bundle.tar.gz
    """
    from orchestrator.cluster.support import make
    from orchestrator.core import paths
    from orchestrator.core.progress import Board

    name = f"orchestrate-{profile.name}-{time.strftime('%Y%m%dT%H%M%S')}.tar.gz"
    if to == Path("-"):
        if as_json:
            raise click.UsageError("--json and --out - cannot be combined")
        with tempfile.TemporaryDirectory() as scratch, Board() as board:
            made = make(profile, Path(scratch, name), board)
            with Path(made.path).open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
        _show_missing(made.missing)
        return
    with Board(quiet=as_json) as board:
        made = make(profile, to or paths.state() / "support" / name, board)
    if as_json:
        print_json(asdict(made))
        return
    _show_missing(made.missing)
    size = f"{human_size(made.size)}, {made.files} files, {made.redacted} secrets removed"
    out.print(f"{made.path}: {size}", markup=False, soft_wrap=True)


def _show_missing(missing: Mapping[str, str]) -> None:
    for name, why in missing.items():
        first = why.partition("\n")[0]
        err.print(f"missing: {name}: {first}", markup=False, soft_wrap=True)
