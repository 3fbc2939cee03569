"""Runs on a node with the image's torch: measure how fast its model is read and loaded.

The argument is a JSON object: {"path": the model's directory}. Prints {} if it has no weights.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch  # type: ignore[import-not-found, unused-ignore]
from safetensors import safe_open  # type: ignore[import-not-found, unused-ignore]

REPEATS = 3
#: The most bytes of a file to read and load, and bytes per read.
MOST, CHUNK = 512 << 20, 4 << 20
#: The number of pages that are checked to tell whether the file is in the page cache.
LOOKS = 16


def forgotten(file: int, size: int) -> bool:
    """Drop the file from the page cache. False if it stays, as on tmpfs."""
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    for number in range(LOOKS):
        try:
            if os.preadv(file, [bytearray(1)], size * number // LOOKS, os.RWF_NOWAIT):
                return False
        except BlockingIOError:
            continue  # this page is not cached
        except OSError:
            return False  # this file system cannot tell
    return True


def read(file: int, size: int) -> float:
    """Read the file; bytes per second."""
    begun, done, buffer = time.perf_counter(), 0, bytearray(CHUNK)
    while done < size:
        got = os.preadv(file, [buffer], done)
        if not got:
            break
        done += got
    return done / (time.perf_counter() - begun)


def load(path: Path, on: str) -> float:
    """Load tensors from the file onto the device; bytes per second."""
    begun, done = time.perf_counter(), 0
    with safe_open(path, framework="pt", device=on) as file:
        for name in file.keys():  # noqa: SIM118 (not a dictionary)
            # On a CPU the tensor is memory-mapped; cloning it reads the file.
            tensor = file.get_tensor(name)
            tensor = tensor.clone() if on == "cpu" else tensor
            done += tensor.numel() * tensor.element_size()
            if done >= MOST:
                break
    if on != "cpu":
        torch.accelerator.synchronize()
    return done / (time.perf_counter() - begun)


def file_system(path: Path) -> str:
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    holding = [each for each in mounts if path.is_relative_to(each[1])]
    return max(holding, key=lambda each: len(each[1]))[2]


def main(asked: dict[str, Any]) -> None:
    files = sorted(Path(asked["path"]).glob("*.safetensors"), key=lambda each: each.stat().st_size)
    if not files:
        print("{}")
        return
    on = "cpu"
    if torch.accelerator.is_available():
        on = str(torch.accelerator.current_accelerator())
    path = files[-1]
    size = min(path.stat().st_size, MOST)
    file = os.open(path, os.O_RDONLY)
    found: dict[str, list[Any]] = {"read": [], "load": [], "uncached": []}
    for _ in range(REPEATS):
        found["uncached"].append(forgotten(file, size))
        found["read"].append(read(file, size))
        forgotten(file, size)
        found["load"].append(load(path, on))
    print(
        json.dumps(
            {
                "path": str(path),
                "bytes": size,
                "file_system": file_system(path),
                "uncached": all(found["uncached"]),
                "read_bytes_per_s": found["read"],
                "load_bytes_per_s": found["load"],
            }
        )
    )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
