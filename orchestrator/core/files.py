"""Files that are replaced whole, and locks."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.core.errors import UserError

#: As for a file that is simply opened; what has secrets gets PRIVATE.
PUBLIC, PRIVATE = 0o644, 0o600
#: What the name of a file begins with that is not whole yet; a killed command leaves it behind.
NEW = ".new-"


def write(path: Path, content: str | bytes, mode: int = PUBLIC) -> None:
    """Replace a file whole or not at all: written beside, on the disk, then renamed.

    Its directory is made where it is missing. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, beside = tempfile.mkstemp(prefix=NEW, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(beside).chmod(mode)
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def write_json(path: Path, document: Any) -> None:
    """Replace a JSON file, as ``write`` does."""
    write(path, json.dumps(document, indent=2) + "\n")


@contextmanager
def locked(
    path: Path,
    holder: str = "",
    busy: Callable[[str], UserError] | None = None,
    waits: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Hold a lock on a directory, or on a file, which is created and names the ``holder``.

    Waits for another holder, after ``waits``; with ``busy``, raises the error that it builds from
    the holder's name.
    The kernel releases the lock when the process ends, however it ends.
    """
    if path.is_dir():
        handle = os.open(path, os.O_RDONLY)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, PUBLIC)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if busy:
                name = "" if path.is_dir() else os.read(handle, 1000).decode().strip()
                raise busy(name) from None
            waits()
            fcntl.flock(handle, fcntl.LOCK_EX)
        if holder:
            os.ftruncate(handle, 0)
            os.write(handle, holder.encode())
        yield
        if holder:
            os.ftruncate(handle, 0)
    finally:
        os.close(handle)
