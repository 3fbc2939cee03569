"""Runs on a node with the image's torch: what its device reaches, as JSON.

One argument, JSON: {"seconds": S a figure}. The figures are those that vLLM's own operations reach:
weights as torch.nn.Linear has them, [out, in].
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
#: Bytes larger than any cache, and the least that still are where the model took the memory.
WEIGHTS, LEAST = 256 << 20, 64 << 20
#: Rows of an input: a prompt's tokens.
TOKENS, WIDTH = 256, 2048
DTYPES = ("bfloat16", "float16", "float32")
#: Rows of inputs -> bytes of weights. A few rows are bound by neither memory nor arithmetic alone;
#: with many, caches do not matter.
SIZES = {1: WEIGHTS, 2: LEAST, 4: LEAST, 8: LEAST, 16: LEAST, 32: LEAST, TOKENS: 8 << 20}


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


def large(on: str, dtype: torch.dtype) -> torch.Tensor:
    """A matrix far larger than any cache, of [n, WIDTH]; smaller where there is less room."""
    size = WEIGHTS
    while True:
        try:
            return torch.ones(size // (2 * WIDTH), WIDTH, dtype=dtype, device=on)
        except RuntimeError:
            if size <= LEAST:
                raise
            size //= 2


def rates(seconds: float) -> dict[str, Any]:
    on = device()
    half = torch.float16 if on != "cpu" else torch.bfloat16
    with torch.inference_mode():
        weights = large(on, half)
        products = {}
        for rows, size in SIZES.items():
            part = weights[: size // (2 * WIDTH)]
            left = torch.ones(rows, WIDTH, dtype=half, device=on)
            share = seconds if rows == 1 else seconds / 2
            took = timed(on, lambda a=left, b=part: linear(a, b), share)  # type: ignore[misc]
            products[rows] = [part.numel() * 2 / each for each in took]
        # The product of one row reads every weight once, and little else.
        memory = products[1]
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
        "product_bytes_per_s": products,
        "operation_s": small,
        "memory_total_bytes": memory_total(on),
    }


if __name__ == "__main__":
    print(json.dumps(rates(json.loads(sys.argv[1])["seconds"])))
