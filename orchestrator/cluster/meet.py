"""Runs on each node of a copy that vLLM's own processes serve: starts them together, and ends them
together.

ADDRESS PORT RANK NAMES COMMAND...: the first of NAMES (rank 0) listens at ADDRESS:PORT until all
others are there, then each starts its COMMAND with the port that rank 0 chose for vLLM. vLLM itself
does not notice that another node's processes are gone until it needs them, and never finds others.
So a connection that ends, or a command, ends all of them, with an exit code; systemd starts them
again. There is no deadline: the nodes start whenever all are there.
"""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Mapping

#: Seconds between two tries to reach rank 0, and for a newcomer to say who it is.
PAUSE, HELLO = 1.0, 5.0
#: A node without power does not answer: seconds of silence, between two questions, and how many
#: questions without an answer end the connection.
SILENT, ASK, ASKED = 5, 5, 3


def lead(address: str, port: int, names: list[str]) -> tuple[dict[socket.socket, str], int]:
    """Wait for all others, and tell them to start; their connections, and vLLM's port."""
    found: dict[int, socket.socket] = {}
    with socket.create_server((address, port)) as listener:
        listener.settimeout(PAUSE)
        before: list[str] = []
        while missing := [name for rank, name in enumerate(names) if rank and rank not in found]:
            if missing != before:
                print(f"waiting for {', '.join(missing)}", flush=True)
            before = missing
            try:
                newcomer, _ = listener.accept()
            except TimeoutError:
                found = {rank: each for rank, each in found.items() if not ended(each)}
                continue
            rank = greeting(newcomer)
            if not 0 < rank < len(names):
                newcomer.close()
                continue
            if rank in found:
                found[rank].close()
            found[rank] = newcomer
    with socket.create_server((address, 0)) as free:
        chosen = int(free.getsockname()[1])
    for each in found.values():
        each.sendall(b"%d\n" % chosen)
    return {each: names[rank] for rank, each in found.items()}, chosen


def greeting(newcomer: socket.socket) -> int:
    """The rank that a newcomer names; -1 for anything else."""
    try:
        newcomer.settimeout(HELLO)
        rank = int(newcomer.makefile("rb").readline(8))
        newcomer.settimeout(None)
        watched(newcomer)
    except (OSError, ValueError):
        return -1
    return rank


def ended(connection: socket.socket) -> bool:
    """Whether the other side is gone. It never sends anything after its greeting."""
    try:
        return connection.recv(1, socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def follow(address: str, port: int, rank: int) -> tuple[socket.socket, int]:
    """Wait for rank 0's word; the connection to it, and vLLM's port."""
    while True:
        try:
            leader = socket.create_connection((address, port), HELLO)
            watched(leader)
            leader.settimeout(None)
            leader.sendall(b"%d\n" % rank)
            return leader, int(leader.makefile("rb").readline(8))
        except (OSError, ValueError):
            time.sleep(PAUSE)


def watched(connection: socket.socket) -> None:
    """Let the kernel notice that the other machine is gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, SILENT),
        (socket.TCP_KEEPINTVL, ASK),
        (socket.TCP_KEEPCNT, ASKED),
    ):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def run(command: list[str], others: Mapping[socket.socket, str]) -> str:
    """Run the command until it or one of the others ends; says which."""
    child = subprocess.Popen(command)
    waiting = selectors.DefaultSelector()
    ends = os.pidfd_open(child.pid)
    waiting.register(ends, selectors.EVENT_READ, "")
    for connection, name in others.items():
        waiting.register(connection, selectors.EVENT_READ, name)
    name = waiting.select()[0][0].data
    if not name:
        return f"vLLM ended here: exit code {child.wait()}"
    # Its collectives wait for ranks that are gone, and it would not hear a polite word.
    child.kill()
    child.wait()
    return f"the vLLM of {name} ended, or the node is gone"


def main(address: str, port: int, rank: int, names: list[str], command: list[str]) -> None:
    if rank:
        leader, chosen = follow(address, port, rank)
        others = {leader: names[0]}
    else:
        others, chosen = lead(address, port, names)
    print(f"starting vLLM on {', '.join(names)}", flush=True)
    print(run([*command, "--master-port", str(chosen)], others), flush=True)
    sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4].split(","), sys.argv[5:])
