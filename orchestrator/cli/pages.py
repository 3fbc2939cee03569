"""The pages of docs/, as topics that the command line knows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orchestrator.core import paths
from orchestrator.core.errors import BadInput, UserError
from orchestrator.core.nearest import nearest

#: The directories of docs/, in the order in which a newcomer reads them.
SECTIONS = ("tutorial", "how-to", "reference", "explanation")


@dataclass(frozen=True)
class Page:
    """One page. ``topic``: its file's name without ``.md``; ``title``: its heading."""

    topic: str
    section: str
    title: str
    path: Path


def pages() -> list[Page]:
    """All pages, by section. Raises UserError where the checkout's docs/ is not there."""
    docs = paths.checkout() / "docs"
    found = [
        Page(path.stem, section, _title(path), path)
        for section in SECTIONS
        for path in sorted((docs / section).glob("*.md"))
    ]
    if not found:
        raise UserError(
            f"there are no pages at {docs}",
            "They are in the project's checkout: run it from there, or set ORCHESTRATE_CHECKOUT.",
        )
    return found


def find(topic: str) -> Page:
    """The page of a topic, or the only one whose name has the word. Raises BadInput for others."""
    known = pages()
    exact = [page for page in known if page.topic == topic]
    among = [page for page in known if topic.lower() in page.topic.lower()]
    if len(chosen := exact or among) == 1:
        return chosen[0]
    if among:
        names = ", ".join(page.topic for page in among)
        raise BadInput(f"{topic!r} is part of several pages' names", f"Choose one: {names}")
    raise BadInput(f"there is no page {topic!r}", nearest(topic, [page.topic for page in known]))


def _title(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.readline().lstrip("# ").strip()
