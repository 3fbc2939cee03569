"""All forecasts that were ever made on a cluster, and those of given files, with their scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from orchestrator.core.errors import BadInput
from orchestrator.performance.bench import history
from orchestrator.performance.report.score import Scores, Unscored, groups, score, totals, worst
from orchestrator.performance.results.bench import Run


def gathered(cluster: str | None, files: Sequence[Path]) -> Scores:
    """The scores of a cluster's kept runs and of run files, each run once.

    A kept run that cannot be read is named and left out. Raises BadInput for a given file that
    holds no run.
    """
    found = Scores()
    seen = set()
    for one in [*(_kept(cluster) if cluster else ()), *map(history.read, files)]:
        if isinstance(one, Unscored):
            found = found.plus(Scores(unscored=(one,)))
        elif (key := (one.provenance.profile, one.id)) not in seen:
            seen.add(key)
            found = found.plus(score(one))
    return found


def _kept(cluster: str) -> Iterator[Run | Unscored]:
    for name in history.names(cluster):
        try:
            yield history.load(cluster, name)
        except BadInput as error:
            yield Unscored(name, "", error.message)


def document(found: Scores) -> dict[str, Any]:
    """The scores and their statistics as JSON types."""
    chosen = {
        "groups": groups(found.scored),
        "totals": totals(found.scored),
        "worst": [
            {"name": each.name, "off": each.off, "forecast_s": each.forecast_s,
             "measured_s": each.measured_s}
            for each in worst(found.scored)
        ],
        "phases": [
            TypeAdapter(type(each)).dump_python(each, mode="json")
            | {"off": each.off, "good": each.good, "inside": each.inside}
            for each in found.scored
        ],
        "not_scored": found.unscored,
    }  # fmt: skip
    plain: dict[str, Any] = TypeAdapter(dict[str, Any]).dump_python(chosen, mode="json")
    return plain
