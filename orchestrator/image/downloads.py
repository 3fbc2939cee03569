"""The directory for downloads until they are in the store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.core import paths
from orchestrator.core.console import err
from orchestrator.core.files import locked


def place() -> Path:
    return paths.cache() / "downloads"


@contextmanager
def alone() -> Iterator[Path]:
    """The directory, for one command at a time: two of them load and remove the same files.

    Waits for another one, however long that fetches, and says so.
    """
    place().mkdir(parents=True, exist_ok=True)

    def told() -> None:
        err.print("waiting for another command that fetches files of images")

    with locked(place(), waits=told):
        yield place()
