"""The figures of docs/reference/performance.md, from benchmarks/results/*.json.

    .venv/bin/python benchmarks/figures.py

replaces what stands between `<!-- figures: NAME -->` and `<!-- /figures -->`, for each file of
benchmarks/results. A benchmark writes such a file with `--json benchmarks/results/NAME.json`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
PAGE = RESULTS.parents[1] / "docs/reference/performance.md"
MARKED = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- /figures -->)", re.DOTALL)


def rendered(page: str) -> str:
    """The page with the figures that are in the results now. Raises KeyError for one unknown."""
    found = {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}
    return MARKED.sub(lambda mark: f"{mark[1]}{section(found[mark[2]])}{mark[3]}", page)


def section(result: Mapping[str, Any]) -> str:
    """One benchmark's tables and goals, and where they come from."""
    machine, versions = result["machine"], result["versions"]
    said = [f"{key} {value}" for key, value in versions.items() if key not in ("orchestrate",)]
    memory = f"{machine['memory'] / (1 << 30):.0f} GiB"
    where = f"{machine['cpu']}, {machine['cores']} cores, {memory}, Linux {machine['kernel']}"
    lines = [
        f"{result['started'][:10]}, {where}, load {machine['load']:.1f} at the start;",
        f"{', '.join(said)}.",
        "",
    ]
    for each in result["tables"]:
        lines += [*([f"{each['title']}:", ""] if each["title"] else []), *table(each), ""]
    if result["goals"]:
        lines += [*goals(result["goals"]), ""]
    return "\n".join(lines)


def table(each: Mapping[str, Any]) -> Iterator[str]:
    columns: Sequence[str] = each["columns"]
    yield f"| {' | '.join(columns)} |"
    yield f"|---|{'---:|' * (len(columns) - 1)}"
    for row in each["rows"]:
        yield f"| {' | '.join(cell.replace('|', ' ') for cell in row)} |"


def goals(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from ("| goal | at most | measured | |", "|---|---:|---:|---|")
    for each in found:
        met = "met" if each["met"] else "**missed**"
        yield f"| {each['what']} | {each['most']:g} | {each['value']:.2f} | {met} |"


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text()))
