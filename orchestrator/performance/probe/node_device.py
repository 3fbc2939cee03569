"""Runs on a node with the image's torch: print its device's rates as JSON.

The argument is a JSON object: {"seconds": seconds per figure}. The operations are vLLM's, with
weights in torch.nn.Linear's shape, [out, in].
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
from torch.nn.functional import (  # type: ignore[import-not-found, unused-ignore]
    linear,
    rms_norm,
    scaled_dot_product_attention,
    silu,
)

REPEATS = 5
#: Bytes of weights: larger than any cache, and the smallest such size if little memory is free.
WEIGHTS, LEAST = 256 << 20, 64 << 20
WIDTH = 2048
DTYPES = ("bfloat16", "float16", "float32")
#: Rows of the input -> bytes of weights, for few rows: neither memory nor arithmetic alone limits
#: them.
FEW = {1: WEIGHTS, 2: LEAST, 4: LEAST, 8: LEAST, 16: LEAST, 32: LEAST}
#: The same for a prompt's tokens on a CPU, where caches do not matter with so many rows.
MANY = {256: 8 << 20}
#: The same on an accelerator: shorter operations would measure the host that enqueues them.
MANY_QUEUED = {256: LEAST, 2048: LEAST}


def device() -> str:
    """torch's name of the accelerator, else "cpu"."""
    if torch.accelerator.is_available():
        return str(torch.accelerator.current_accelerator())
    return "cpu"


def settle(on: str) -> None:
    if on != "cpu":
        torch.accelerator.synchronize()


def timed(on: str, action: Callable[[], object], seconds: float) -> list[float]:
    """Seconds of one action, measured REPEATS times. Each is a mean over as many calls as fit."""
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


def random(rows: int, on: str, dtype: torch.dtype) -> torch.Tensor:
    """A random matrix of [rows, WIDTH], as a model's are. With equal numbers a card uses less power
    and raises its clock. Few rows are drawn and repeated, since drawing is slow."""
    drawn = torch.randn(min(rows, 128), WIDTH, device=on).to(dtype)
    return drawn.repeat(-(-rows // len(drawn)), 1)[:rows]


def large(on: str, dtype: torch.dtype) -> torch.Tensor:
    """A matrix of [n, WIDTH] far larger than any cache; smaller if memory does not suffice."""
    size = WEIGHTS
    while True:
        try:
            return random(size // (2 * WIDTH), on, dtype)
        except RuntimeError:
            if size <= LEAST:
                raise
            size //= 2


def layer_of_little(on: str, dtype: torch.dtype) -> tuple[Callable[[], object], int]:
    """A tiny layer for one token, and its number of operations: it measures the cost of launching
    operations. (Repeating a single operation would be faster than a real layer.)"""
    heads, size = 2, 64
    wide = heads * size
    x, norm = random(1, on, dtype)[:, :wide], torch.ones(wide, dtype=dtype, device=on)
    weights = random(4 * wide, on, dtype)[:, :wide].contiguous()
    cache = torch.zeros(2, 1, heads, 16, size, dtype=dtype, device=on)

    def layer() -> object:
        parts = linear(rms_norm(x, (wide,), norm), weights[: 3 * wide])
        q, k, v = parts.view(1, 1, 3 * heads, size).transpose(1, 2).chunk(3, dim=1)
        cache[0, :, :, 3:4] = k
        cache[1, :, :, 3:4] = v
        seen = scaled_dot_product_attention(q, cache[0], cache[1])
        y = x + linear(seen.transpose(1, 2).reshape(1, wide), weights[:wide])
        gate, up = linear(rms_norm(y, (wide,), norm), weights[: 2 * wide]).chunk(2, dim=-1)
        return y + linear(silu(gate) * up, weights[:wide])

    return layer, 13


def rates(seconds: float) -> dict[str, Any]:
    on = device()
    half = torch.float16 if on != "cpu" else torch.bfloat16
    with torch.inference_mode():
        weights = large(on, half)
        many = MANY if on == "cpu" else MANY_QUEUED
        products = {}
        for rows, size in (FEW | many).items():
            part = weights[: size // (2 * WIDTH)]
            left = random(rows, on, half)
            share = seconds if rows == 1 else seconds / 2
            took = timed(on, lambda a=left, b=part: linear(a, b), share)  # type: ignore[misc]
            products[rows] = [part.numel() * 2 / each for each in took]
        # A product with one row reads every weight once, so it measures memory bandwidth.
        memory = products[1]
        most, size = max(many.items())
        matrix = {}
        for dtype in DTYPES:
            try:
                kind = getattr(torch, dtype)
                left = random(most, on, kind)
                right = random(size // (kind.itemsize * WIDTH), on, kind)
                took = timed(on, lambda a=left, b=right: linear(a, b), seconds)  # type: ignore[misc]
            except RuntimeError:
                continue  # this device has no such matrix product
            matrix[dtype] = [2 * most * right.numel() / each for each in took]
        layer, operations = layer_of_little(on, half)
        small = [each / operations for each in timed(on, layer, seconds)]
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
