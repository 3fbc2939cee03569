"""docs/reference/accuracy.md, from the forecasts in benchmarks/results/forecasts.

    .venv/bin/python benchmarks/accuracy.py [RUN.json]...

Each RUN.json, a run that `orchestrate bench run` stored in the state directory, is first added to
that directory, without its series: they are large, and no score depends on them. Then the page is
written. Forecasts that were made after their measurement are in files of their own, each with
``what``, ``how`` and ``phases`` (report/score.py: Scored). What real_cards.py measured is scored
too, by the product as it is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import held_out
from figures import table
from pydantic import TypeAdapter

from orchestrator.core.files import write_json
from orchestrator.performance.bench import history
from orchestrator.performance.report import tables
from orchestrator.performance.report.score import (
    Scored,
    Scores,
    Seal,
    groups,
    score,
    totals,
    worst,
)
from orchestrator.performance.results.bench import Run

FORECASTS = Path(__file__).resolve().parent / "results/forecasts"
PAGE = FORECASTS.parents[2] / "docs/reference/accuracy.md"
BEGIN, END = "<!-- forecasts -->\n", "<!-- /forecasts -->"
TITLES = {
    Seal.SEALED: "Sealed: made before the measurement",
    Seal.HELD_OUT: "Held out: made from the engine under other loads",
    Seal.AFTER: "Made after the measurement",
}


@dataclass(frozen=True)
class Source:
    """One file: what was measured, how it was forecast, and the scores."""

    what: str
    how: str
    scores: Scores


def add(file: Path) -> Path:
    """Copy a run into the repository, without its series. Returns the new file."""
    run = history.read(file)
    small = replace(run, series=(), clocks_s={})
    to = FORECASTS / f"{run.provenance.profile}-{run.id}.json"
    write_json(to, TypeAdapter(Run).dump_python(small, mode="json"))
    return to


def sources() -> list[Source]:
    """Every file, by name."""
    return [
        *map(_source, sorted(FORECASTS.glob("*.json"))),
        *map(_cards, held_out.files()),
    ]


def _cards(path: Path) -> Source:
    about = json.loads(path.read_text())["about"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    how = f"`benchmarks/real_cards.py`, by the product as it is; {versions}."
    how += f" Not measured: {about['not measured']}."
    return Source(f"{about['machine']}, {about['when']}", how, held_out.scores(path))


def _source(path: Path) -> Source:
    document = json.loads(path.read_text())
    if "phases" in document:
        phases = TypeAdapter(tuple[Scored, ...]).validate_python(document["phases"])
        return Source(document["what"], document["how"], Scores(phases))
    run = history.read(path)
    found = run.provenance
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    return Source(
        f"{found.profile}, run {run.id}",
        f"{found.model}, {found.layout}, {found.machine}; {versions}.",
        score(run),
    )


def rendered(page: str, every: Iterable[Source]) -> str:
    """The page with the scores that the results have now."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + "\n".join(_sections(list(every))) + "\n" + END + after


def _sections(every: list[Source]) -> Iterator[str]:
    scored = [each for source in every for each in source.scores.scored]
    for seal, found in tables.split(scored).items():
        yield f"\n## {TITLES[seal]}\n"
        if not found:
            yield "No such forecast is in the repository yet."
            continue
        yield from _rows(tables.group_row(each, tables.TOTAL) for each in totals(found))
        yield f"\n{tables.GOAL} By kind of phase:\n"
        yield from _rows(tables.group_row(each, tables.KEYS) for each in groups(found))
        yield "\nThe worst:\n"
        yield from _rows(map(tables.named_row, worst(found)))
    yield "\n## Every phase"
    for source in every:
        yield f"\n### {source.what}\n\n{source.how}"
        if phases := source.scores.scored:
            yield ""
            yield from _rows(tables.group_row(each, tables.TOTAL) for each in totals(phases))
            yield ""
            yield from _rows(map(tables.phase_row, phases))
        for line in tables.reasons(source.scores.unscored):
            yield f"\nNot scored: {line}"


def _rows(rows: Iterable[Mapping[str, str]]) -> Iterator[str]:
    every = list(rows)
    if every:
        columns = list(every[0])
        yield from table({"columns": columns, "rows": [list(row.values()) for row in every]})


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(add(Path(name)))
    PAGE.write_text(rendered(PAGE.read_text(), sources()))
