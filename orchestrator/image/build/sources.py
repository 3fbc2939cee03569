"""The sources of a locked file, in order of preference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from orchestrator.image.lock import index
from orchestrator.image.lock.mirrors import Mirrors, in_history
from orchestrator.image.lockfile import Deb, File


def exported_name(file: File) -> str:
    """A locked file's name in a directory of exported ones: by its hash, so that all versions of
    all images find room in one."""
    return f"{file.sha256}-{file.store}"


@dataclass(frozen=True)
class Sources:
    """``directory``: files that somebody brought along; ``mirrors``: else, of Debian packages.

    ``listed``: when the archives had a package, by its hash.
    """

    directory: Path | None = None
    mirrors: Mirrors = field(default_factory=Mirrors)
    listed: Mapping[str, datetime] = field(default_factory=dict)

    def urls(self, file: File) -> Iterator[str]:
        """URLs of ``file``, in the order to try them; later ones are looked up lazily.

        With ``directory`` there are no others, so that a machine without network fails at once.
        """
        if self.directory is not None:
            for name in dict.fromkeys((exported_name(file), file.file, file.store)):
                if (self.directory / name).is_file():
                    yield (self.directory / name).resolve().as_uri()
            return
        if file.elsewhere and file.url:
            yield file.url
            return
        if isinstance(file, Deb):
            yield file.url or self.mirrors.url(file)
            if later := self.mirrors.later(file):
                yield later
            return
        if found := index.url_of(file.file, index.finder()):
            yield found
        if file.url:
            yield file.url

    def history(self, file: File) -> str | None:
        """Where Debian keeps a package that its archives had and mirrors removed."""
        listed = self.listed.get(file.sha256)
        if self.directory is None and isinstance(file, Deb) and not file.url and listed:
            return in_history(file, listed)
        return None

    def describe(self, file: File) -> str:
        """The places where ``file`` was looked for, for the error that none has it."""
        if self.directory is not None:
            return str(self.directory)
        if file.elsewhere:
            return str(file.url)
        return "the Debian mirror" if isinstance(file, Deb) else "the package index"
