"""Fetch an image's locked files that the Nix store lacks. A second run continues the first."""

from __future__ import annotations

import heapq
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from orchestrator.core import download
from orchestrator.core.errors import UserError
from orchestrator.core.sizes import human_size
from orchestrator.core.transfers import Progress
from orchestrator.image import downloads, lockfile, seed, store
from orchestrator.image.build.sources import Sources
from orchestrator.image.lockfile import File, Lock

#: Downloads are copied into the store, and removed from the cache, in batches of at most this size,
#: so that few files are on the disk twice.
BATCH_FILES = 32
BATCH_BYTES = 256 << 20

#: Disk space in bytes that the store needs beside the files (database, rounding to blocks).
SLACK = 64 << 20

#: Answers of a server that has removed a file, or never had it.
GONE = (404, 410)

HINT = (
    "Without network: on a machine with network run 'orchestrate image fetch NAME' and "
    "'orchestrate image export NAME DIRECTORY', then here 'orchestrate image fetch NAME --from "
    "DIRECTORY'."
)


@dataclass(frozen=True)
class Fetched:
    """The number of files that were fetched, their bytes, and the number already present."""

    files: int
    size: int
    present: int


def fetch(
    name: str, sources: Sources, *, jobs: int = 8, keep: bool = False, available: bool = False
) -> Fetched:
    """Fetch every locked file of the image ``name``, and of the shared parts, into the Nix store.

    ``keep``: leave the downloads in the cache, to copy them to a machine without network.
    ``available``: skip files that neither a mirror nor an index has. Raises UserError if a lock is
    missing or stale, the disk is too small, or a file cannot be fetched. Files that were fetched
    before the error stay.
    """
    store.require_nix()
    locks = lockfile.with_shared(name)
    if available:
        locks = {each: lock.available() for each, lock in locks.items()}
    listed = {
        deb.sha256: lock.listed for lock in locks.values() if lock.listed for deb in lock.debs
    }
    sources = replace(sources, listed=listed)
    wanted = {path: file for lock in locks.values() for path, file in store.paths_of(lock).items()}
    absent = store.missing(wanted)
    lacking: dict[Path, File] = {}
    try:
        with downloads.alone() if absent else nullcontext():
            absent = store.missing(absent)  # another command may have brought some
            lacking = {path: file for path, file in wanted.items() if path in absent and file}
            _bring(list(lacking.values()), sources, jobs, keep)
        for lock in locks.values():
            _make_seed(lock, absent)
    finally:
        # Also after a failure: without a root, Nix could collect the files that were fetched.
        gone = store.missing(wanted)
        for each, lock in locks.items():
            store.keep(each, store.paths_of(lock).keys() - gone)
    brought = sum(path.stat().st_size for path in lacking)
    return Fetched(len(lacking), brought, len(wanted) - len(absent))


def _bring(files: Sequence[File], sources: Sources, jobs: int, keep: bool) -> None:
    """Download ``files`` in parallel, and add them to the store as they arrive."""
    if not files:
        return
    with download.client() as web, download.threads(jobs) as (pool, _):
        files = list(pool.map(lambda file: _ask_size(web, file, sources), files))
    check_space(files, jobs, keep)
    with (
        Progress(lockfile.known_size(files), len(files)) as progress,
        download.client() as web,
        download.threads(jobs) as (pool, stop),
    ):
        loader = download.Downloader(web, progress.advance, stop)
        # The largest first, so that the end does not wait for one large file. Files of unknown
        # size count as large.
        queue = sorted(files, key=lambda file: file.size or sys.maxsize, reverse=True)
        futures = {pool.submit(_one, loader, file, sources): file for file in queue}
        _add_as_they_come(futures, progress, keep)


def _ask_size(web: httpx.Client, file: File, sources: Sources) -> File:
    """``file`` with its size from the server, if the lock does not have it."""
    if file.size is not None:
        return file
    url = next(iter(sources.urls(file)), None)
    size = download.size_at(web, url) if url else None
    return file.model_copy(update={"size": size})


def _add_as_they_come(futures: dict[Future[None], File], progress: Progress, keep: bool) -> None:
    """Add finished downloads to the store in batches. Raises one UserError with all failures."""
    todo, batch, problems = set(futures), list[File](), list[UserError]()
    while todo:
        done, todo = wait(todo, return_when=FIRST_COMPLETED)
        for future in done:
            try:
                future.result()
                batch.append(futures[future])
                progress.finish()
            except (download.Unavailable, download.WrongHash) as error:
                problems.append(error)
        large = sum(_downloaded(file) for file in batch) >= BATCH_BYTES
        if batch and (large or len(batch) >= BATCH_FILES or not todo):
            _add(batch, keep)
            batch = []
    if problems:
        raise UserError(
            f"{len(problems)} of {len(futures)} files could not be fetched:\n"
            + "\n".join(f"  {error.message}" for error in problems),
            next((error.hint for error in problems if error.hint), "The others are in the store."),
        )


def _one(loader: download.Downloader, file: File, sources: Sources) -> None:
    """Download one file into the cache, from the first source that has it."""
    target = downloads.place() / file.store
    if target.exists():
        if download.digest(target) == file.sha256:
            loader.advance(_downloaded(file))
            return
        target.unlink()
    tried: list[download.Unavailable] = []
    for url in places(file, sources, tried):
        try:
            loader.fetch(url, target, file.size, file.sha256)
            return
        except download.Unavailable as error:
            tried.append(error)
    said = (
        "; ".join(error.message for error in tried) or f"{sources.describe(file)} does not have it"
    )
    raise download.Unavailable(f"{file.file}: {said}", HINT)


def places(file: File, sources: Sources, tried: Sequence[download.Unavailable]) -> Iterator[str]:
    """Where to look for a file. Debian's history is asked only for what every mirror says is gone:
    one that does not answer is no reason to ask another server for everything."""
    yield from sources.urls(file)
    if tried and all(error.status in GONE for error in tried) and (url := sources.history(file)):
        yield url


def _downloaded(file: File) -> int:
    return (downloads.place() / file.store).stat().st_size


def _add(batch: Iterable[File], keep: bool) -> None:
    """Move downloads from the cache into the store; with `keep`, copy them."""
    files = [downloads.place() / file.store for file in batch]
    added = store.add_files(files)
    expected = [store.path_of_file(file) for file in batch]
    assert added == expected, f"Nix stored {added}, expected {expected}"
    if not keep:
        for path in files:
            path.unlink()


def _make_seed(lock: Lock, absent: set[Path]) -> None:
    """Make the seed's directory from its package in the store, and add it to the store."""
    if lock.seed is None or store.path_of_seed(lock.seed.sha256) not in absent:
        return
    deb = next(deb for deb in lock.debs if deb.name == lock.seed.deb)
    content = seed.extract(store.path_of_file(deb), lock.seed.file)
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch, seed.STORE_NAME)
        seed.lay_out(content, directory)
        added = store.add_directory(directory)
    expected = store.path_of_seed(lock.seed.sha256)
    assert added == expected, f"Nix stored {added}, expected {expected}"


def check_space(files: Sequence[File], jobs: int, keep: bool) -> None:
    """Raises UserError if the disks of cache and store have too little space for ``files``.

    Files of unknown size are not counted. If one fills the disk, its download fails.
    """
    total = lockfile.known_size(files)
    in_flight = sum(heapq.nlargest(jobs, (file.size or 0 for file in files))) + BATCH_BYTES
    needs = [
        (downloads.place(), total if keep else min(total, in_flight)),
        (store.directory(), total),
    ]
    by_disk: dict[int, list[tuple[Path, int]]] = {}
    for path, size in needs:
        there = download.existing_parent(path)
        by_disk.setdefault(there.stat().st_dev, []).append((there, size))
    for disk in by_disk.values():
        needed, free = sum(size for _, size in disk) + SLACK, shutil.disk_usage(disk[0][0]).free
        if needed > free:
            where = " and ".join(str(path) for path, _ in disk)
            raise UserError(
                f"not enough space at {where}: {human_size(needed)} needed,"
                f" {human_size(free)} free",
                "Free some: orchestrate image gc, nix-collect-garbage; or move the cache with "
                "$ORCHESTRATE_CACHE.",
            )
