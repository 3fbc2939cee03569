"""Where a locked file may come from, best first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

from orchestrator.image.lock import apt, index
from orchestrator.image.lockfile import Deb, File


@dataclass(frozen=True)
class Sources:
    """``directory``: files that somebody brought along. ``chosen_mirror``: instead of apt's own."""

    directory: Path | None = None
    chosen_mirror: str | None = None

    @cached_property
    def mirror(self) -> str:
        return apt.mirror(self.chosen_mirror)

    def urls(self, file: File) -> Iterator[str]:
        """Addresses of ``file``, in the order to try them; later ones are looked up only if asked.

        With a directory there is nothing else: a machine without network says at once what lacks.
        """
        if self.directory is not None:
            for name in dict.fromkeys((file.file, file.store)):
                if (self.directory / name).is_file():
                    yield (self.directory / name).resolve().as_uri()
            return
        if file.elsewhere and file.url:
            yield file.url
            return
        if isinstance(file, Deb):
            yield file.url or f"{self.mirror}/{quote(file.path)}"
            return
        if found := index.url_of(file.file, index.finder()):
            yield found
        if file.url:
            yield file.url

    def describe(self, file: File) -> str:
        """Where was looked for ``file``, for the message that nothing has it."""
        if self.directory is not None:
            return str(self.directory)
        if file.elsewhere:
            return str(file.url)
        return "the Debian mirror" if isinstance(file, Deb) else "the package index"
