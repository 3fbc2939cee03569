"""Runs on both ends of a link, standard library only: measure latency, and time by message size.

    serve ADDRESS PORT               serve one client, then end
    ask ADDRESS PORT FROM SIZES      print JSON; SIZES: bytes, comma-separated; FROM: own address

Each message is answered by one byte, as in a collective's step.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import time
from collections.abc import Iterator

#: Timeout in seconds for the connection and for each message.
WAIT = 20.0
ROUNDS, REPEATS = 50, 5
#: Seconds for all round trips of one repeat, and for all messages of one size. If a single message
#: takes longer, larger sizes are left out.
ROUND_S, SIZE_S = 0.4, 1.0
#: The bandwidth test: seconds of a repeat, bytes of a message, messages in flight.
STREAM_S, STREAM_BYTES, AHEAD = 0.4, 256 << 10, 2
HEAD = struct.Struct("!Q")


def received(connection: socket.socket, count: int) -> bytes:
    """Receive `count` bytes; return the first 8. Raises ConnectionError if they end early."""
    view, first = memoryview(bytearray(min(count, 1 << 20))), b""
    while count:
        got = connection.recv_into(view[: min(count, len(view))])
        if not got:
            raise ConnectionError("the peer is gone")
        first += bytes(view[: min(got, HEAD.size - len(first))])
        count -= got
    return first


def serve(address: str, port: int) -> None:
    with socket.create_server((address, port)) as server:
        server.settimeout(WAIT)
        connection, _ = server.accept()
    with connection:
        prepare(connection)
        while size := HEAD.unpack(received(connection, HEAD.size))[0]:
            received(connection, size)
            connection.sendall(b".")


def prepare(connection: socket.socket) -> None:
    connection.settimeout(WAIT)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def exchange(connection: socket.socket, size: int) -> float:
    """Seconds to send a message of ``size`` bytes and get its answer."""
    message = HEAD.pack(size) + bytes(size)
    begun = time.perf_counter()
    connection.sendall(message)
    received(connection, 1)
    return time.perf_counter() - begun


def exchanges(connection: socket.socket, size: int, most: int, seconds: float) -> Iterator[float]:
    """Seconds of at least one exchange, and of up to ``most`` within ``seconds``."""
    end = time.monotonic() + seconds
    for _ in range(most):
        yield exchange(connection, size)
        if time.monotonic() > end:
            return


def stream(connection: socket.socket) -> float:
    """Bytes per second of large messages, with AHEAD of them in flight."""
    message = HEAD.pack(STREAM_BYTES) + bytes(STREAM_BYTES)
    for _ in range(AHEAD):
        connection.sendall(message)
    received(connection, 1)  # the first answer: from here on the link is busy, so count
    sent, begun = 0, time.perf_counter()
    while (passed := time.perf_counter() - begun) < STREAM_S:
        connection.sendall(message)
        received(connection, 1)
        sent += STREAM_BYTES
    received(connection, AHEAD - 1)
    return sent / passed


def connected(address: str, port: int, source: str) -> socket.socket:
    """Connect, retrying until the other end listens. Raises OSError after WAIT seconds."""
    end = time.monotonic() + WAIT
    while True:
        left = max(0.1, end - time.monotonic())
        try:
            return socket.create_connection((address, port), left, source_address=(source, 0))
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def ask(address: str, port: int, source: str, sizes: list[int]) -> None:
    with connected(address, port, source) as connection:
        prepare(connection)
        list(exchanges(connection, 1, ROUNDS, ROUND_S))  # warm-up
        latency = [
            middle(list(exchanges(connection, 1, ROUNDS, ROUND_S))) / 2 for _ in range(REPEATS)
        ]
        way_back = middle(latency)
        by_size: dict[int, list[float]] = {}
        for size in sizes:
            took = list(exchanges(connection, size, REPEATS, SIZE_S))
            by_size[size] = [max(each - way_back, 0.0) for each in took]
            if min(took) > SIZE_S:
                break
        rates = [stream(connection) for _ in range(REPEATS)]
        connection.sendall(HEAD.pack(0))
    print(json.dumps({"latency_s": latency, "bytes_per_s": rates, "by_size_s": by_size}))


def main(words: list[str]) -> None:
    role, address, port = words[:3]
    try:
        if role == "serve":
            serve(address, int(port))
            print("{}")
        else:
            ask(address, int(port), words[3], [int(each) for each in words[4].split(",") if each])
    except OSError as error:
        said = f"no answer within {WAIT:g} s" if isinstance(error, TimeoutError) else error
        sys.exit(f"TCP, {address} port {port}: {said}")


if __name__ == "__main__":
    main(sys.argv[1:])
