"""Runs on each node at once, with the image's torch: the collectives that vLLM's ranks use.

One argument, JSON: {"rank", "world", "address", "port", "sizes": bytes, "timeout_s"}. Each rank
prints the interface that its bytes took; rank 0 the times too.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch  # type: ignore[import-not-found, unused-ignore]
import torch.distributed as ranks  # type: ignore[import-not-found, unused-ignore]

REPEATS = 5
#: Seconds for one size, at most so many times.
SECONDS, MOST = 0.5, 200


def backend(on: str) -> str:
    """torch's own choice for a device: gloo, xccl, nccl."""
    return str(ranks.Backend.default_device_backend_map[on])


def agreed(action: Callable[[], object], world: int) -> int:
    """How often the action fits SECONDS: the same number on every rank."""
    begun = time.perf_counter()
    action()
    took = torch.tensor([time.perf_counter() - begun], dtype=torch.float64)
    ranks.all_reduce(took, group=CONTROL[0])
    return max(1, min(MOST, int(SECONDS / REPEATS / max(float(took) / world, 1e-6))))


def sent() -> dict[str, int]:
    """Bytes that each interface has sent."""
    homes = [home for home in Path("/sys/class/net").iterdir() if home.name != "lo"]
    return {home.name: int((home / "statistics/tx_bytes").read_text()) for home in homes}


#: A group on the processors, for agreements.
CONTROL: list[Any] = []


def timed(action: Callable[[], object], on: str, world: int) -> list[float]:
    action()
    count = agreed(action, world)
    found = []
    for _ in range(REPEATS):
        ranks.barrier(group=CONTROL[0])
        begun = time.perf_counter()
        for _ in range(count):
            action()
        if on != "cpu":
            torch.accelerator.synchronize()
        found.append((time.perf_counter() - begun) / count)
    return found


def main(asked: dict[str, Any]) -> None:
    available = torch.accelerator.is_available()
    on = torch.accelerator.current_accelerator().type if available else "cpu"
    limit = timedelta(seconds=asked["timeout_s"])
    ranks.init_process_group(
        backend(on),
        init_method=f"tcp://{asked['address']}:{asked['port']}",
        rank=asked["rank"],
        world_size=asked["world"],
        timeout=limit,
    )
    before = sent()
    CONTROL.append(ranks.new_group(backend="gloo", timeout=limit))
    rank, world = asked["rank"], asked["world"]
    reduce, send = {}, {}
    for size in asked["sizes"]:
        data = torch.ones(size // 2, dtype=torch.bfloat16, device=on)
        reduce[size] = timed(lambda d=data: ranks.all_reduce(d), on, world)  # type: ignore[misc]

        def pass_on(data: Any = data) -> None:
            # There and back, so that a sender cannot run ahead.
            if rank == 0:
                ranks.send(data, 1)
                ranks.recv(data, 1)
            elif rank == 1:
                ranks.recv(data, 0)
                ranks.send(data, 0)

        send[size] = [each / 2 for each in timed(pass_on, on, world)]
    after = sent()
    interface = max(after, key=lambda name: after[name] - before.get(name, 0), default="")
    times = {"all_reduce_s": reduce, "send_s": send} if rank == 0 else {}
    print(json.dumps({"backend": backend(on), "interface": interface, **times}))
    ranks.destroy_process_group()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
