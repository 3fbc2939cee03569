"""Runs on a node with the image's torch: what its device reaches, as JSON.

One argument, JSON: {"seconds": S a figure, "path": directory of the model or ""}. The figures are
those that vLLM's own operations reach: weights as torch.nn.Linear has them, [out, in].
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch  # type: ignore[import-not-found, unused-ignore]
from torch.nn.functional import linear  # type: ignore[import-not-found, unused-ignore]

REPEATS = 5
#: Larger than any cache; no more than this share of the memory.
WEIGHTS, SHARE = 256 << 20, 1 / 16
#: Rows of an input: a prompt's tokens.
TOKENS, WIDTH = 256, 2048
DTYPES = ("bfloat16", "float16", "float32")
CHUNK = 4 << 20


def device() -> str:
    """torch's name of the accelerator, or the processor."""
    if torch.accelerator.is_available():
        return str(torch.accelerator.current_accelerator())
    return "cpu"


def settle(on: str) -> None:
    """Wait until what was begun is done."""
    if on != "cpu":
        torch.accelerator.synchronize()


def timed(on: str, action: Callable[[], object], seconds: float) -> list[float]:
    """Seconds of one action, REPEATS times, each over as many as fit its share of the time."""
    action()
    settle(on)
    begun = time.perf_counter()
    action()
    settle(on)
    count = max(1, int(seconds / REPEATS / max(time.perf_counter() - begun, 1e-7)))
    found = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        for _ in range(count):
            action()
        settle(on)
        found.append((time.perf_counter() - begun) / count)
    return found


def memory_total(on: str) -> int:
    if on == "cpu":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    module = getattr(torch, on.partition(":")[0])
    return int(module.get_device_properties(0).total_memory)


def name(on: str) -> str:
    if on != "cpu":
        return str(getattr(torch, on.partition(":")[0]).get_device_name(0))
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((x.partition(": ")[2] for x in lines if x.startswith("model name")), "processor")


def rates(seconds: float) -> dict[str, Any]:
    on = device()
    total = memory_total(on)
    half = torch.float16 if on != "cpu" else torch.bfloat16
    size = int(min(WEIGHTS, total * SHARE)) // (2 * WIDTH)
    with torch.inference_mode():
        weights = torch.ones(size, WIDTH, dtype=half, device=on)
        one = torch.ones(1, WIDTH, dtype=half, device=on)
        # The product of one row reads every weight once, and little else.
        took = timed(on, lambda: linear(one, weights), seconds)
        memory = [weights.numel() * 2 / each for each in took]
        matrix = {}
        for dtype in DTYPES:
            try:
                kind = getattr(torch, dtype)
                left = torch.ones(TOKENS, WIDTH, dtype=kind, device=on)
                right = torch.ones(WIDTH, WIDTH, dtype=kind, device=on)
                took = timed(on, lambda a=left, b=right: linear(a, b), seconds)  # type: ignore[misc]
            except RuntimeError:
                continue  # this device has no such matrix product
            matrix[dtype] = [2 * TOKENS * WIDTH * WIDTH / each for each in took]
        little = torch.ones(1, 64, dtype=half, device=on)
        small = timed(on, lambda: little.add(1), seconds)
    return {
        "device": on.partition(":")[0],
        "name": name(on),
        "threads": torch.get_num_threads(),
        "memory_bytes_per_s": memory,
        "matrix_flops_per_s": matrix,
        "operation_s": small,
        "memory_total_bytes": total,
    }


def storage(path: str) -> dict[str, list[float]] | None:
    """Bytes a second of the model's weights: read from the file, and brought onto the device."""
    from safetensors.torch import load_file  # type: ignore[import-not-found, unused-ignore]

    files = sorted(Path(path).glob("*.safetensors"), key=lambda each: each.stat().st_size)
    if not path or not files:
        return None
    file = files[-1]
    read, load = [], []
    for _ in range(3):
        with file.open("rb", buffering=0) as stream:
            # Where the file is on a disk, it is read from there; in memory it stays.
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            begun = time.perf_counter()
            while stream.read(CHUNK):
                pass
            read.append(file.stat().st_size / (time.perf_counter() - begun))
        begun = time.perf_counter()
        load_file(file, device=device())
        settle(device())
        load.append(file.stat().st_size / (time.perf_counter() - begun))
    return {"read_bytes_per_s": read, "load_bytes_per_s": load}


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps({"rates": rates(asked["seconds"]), "storage": storage(asked["path"])}))
