"""What `bench show` and `bench accuracy` print of forecasts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from orchestrator.core.console import out, print_warning

if TYPE_CHECKING:
    from orchestrator.performance.report.score import Scores
    from orchestrator.performance.results.bench import Run


def beside(run: Run) -> None:
    """A run's forecasts beside what was measured."""
    from orchestrator.performance.report.score import score
    from orchestrator.performance.report.tables import phase_row, reasons

    if not run.forecasts:
        return
    found = score(run)
    if found.scored:
        out.print("forecast before it was measured:")
    _table(map(phase_row, found.scored))
    _not_scored(reasons(found.unscored))


def show(found: Scores, cluster: str) -> None:
    """The statistics of all forecasts, the worst ones, and what does not count."""
    from orchestrator.performance.report import tables
    from orchestrator.performance.report.score import groups, totals, worst

    if not found.scored:
        out.print(
            f"No forecast of {cluster} can be scored yet. Run: orchestrate probe; "
            "orchestrate bench run"
        )
    else:
        _table(tables.group_row(each, tables.KEYS) for each in groups(found.scored))
        out.print()
        _table(tables.group_row(each, tables.TOTAL) for each in totals(found.scored))
        out.print(tables.GOAL)
        out.print("\nthe worst:")
        _table(map(tables.named_row, worst(found.scored)))
    _not_scored(tables.reasons(found.unscored))


def _not_scored(lines: Iterable[str]) -> None:
    for line in lines:
        print_warning(f"not scored: {line}")


def _table(rows: Iterable[Mapping[str, str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    every = list(rows)
    if not every:
        return
    table = Table(*every[0], box=None, pad_edge=False)
    for row in every:
        table.add_row(*map(Text, row.values()))
    out.print(table)
