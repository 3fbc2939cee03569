"""The boot service on a full disk, and with the table of neighbours of a real kernel."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.boot_service import (
    ADDRESS,
    DOCUMENT,
    MAC,
    STRANGE_MAC,
    Running,
    new_key,
)

from orchestrator.core.run import run
from orchestrator.provision.machines import netns

#: The node's address on a network of its own; ADDRESS is of this machine's loopback.
NODE = "10.77.0.10"


@contextlib.contextmanager
def full_disk(directory: Path) -> Iterator[Callable[[], None]]:
    """A file system of its own at ``directory``; the function that it gives fills it."""
    run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", directory])

    def fill() -> None:
        with contextlib.suppress(OSError), (directory / "rest").open("wb", buffering=0) as file:
            while True:
                file.write(b"0" * 4096)

    try:
        yield fill
    finally:
        run(["umount", directory])


def test_a_full_disk_hands_out_nothing_until_there_is_room(
    stopped: Running, tmp_path: Path
) -> None:
    with full_disk(stopped.state) as fill:
        stopped.start()
        nonce, key = stopped.boot(), new_key(tmp_path)
        fill()
        assert stopped.script().status_code == 503
        assert stopped.identity(nonce, key).status_code == 503
        path = f"/boot/report?mac={MAC}&boot={nonce}"
        assert stopped.ask("POST", path, body="network done 1").status_code == 204
        (stopped.state / "rest").unlink()
        assert stopped.identity(nonce, key).status_code == 200
        assert stopped.identity(nonce, key).status_code == 409
        assert "No space left" in stopped.stop()


def knock(space: str, address: str) -> None:
    """Let ``address`` see who is in the namespace: its refusal has to find the way back."""
    with netns.entered(space), pytest.raises(ConnectionRefusedError):
        socket.create_connection((address, 1), timeout=10)


def test_who_asks_is_what_the_kernel_sees(stopped: Running, tmp_path: Path) -> None:
    control, node = f"boot-test-{os.getpid()}-c", f"boot-test-{os.getpid()}-n"
    try:
        for space in (control, node):
            netns.create(space)
        peer = ["peer", "name", "eth0", "address", MAC, "netns", node]
        run(["ip", "-n", control, "link", "add", "cluster0", "type", "veth", *peer])
        for space, link, address in (
            (control, "cluster0", "10.77.0.1/24"),
            (node, "eth0", f"{NODE}/24"),
        ):
            run(["ip", "-n", space, "addr", "add", address, "dev", link])
            run(["ip", "-n", space, "link", "set", link, "up"])
        stopped.publish(json.loads(json.dumps(DOCUMENT).replace(ADDRESS, NODE)))
        stopped.prefix = ["ip", "netns", "exec", control]
        stopped.start(neighbours=Path("/proc/net/arp"))
        assert stopped.script(address=NODE).status_code == 403
        knock(node, "10.77.0.1")
        nonce = stopped.boot(address=NODE)
        key = new_key(tmp_path)
        assert stopped.identity(nonce, key, address=NODE).status_code == 200
        # Another machine takes the address.
        run(["ip", "-n", node, "link", "set", "eth0", "address", STRANGE_MAC])
        run(["ip", "-n", control, "neigh", "flush", "dev", "cluster0"])
        knock(node, "10.77.0.1")
        assert stopped.script(address=NODE).status_code == 403
        assert STRANGE_MAC in stopped.refused(2)[-1]["text"]
    finally:
        if stopped.process is not None:
            stopped.stop()
        for space in (control, node):
            netns.delete(space)
