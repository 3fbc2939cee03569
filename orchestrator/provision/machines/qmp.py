"""A client for QEMU's control socket (QMP)."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.core.waiting import as_long_as

#: Seconds to wait for a connection, and for each answer.
TIMEOUT = 10.0


def execute(path: Path, command: str, **arguments: Any) -> Any:
    """Run one QMP command and return its result.

    Raises OSError if nothing listens at `path` or QEMU does not answer, RuntimeError with QEMU's
    message if it rejects the command.
    """
    with connected(path) as client, client.makefile("rw", encoding="utf-8") as stream:
        stream.readline()  # the greeting
        for name, values in (("qmp_capabilities", {}), (command, arguments)):
            stream.write(json.dumps({"execute": name, "arguments": values}) + "\n")
            stream.flush()
            said = answer(stream)
        return said


def listens(path: Path) -> bool:
    """Whether QEMU accepts connections: its socket file exists a moment earlier."""
    try:
        with connected(path):
            return True
    except OSError:
        return False


@contextmanager
def connected(path: Path) -> Iterator[socket.socket]:
    """A connection to a Unix socket. Raises OSError if nothing listens there."""
    # By a handle of its directory, since a socket's address is limited to 107 bytes.
    directory = os.open(path.parent, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(TIMEOUT)
            address = f"/proc/self/fd/{directory}/{path.name}"

            def crowded() -> bool:
                """Try to connect; True if QEMU is busy: it serves one client, and queues one."""
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
    """The result of the last command; events that come before it are skipped."""
    for line in stream:
        said = json.loads(line)
        if "error" in said:
            raise RuntimeError(said["error"]["desc"])
        if "return" in said:
            return said["return"]
    raise ConnectionError("QEMU closed its control socket")
