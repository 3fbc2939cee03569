"""Open Debian packages and wheels; a broken one is a UserError."""

from __future__ import annotations

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from debian.arfile import ArError
from debian.debfile import DebError, DebFile

from orchestrator.core.errors import UserError

#: The program that python-debian runs for packages compressed with zstd, as Ubuntu's are.
UNZSTD = "unzstd"

BROKEN_DEB = (DebError, ArError, tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, KeyError)
BROKEN_WHEEL = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)


@contextmanager
def deb(path: Path) -> Iterator[DebFile]:
    """The Debian package ``path``. Raises UserError if it cannot be read, also in the body."""
    try:
        with DebFile(str(path)) as opened:
            yield opened
    except BROKEN_DEB as error:
        hint = "Run: apt-get install zstd" if UNZSTD in str(error) else ""
        raise UserError(f"{path.name}: this Debian package cannot be read: {error}", hint) from None


@contextmanager
def wheel(path: Path) -> Iterator[zipfile.ZipFile]:
    """The wheel ``path``. Raises UserError if it cannot be read, also in the body."""
    try:
        with zipfile.ZipFile(path) as opened:
            yield opened
    except BROKEN_WHEEL as error:
        raise UserError(f"{path.name}: this wheel cannot be read: {error}") from None
