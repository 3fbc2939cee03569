"""Runs on both ends of a link, standard library only: latency, and seconds by a message's size.

    serve ADDRESS PORT               one client, then the end
    ask ADDRESS PORT FROM SIZES      JSON on stdout; SIZES: bytes, with commas; FROM: own address

Messages go one way and are answered by one byte, as a collective's step is.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import time
from pathlib import Path

#: Seconds to wait for the other end, and for one message.
CONNECT, MESSAGE = 20.0, 20.0
ROUNDS, REPEATS = 50, 5
#: The stream: at least this long, in messages of this size.
STREAM_S, STREAM_BYTES = 1.0, 1 << 20
HEAD = struct.Struct("!Q")


def counters() -> dict[str, int]:
    """Bytes that each interface has sent and received."""
    found = {}
    for home in Path("/sys/class/net").iterdir():
        if home.name != "lo":
            both = (home / "statistics/tx_bytes", home / "statistics/rx_bytes")
            found[home.name] = sum(int(file.read_text()) for file in both)
    return found


def used(before: dict[str, int], after: dict[str, int]) -> str:
    """The interface that the bytes took."""
    moved = {name: after[name] - before.get(name, 0) for name in after}
    return max(moved, key=lambda name: moved[name], default="")


def speed(interface: str) -> int | None:
    """What a card negotiated, in bits a second."""
    home = Path("/sys/class/net", interface)
    try:
        megabits = int((home / "speed").read_text())
    except (OSError, ValueError):
        return None
    # A pair of virtual cards says 10 Gb/s, which nothing negotiated.
    real = (home / "device").exists()
    return megabits * 10**6 if megabits > 0 and real else None


def receive(connection: socket.socket, count: int) -> None:
    view = memoryview(bytearray(min(count, 1 << 20)))
    while count:
        got = connection.recv_into(view[: min(count, len(view))])
        if not got:
            raise ConnectionError("the other end is gone")
        count -= got


def serve(address: str, port: int) -> None:
    with socket.create_server((address, port)) as server:
        server.settimeout(CONNECT)
        connection, _ = server.accept()
    before = counters()
    with connection:
        connection.settimeout(MESSAGE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while size := HEAD.unpack(receive_head(connection))[0]:
            receive(connection, size)
            connection.sendall(b".")
    interface = used(before, counters())
    print(json.dumps({"interface": interface, "speed": speed(interface)}))


def receive_head(connection: socket.socket) -> bytes:
    head = b""
    while len(head) < HEAD.size:
        part = connection.recv(HEAD.size - len(head))
        if not part:
            return HEAD.pack(0)
        head += part
    return head


def exchange(connection: socket.socket, size: int) -> float:
    """Seconds until a message of ``size`` was there and its answer here."""
    message = HEAD.pack(size) + bytes(size)
    begun = time.perf_counter()
    connection.sendall(message)
    receive(connection, 1)
    return time.perf_counter() - begun


def connected(address: str, port: int, source: str) -> socket.socket:
    end = time.monotonic() + CONNECT
    while True:
        try:
            return socket.create_connection((address, port), 5, source_address=(source, 0))
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def ask(address: str, port: int, source: str, sizes: list[int]) -> None:
    before = counters()
    with connected(address, port, source) as connection:
        connection.settimeout(MESSAGE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(ROUNDS):
            exchange(connection, 1)  # the connection finds its pace
        latency = [
            middle([exchange(connection, 1) for _ in range(ROUNDS)]) / 2 for _ in range(REPEATS)
        ]
        way_back = middle(latency)
        by_size = {
            size: [max(exchange(connection, size) - way_back, 0.0) for _ in range(REPEATS)]
            for size in sizes
        }
        rates = []
        for _ in range(REPEATS):
            sent, begun = 0, time.perf_counter()
            while time.perf_counter() - begun < STREAM_S / REPEATS:
                exchange(connection, STREAM_BYTES)
                sent += STREAM_BYTES
            rates.append(sent / (time.perf_counter() - begun))
        connection.sendall(HEAD.pack(0))
    interface = used(before, counters())
    print(
        json.dumps(
            {
                "interface": interface,
                "speed": speed(interface),
                "latency_s": latency,
                "bytes_per_s": rates,
                "by_size_s": by_size,
            }
        )
    )


if __name__ == "__main__":
    words = sys.argv[1:]
    if words[0] == "serve":
        serve(words[1], int(words[2]))
    else:
        ask(words[1], int(words[2]), words[3], [int(each) for each in words[4].split(",") if each])
