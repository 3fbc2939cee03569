"""Models of the Hugging Face hub on this machine: brought, checked, listed, removed.

huggingface_hub says what a commit holds and knows the user's token; the bytes come as those of
images do, since its own downloads begin anew after an interruption. A model is whole when its
manifest is there, which is written last: every file with its size and sha256.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.core import download, paths
from orchestrator.core.errors import UserError
from orchestrator.core.files import locked, write_json
from orchestrator.core.sizes import human_size
from orchestrator.core.transfers import Progress
from orchestrator.models import catalog
from orchestrator.models.hub_listing import (
    MANIFEST,
    RemoteFile,
    chosen,
    in_directory,
    listed,
    must_be_a_model,
    refused,
)
from orchestrator.models.reading.served import foreign

#: Where parts of downloads lie until they are whole; gone when all are.
SCRATCH = ".download"
#: Room that has to stay free beside what is brought, in bytes.
SLACK = 256 << 20
JOBS = 4


@dataclass(frozen=True)
class Pulled:
    """``files`` were brought, ``size`` bytes; ``present`` were there before."""

    directory: Path
    files: int
    size: int
    present: int


@dataclass(frozen=True)
class Held:
    """A model of the hub on this machine. ``state``: complete, partial or by hand (no manifest)."""

    repository: str
    revision: str
    directory: Path
    size: int
    state: str


def directory(repository: str, revision: str) -> Path:
    """Where the files of a commit lie."""
    return paths.hub() / repository / revision


def pull(repository: str, revision: str, check: bool = False, code: bool = False) -> Pulled:
    """Bring what vLLM needs of a commit and check every byte of it.

    What is complete is left alone; with ``check`` it is read again, and what is damaged brought
    anew. ``code``: bring the model's own Python files too. Raises UserError where the hub does not
    give it, the disk is too small, another pull is at it, or a file is not what the hub says that
    it is (such a file is removed).
    """
    home = directory(repository, revision)
    known = manifest(home)
    if code and not any(path.endswith(".py") for path in known):
        known = {}  # it was pulled without
    if known and not check:
        return Pulled(home, 0, 0, len(known))
    there = _written_down(repository, revision, known) or listed(repository, revision)
    what = f"{repository} at {revision[:12]}"
    if why := foreign([file.path for file in there]):
        raise UserError(f"{what}: {why}", "Use the model's original repository.")
    files = chosen(there, code)
    must_be_a_model(
        files,
        what,
        "Formats such as GGUF are for other programs; use the model's original repository.",
    )
    return _bring(repository, revision, files)


def take(repository: str, revision: str, source: Path) -> Pulled:
    """The same from a directory, for a machine without network. Files are compared with the hashes
    that whoever brought them wrote down; of files by hand, the hashes are written down as they are.

    Raises UserError where it holds no model or another commit, the disk is too small, or a file is
    damaged.
    """
    files = chosen(in_directory(source, repository, revision))
    must_be_a_model(files, str(source), "Name the directory that has config.json and the weights.")
    return _bring(repository, revision, files)


def held() -> list[Held]:
    """All models of the hub that this machine has, whole or not."""
    found = []
    for home in sorted(path for path in paths.hub().glob("*/*/*") if path.is_dir()):
        owner, name, revision = home.relative_to(paths.hub()).parts
        size = sum(path.stat().st_size for path in home.rglob("*") if path.is_file())
        if manifest(home):
            state = "complete"
        else:
            state = "partial" if (home / SCRATCH).is_dir() else "by hand"
        found.append(Held(f"{owner}/{name}", revision, home, size, state))
    return found


def remove(model: Held) -> None:
    """Remove a model's files; the manifest first, so that what is left is not taken for whole.

    Raises UserError where a pull is at it.
    """
    with _alone(model.directory):
        (model.directory / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(model.directory)
    for above in (model.directory.parent, model.directory.parent.parent):
        if not any(above.iterdir()):
            above.rmdir()


def manifest(home: Path) -> dict[str, dict[str, Any]]:
    """By path, size, sha256 and (of small files) git's blob of the files that were checked; empty
    where that is not finished or a file has another size since."""
    try:
        files: dict[str, dict[str, Any]] = json.loads((home / MANIFEST).read_text())["files"]
        sizes = {path: (home / path).stat().st_size for path in files}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return files if all(entry["size"] == sizes[path] for path, entry in files.items()) else {}


def unfinished(home: Path) -> list[str]:
    """What an interrupted pull has begun."""
    return sorted(path.name for path in (home / SCRATCH).glob("*"))


def _written_down(
    repository: str, revision: str, known: dict[str, dict[str, Any]]
) -> list[RemoteFile]:
    """The files of a complete model, which no hub has to be asked for."""
    from huggingface_hub import hf_hub_url

    return [
        RemoteFile(
            path, entry["size"], entry["sha256"], None,
            hf_hub_url(repository, path, revision=revision),
        )
        for path, entry in known.items()
    ]  # fmt: skip


def _bring(repository: str, revision: str, files: Sequence[RemoteFile]) -> Pulled:
    """Bring what is not there or not right, then write the manifest."""
    home = directory(repository, revision)
    with _alone(home):
        _check_space(home, files)
        (home / SCRATCH).mkdir(exist_ok=True)
        # What is small first, so that a model which lacks weights is known before they are brought.
        small = [file for file in files if file.path.endswith(".json")]
        rest = [file for file in files if file not in small]
        with Progress(sum(file.size for file in files), len(files)) as progress:
            brought = _fetched(repository, home, small, progress)
            _must_have_all_weights(home, files, f"{repository} at {revision[:12]}")
            brought += _fetched(repository, home, rest, progress)
        _finish(home, repository, revision, files)
    size = sum(file.size for file in brought)
    return Pulled(home, len(brought), size, len(files) - len(brought))


def _fetched(
    repository: str, home: Path, files: Sequence[RemoteFile], progress: Progress
) -> list[RemoteFile]:
    """Several at a time; returns those that were not there."""
    from huggingface_hub import get_token

    stop = threading.Event()

    def one(file: RemoteFile) -> bool:
        target, part = home / file.path, home / SCRATCH / file.path
        hashed, expected = _hash(file)
        if _is_there(target, file) and hashed(target) == expected:
            progress.advance(file.size)
            progress.finish()
            return False
        target.unlink(missing_ok=True)
        try:
            loader.fetch(file.url, part, file.size, expected, hashed, file.opened)
        except download.Unavailable as error:
            raise refused(repository, file.path, error.status, error.message) from None
        part.chmod(0o644)  # the web server is nobody in particular
        part.replace(target)
        progress.finish()
        return True

    # A redirect to another host does not take the token along: httpx leaves it out.
    with download.client() as web, ThreadPoolExecutor(JOBS) as pool:
        if token := get_token():
            web.headers["Authorization"] = f"Bearer {token}"
        loader = download.Downloader(web, progress.advance, stop)
        # The largest first: else the last minutes wait for one file.
        order = sorted(files, key=lambda each: -each.size)
        jobs = [(file, pool.submit(one, file)) for file in order]
        try:
            return [file for file, job in jobs if job.result()]
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _hash(file: RemoteFile) -> tuple[Any, str]:
    """How the file's content is named, and its name; where nobody says it, what its source has."""
    if file.sha256:
        return download.digest, file.sha256
    if file.blob:
        return _blob, file.blob
    if file.opened is None:
        return download.digest, ""
    with file.opened() as source:
        return download.digest, hashlib.file_digest(source, "sha256").hexdigest()


def _finish(home: Path, repository: str, revision: str, files: Sequence[RemoteFile]) -> None:
    """Write down what is there, once all of it is."""
    entries = {
        file.path: {
            "size": file.size,
            "sha256": file.sha256 or download.digest(home / file.path),
            **({"blob": file.blob} if file.blob else {}),
        }
        for file in files
    }
    shutil.rmtree(home / SCRATCH, ignore_errors=True)
    write_json(home / MANIFEST, {"repository": repository, "revision": revision, "files": entries})


def _is_there(path: Path, file: RemoteFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size


def _blob(path: Path) -> str:
    """Git's name of a file's content: SHA-1 over ``blob SIZE NUL content``."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as stream:
        while chunk := stream.read(download.CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _must_have_all_weights(home: Path, files: Sequence[RemoteFile], what: str) -> None:
    lacking = catalog.lacking_weights(home, {file.path for file in files})
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise UserError(
            f"{what} is incomplete: its index names {lacking[0]}{more}, which is missing",
            "In a directory: copy the missing files too. On the hub: pin another revision.",
        )


def _check_space(home: Path, files: Sequence[RemoteFile]) -> None:
    """Before the first byte. What an earlier pull brought takes no more room."""
    parts = home / SCRATCH
    have = {path.name.removesuffix(".part"): path.stat().st_size for path in parts.glob("*.part")}
    coming = [file.size - have.get(file.path, 0) for file in files
              if not _is_there(home / file.path, file)]  # fmt: skip
    free = shutil.disk_usage(home).free
    needed = sum(coming) + SLACK
    if coming and needed > free:
        raise UserError(
            f"not enough space at {home}: {human_size(needed)} needed, {human_size(free)} free",
            "Free some: orchestrate model ls, then model rm; or move it with $ORCHESTRATE_STATE.",
        )


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Two pulls would write to the same parts. Raises UserError where another one runs."""
    made = not home.exists()
    home.mkdir(parents=True, exist_ok=True)
    try:
        with locked(
            home,
            busy=lambda _: UserError(
                f"another 'orchestrate model' is using {home}", "Wait until it ends."
            ),
        ):
            yield
    finally:
        if made and home.is_dir() and not any(home.iterdir()):
            home.rmdir()  # nothing came
