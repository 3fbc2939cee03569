"""QEMU's control socket (QMP): the few commands that the simulator gives a machine."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.core.waiting import as_long_as

#: Seconds for one answer.
TIMEOUT = 10.0


def execute(path: Path, command: str, **arguments: Any) -> Any:
    """Run one QMP command and return what it returns.

    Raises OSError where nothing listens at `path` or it does not answer, RuntimeError with QEMU's
    own words where it refuses the command.
    """
    with connected(path) as client, client.makefile("rw", encoding="utf-8") as stream:
        stream.readline()  # the greeting
        for name, values in (("qmp_capabilities", {}), (command, arguments)):
            stream.write(json.dumps({"execute": name, "arguments": values}) + "\n")
            stream.flush()
            said = answer(stream)
        return said


def listens(path: Path) -> bool:
    """Whether QEMU takes commands: its socket is there a moment before."""
    try:
        with connected(path):
            return True
    except OSError:
        return False


@contextmanager
def connected(path: Path) -> Iterator[socket.socket]:
    """A connection to a socket. Raises OSError where nothing listens there."""
    # By its directory's handle: a socket's address has room for 107 bytes only.
    directory = os.open(path.parent, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(TIMEOUT)
            address = f"/proc/self/fd/{directory}/{path.name}"

            def crowded() -> bool:
                """QEMU serves one client at a time, and lets one more wait."""
                try:
                    client.connect(address)
                except BlockingIOError:
                    return True
                return False

            if as_long_as(crowded, TIMEOUT, 0.05):
                raise TimeoutError(f"{path}: another client keeps QEMU's control socket busy")
            yield client
    finally:
        os.close(directory)


def answer(stream: Any) -> Any:
    """The answer to the last command; events may come before it."""
    for line in stream:
        said = json.loads(line)
        if "error" in said:
            raise RuntimeError(said["error"]["desc"])
        if "return" in said:
            return said["return"]
    raise ConnectionError("QEMU closed its control socket")
