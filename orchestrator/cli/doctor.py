"""`orchestrate doctor`: what limits a cluster that others run, in one page."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.attach import Attaching, asking
from orchestrator.cli.choice import json_option
from orchestrator.core.console import out, print_json, print_warning

if TYPE_CHECKING:
    from orchestrator.attach.doctor import Diagnosis
    from orchestrator.attach.find import ClusterFound


@click.command()
@asking
@json_option
def doctor(asked: Attaching, as_json: bool) -> None:
    """Say in one page what limits a cluster that others run, and what to change first.

    'attach', 'verify' and a short load (three times one request, and eight at once), then the
    verdict: what limits, how sure that is, what to change and what it brings at most. The profile
    and the run are kept in the state directory, for the other commands. Exit code 1 if a check
    failed or no load was possible.

    \b
    Example: orchestrate doctor http://localhost:8000 --node localhost
    """
    from orchestrator.attach import compose
    from orchestrator.attach.bench import own_home
    from orchestrator.attach.doctor import diagnose
    from orchestrator.core import paths
    from orchestrator.core.files import write
    from orchestrator.core.progress import Board
    from orchestrator.profile.load import load_attached

    with ExitStack() as stack, Board(quiet=as_json) as board:
        with board.step("cluster", "attach"):
            found = asked.found()
        name = asked.profile_name(found)
        path = paths.cluster(name) / "attached.yml"
        try:
            own_home(name)
            write(path, compose.text(found, name))
        except OSError as error:
            print_warning(f"nothing is kept: {path}: {error.strerror}")
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="orchestrate-doctor-"))
            os.environ["ORCHESTRATE_STATE"] = scratch
            path = Path(scratch) / "attached.yml"
            write(path, compose.text(found, name))
        diagnosis = diagnose(load_attached(path), board)
        kept = path.is_relative_to(paths.cluster(name))
    if as_json:
        document = diagnosis.document() | {"profile": str(path) if kept else None}
        print_json({**document, "cluster": found.document()})
    else:
        _show(found, diagnosis, path if kept else None)
    raise SystemExit(0 if diagnosis.report.ok and diagnosis.run else 1)


def _show(found: ClusterFound, diagnosis: Diagnosis, path: Path | None) -> None:
    from orchestrator.attach.doctor import FIRST
    from orchestrator.attach.find import told
    from orchestrator.cli.bench import figures

    _title("The cluster")
    for line in told(found):
        out.print(f"  {line}")
    _title("Checks")
    out.print(f"  {diagnosis.report.summary}")
    for check in (*diagnosis.report.failed, *diagnosis.report.warnings):
        kind = "FAILED" if check.failed else "warning"
        out.print(
            f"  {kind}: {check.node}: {check.name}: {check.seen} (expected: {check.expected})"
        )
    _title("A short load")
    if diagnosis.run:
        figures(diagnosis.run)
    if diagnosis.note:
        out.print(f"  {diagnosis.note}")
    _title("What limits, and what to change first")
    for number, each in enumerate(diagnosis.findings[:FIRST], 1):
        out.print(f"  {number}. {each.what} ({each.sure}): {each.seen}.")
        out.print(f"     {each.change}.")
    for each in diagnosis.findings[FIRST:]:
        out.print(f"  also: {each.what} ({each.sure}): {each.seen}.")
    if not diagnosis.findings:
        out.print("  No limit shows in this load's counters.")
    if found.unknown:
        _title("Not found out")
        for line in found.unknown:
            out.print(f"  {line}")
    if path:
        _title("See more")
        for words in ("verify", "bench run", "bench report"):
            out.print(f"  orchestrate {words} --profile {path}")


def _title(text: str) -> None:
    out.print()
    out.print(text, style="bold")
