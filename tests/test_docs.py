"""The documentation against the code: generated pages, commands, targets, links, the version."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from orchestrator.cli import ON_CONTROL, orchestrate

PROJECT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    [*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md"), *(PROJECT / "images").glob("*.md")]
)


def code(text: str) -> Iterator[str]:
    """What a page shows as code: the lines of its blocks, and spans inside other lines."""
    fenced = False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip().removeprefix("$ ").removeprefix("# ")
        else:
            yield from re.findall(r"`([^`]+)`", line)


def commands(text: str, program: str) -> Iterator[list[str]]:
    """The words after ``program`` of each command line; a comment behind it is cut off."""
    for line in code(text):
        if not line.startswith(f"{program} "):
            continue
        words = shlex.split(re.split(r"\s{2,}| #| \||&&|;|\(", line)[0].replace("'s", "s"))
        yield words[1:]


def problem(words: list[str]) -> str:
    """What is wrong with the words of an orchestrate command; empty if nothing is."""
    command: click.Command = orchestrate
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        below = command.get_command(click.Context(command), words[0])
        if below is None:
            return f"no command {words[0]!r}"
        command, words = below, words[1:]
    known = {"--help", "-h", "--version", ON_CONTROL}.union(*(each.opts for each in command.params))
    mine = words[: words.index("--")] if "--" in words else words
    mine = [word for word in mine if word != "-"]  # a value
    wrong = [word for word in mine if word.startswith("-") and word.split("=")[0] not in known]
    return f"no option {wrong[0]}" if wrong else ""


def by_name(page: Path) -> str:
    return str(page.relative_to(PROJECT))


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_commands_exist(page: Path) -> None:
    text = page.read_text()
    wrong = [
        f"orchestrate {shlex.join(w)}: {p}"
        for w in commands(text, "orchestrate")
        if (p := problem(w))
    ]
    targets = set(re.findall(r"^([a-z0-9]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    wrong += [f"make {w[0]}: no such target" for w in commands(text, "make") if w[0] not in targets]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_links_lead_somewhere(page: Path) -> None:
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            wrong.append(f"{link}: no such file")
        elif heading and heading not in headings(target.read_text()):
            wrong.append(f"{link}: no such heading")
    assert not wrong, "\n".join(wrong)


def headings(text: str) -> set[str]:
    """Anchors as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_command_reference_is_current() -> None:
    argv = [sys.executable, str(PROJECT / "tools/cli_reference.py")]
    derived = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert (PROJECT / "docs/reference/cli.md").read_text() == derived, (
        "run: .venv/bin/python tools/cli_reference.py >docs/reference/cli.md"
    )


def test_every_page_is_in_the_index() -> None:
    index = (PROJECT / "docs/README.md").read_text()
    pages = {
        str(page.relative_to(PROJECT / "docs"))
        for page in PAGES
        if page.is_relative_to(PROJECT / "docs")
    }
    missing = sorted(page for page in pages - {"README.md"} if f"]({page})" not in index)
    assert not missing, f"not in docs/README.md: {missing}"


def test_newest_changelog_heading_is_the_version() -> None:
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
    newest = re.search(
        r"^## (?!Unreleased$)(\S+)", (PROJECT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert newest is not None
    assert newest[1] == version


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    listed = project["dependencies"] + project["optional-dependencies"]["dev"]
    text = (PROJECT / "docs/explanation/decisions.md").read_text()
    names = [re.split(r"[\[<>=!~ ]", each)[0] for each in listed]
    missing = [name for name in names if f"| {name} |" not in text]
    assert not missing, f"no reason in docs/explanation/decisions.md: {missing}"


def test_figures_are_those_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """`benchmarks/figures.py` puts them there; nobody types one."""
    monkeypatch.syspath_prepend(str(PROJECT / "benchmarks"))
    figures = importlib.import_module("figures")
    page = (PROJECT / "docs/reference/performance.md").read_text()
    assert figures.rendered(page) == page
    marked = set(re.findall(r"<!-- figures: (\w+) -->", page))
    assert marked == {path.stem for path in (PROJECT / "benchmarks/results").glob("*.json")}


def test_accuracy_is_that_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """`benchmarks/accuracy.py` writes the page, and every forecast in the results is on it."""
    monkeypatch.syspath_prepend(str(PROJECT / "benchmarks"))
    accuracy = importlib.import_module("accuracy")
    page = (PROJECT / "docs/reference/accuracy.md").read_text()
    every = accuracy.sources()
    assert accuracy.rendered(page, every) == page, "run: .venv/bin/python benchmarks/accuracy.py"
    phases = [each for source in every for each in source.scores.scored]
    assert len(phases) >= 148
    missed = {each.workload for each in phases if not each.good}
    assert missed and all(f"| {name} |" in page for name in missed)
