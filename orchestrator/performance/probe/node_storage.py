"""Runs on a node with the image's torch: how quickly its model is read and loaded.

One argument, JSON: {"path": directory of the model}. Prints {} where no weights lie there.
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
#: Of a file, what is read and loaded at most: weights have gigabytes.
MOST, CHUNK = 512 << 20, 4 << 20
#: Pages looked at, to tell whether the file is held in memory.
LOOKS = 16


def forgotten(file: int, size: int) -> bool:
    """Let the kernel forget the file's pages; whether it did. A file in memory stays there."""
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    for number in range(LOOKS):
        try:
            if os.preadv(file, [bytearray(1)], size * number // LOOKS, os.RWF_NOWAIT):
                return False
        except BlockingIOError:
            continue  # it would have to be fetched
        except OSError:
            return False  # this file system does not tell
    return True


def read(file: int, size: int) -> float:
    """Bytes a second."""
    begun, done, buffer = time.perf_counter(), 0, bytearray(CHUNK)
    while done < size:
        got = os.preadv(file, [buffer], done)
        if not got:
            break
        done += got
    return done / (time.perf_counter() - begun)


def load(path: Path, on: str) -> float:
    """Bytes a second of tensors, from the file onto the device."""
    begun, done = time.perf_counter(), 0
    with safe_open(path, framework="pt", device=on) as file:
        for name in file.keys():  # noqa: SIM118 (it is no dictionary)
            # On a processor a tensor is the file's own pages, until something reads them.
            tensor = file.get_tensor(name)
            tensor = tensor.clone() if on == "cpu" else tensor
            done += tensor.numel() * tensor.element_size()
            if done >= MOST:
                break
    if on != "cpu":
        torch.accelerator.synchronize()
    return done / (time.perf_counter() - begun)


def file_system(path: Path) -> str:
    """The type of what is mounted where the file is."""
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
