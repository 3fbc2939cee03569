"""Runs on all nodes at once, with the image's torch: measure the collectives that vLLM's ranks use.

As in vLLM, each rank reads weights, then all exchange a message, and so on. A message's time is
what it adds to reading weights. (Messages without work between them would be faster: no rank is
late, and no thread of the library has gone to sleep.)

The argument is a JSON object: {"rank", "world", "address", "port", "sizes": bytes, "between": bytes
of weights, "timeout_s"}. Rank 0 prints the times.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from itertools import cycle
from typing import Any

import torch  # type: ignore[import-not-found, unused-ignore]
import torch.distributed as ranks  # type: ignore[import-not-found, unused-ignore]

REPEATS = 5
#: Bytes of weights, more than any cache has, and the width of their matrix.
WEIGHTS, WIDTH = 128 << 20, 2048
#: Limits for one size: seconds, and number of messages. If one message takes longer than SECONDS,
#: larger sizes are left out.
SECONDS, MOST = 0.5, 200
#: Messages that are launched without waiting for one: fewer than any library's queue holds.
LAUNCHES = 20

#: The process group on the CPU by which ranks coordinate.
CONTROL: list[Any] = []


def backend(on: str) -> str:
    """torch's default backend for a device: gloo, xccl, nccl."""
    return str(ranks.Backend.default_device_backend_map[on])


def slowest(seconds: float) -> float:
    """The largest of all ranks' values; each rank gets the same result."""
    found = torch.tensor([seconds], dtype=torch.float64)
    ranks.all_reduce(found, op=ranks.ReduceOp.MAX, group=CONTROL[0])
    return float(found)


def once(action: Callable[[], object], on: str, count: int = 1) -> float:
    """Mean seconds of an action, from a barrier that all ranks pass together."""
    ranks.barrier(group=CONTROL[0])
    begun = time.perf_counter()
    for _ in range(count):
        action()
    if on != "cpu":
        torch.accelerator.synchronize()
    return (time.perf_counter() - begun) / count


def added(work: Callable[[], object], action: Callable[[], object], on: str) -> list[float]:
    """Seconds that an action adds to work, measured REPEATS times; once if it takes long."""

    def both() -> None:
        work()
        action()

    once(both, on)  # the first call makes the connections
    took = slowest(once(both, on))
    if took > SECONDS:
        return [took]
    count = max(1, min(MOST, int(SECONDS / REPEATS / max(took, 1e-6))))
    alone = statistics.median(once(work, on, count) for _ in range(REPEATS))
    return [max(0.0, once(both, on, count) - alone) for _ in range(REPEATS)]


def launched(action: Callable[[], object]) -> list[float]:
    """Seconds of the host to launch an action, which the device does later: as an engine that runs
    ahead of its device launches it."""
    found = []
    for _ in range(REPEATS):
        ranks.barrier(group=CONTROL[0])
        begun = time.perf_counter()
        for _ in range(LAUNCHES):
            action()
        found.append((time.perf_counter() - begun) / LAUNCHES)
        torch.accelerator.synchronize()
    return found


def going_through(size: int, on: str) -> Callable[[], None]:
    """A matrix product that reads `size` bytes of weights, different ones at each call."""
    row = torch.ones(1, WIDTH, dtype=torch.bfloat16, device=on)
    weights = torch.ones(WEIGHTS // (2 * WIDTH), WIDTH, dtype=torch.bfloat16, device=on)
    parts = cycle(weights.split(max(1, size // (2 * WIDTH))))
    return lambda: torch.nn.functional.linear(row, next(parts))


def rates(asked: dict[str, Any]) -> dict[str, Any]:
    """This rank's result; only rank 0's has times."""
    on = "cpu"
    if torch.accelerator.is_available():
        on = torch.accelerator.current_accelerator().type
    limit = timedelta(seconds=asked["timeout_s"])
    rank = asked["rank"]
    ranks.init_process_group(
        backend(on),
        init_method=f"tcp://{asked['address']}:{asked['port']}",
        rank=rank,
        world_size=asked["world"],
        timeout=limit,
    )
    CONTROL[:] = [ranks.new_group(backend="gloo", timeout=limit)]
    reduce, send, launch = {}, {}, {}
    work = going_through(min(asked["between"], WEIGHTS // 2), on)
    for size in asked["sizes"]:
        data = torch.ones(size // 2, dtype=torch.bfloat16, device=on)

        def all_reduce(data: Any = data) -> None:
            ranks.all_reduce(data)

        def pass_on(data: Any = data) -> None:
            # A round trip, so that the sender cannot run ahead.
            if rank == 0:
                ranks.send(data, 1)
                ranks.recv(data, 1)
            elif rank == 1:
                ranks.recv(data, 0)
                ranks.send(data, 0)

        reduce[size] = added(work, all_reduce, on)
        send[size] = [each / 2 for each in added(work, pass_on, on)]
        if slowest(min(reduce[size])) > SECONDS:
            break
        if on != "cpu":  # there the host itself moves the bytes
            launch[size] = launched(all_reduce)
    ranks.destroy_process_group()
    times = {"all_reduce_s": reduce, "send_s": send, "launch_s": launch} if rank == 0 else {}
    return {"backend": backend(on), **times}


if __name__ == "__main__":
    print(json.dumps(rates(json.loads(sys.argv[1]))))
