"""Models of the Hugging Face hub on this machine: brought, checked, listed, removed.

huggingface_hub says what a commit holds and knows the user's token; the bytes come as those of
images do, since its own downloads begin anew after an interruption. A model is whole when its
manifest is there, which is written last: every file with its size and sha256.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from orchestrator import paths
from orchestrator.errors import UserError
from orchestrator.image import download
from orchestrator.image.progress import Progress

#: What vLLM reads of a repository, and nothing else of it: no second format of the weights, no
#: code, no pictures. Only files at its root: directories hold other formats (onnx/, original/).
WANTED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken")
#: Weights where there are no safetensors.
FALLBACK = ("*.bin",)
#: Hidden, so that it is not handed out to nodes.
MANIFEST = ".orchestrate.json"
#: Where parts of downloads lie until they are whole; gone when all are.
SCRATCH = ".download"
#: Room that has to stay free beside what is brought, in bytes.
SLACK = 256 << 20
JOBS = 4


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub lists it. ``sha256`` of a large one, ``blob`` (git's SHA-1) of others."""

    path: str
    size: int
    sha256: str | None
    blob: str | None


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


def chosen(files: Iterable[RemoteFile]) -> list[RemoteFile]:
    """Those that vLLM needs."""
    root = [file for file in files if "/" not in file.path and not file.path.startswith(".")]
    wanted = [file for file in root if any(fnmatch(file.path, each) for each in WANTED)]
    if not any(file.path.endswith(".safetensors") for file in wanted):
        wanted += [file for file in root if any(fnmatch(file.path, each) for each in FALLBACK)]
    return wanted


def pull(repository: str, revision: str) -> Pulled:
    """Bring what vLLM needs of a commit and check every byte of it.

    Raises UserError where the hub does not give it, the disk is too small, or a file is not what
    the hub says that it is (such a file is removed).
    """
    home = directory(repository, revision)
    if manifest(home):
        return Pulled(home, 0, 0, len(manifest(home)))
    files = chosen(_listed(repository, revision))
    if not any(file.path == "config.json" for file in files):
        raise UserError(
            f"{repository} at {revision[:12]} has no config.json: it holds no model for vLLM",
            "Formats such as GGUF are for other programs; look for the model's own repository.",
        )
    lacking = [file for file in files if not _is_whole(home / file.path, file)]
    _check_space(home, lacking)
    with Progress(sum(file.size for file in lacking), len(lacking)) as progress:
        _bring(repository, revision, home, lacking, progress)
    _finish(home, repository, revision, files)
    return Pulled(home, len(lacking), sum(file.size for file in lacking), len(files) - len(lacking))


def take(repository: str, revision: str, source: Path) -> Pulled:
    """The same from a directory, for a machine without network: whatever its files are, their
    hashes are written down. Raises UserError where it holds no model, or the disk is too small."""
    found = [
        RemoteFile(path.name, path.stat().st_size, None, None)
        for path in sorted(source.iterdir() if source.is_dir() else ())
        if path.is_file()
    ]
    files = chosen(found)
    if not any(file.path == "config.json" for file in files):
        raise UserError(
            f"{source} holds no model: there is no config.json",
            "Name the directory that has config.json and the weights.",
        )
    home = directory(repository, revision)
    _check_space(home, files)
    home.mkdir(parents=True, exist_ok=True)
    for file in files:
        beside = home / f".{file.path}.{os.getpid()}"
        shutil.copyfile(source / file.path, beside)
        beside.replace(home / file.path)
    _finish(home, repository, revision, files)
    return Pulled(home, len(files), sum(file.size for file in files), 0)


def newest(repository: str) -> str:
    """The commit that the repository's main branch is at. Raises UserError as ``pull`` does."""
    from huggingface_hub import HfApi

    with _explained(repository, "main"):
        return str(HfApi().model_info(repository).sha)


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
    """Remove a model's files; the manifest first, so that what is left is not taken for whole."""
    (model.directory / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(model.directory)
    for above in (model.directory.parent, model.directory.parent.parent):
        if not any(above.iterdir()):
            above.rmdir()


def manifest(home: Path) -> dict[str, dict[str, Any]]:
    """By path, size and sha256 of the files that were checked; empty where that is not finished
    or a file has another size since."""
    try:
        files: dict[str, dict[str, Any]] = json.loads((home / MANIFEST).read_text())["files"]
        sizes = {path: (home / path).stat().st_size for path in files}
    except (OSError, ValueError, KeyError):
        return {}
    return files if all(entry["size"] == sizes[path] for path, entry in files.items()) else {}


def _listed(repository: str, revision: str) -> list[RemoteFile]:
    from huggingface_hub import HfApi

    with _explained(repository, revision):
        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    if info.sha != revision:
        raise UserError(
            f"the hub answers with commit {info.sha} of {repository}, not {revision}",
            "A revision has to be a commit with all its 40 digits.",
        )
    return [
        RemoteFile(
            each.rfilename,
            each.size or 0,
            each.lfs.sha256 if each.lfs else None,
            None if each.lfs else each.blob_id,
        )
        for each in info.siblings or ()
    ]


def _bring(
    repository: str, revision: str, home: Path, files: Sequence[RemoteFile], progress: Progress
) -> None:
    from huggingface_hub import get_token, hf_hub_url

    stop = threading.Event()
    (home / SCRATCH).mkdir(parents=True, exist_ok=True)

    def one(file: RemoteFile) -> None:
        url = hf_hub_url(repository, file.path, revision=revision)
        part = home / SCRATCH / file.path
        expected, hashed = (file.sha256, None) if file.sha256 else (file.blob or "", _blob)
        loader.fetch(url, part, file.size, expected, hashed)
        part.chmod(0o644)  # the web server is nobody in particular
        part.replace(home / file.path)
        progress.finish()

    # A redirect to another host does not take the token along: httpx leaves it out.
    with download.client() as web, ThreadPoolExecutor(JOBS) as pool:
        if token := get_token():
            web.headers["Authorization"] = f"Bearer {token}"
        loader = download.Downloader(web, progress.advance, stop)
        # The largest first: else the last minutes wait for one file.
        jobs = [pool.submit(one, file) for file in sorted(files, key=lambda each: -each.size)]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _finish(home: Path, repository: str, revision: str, files: Sequence[RemoteFile]) -> None:
    """Write down what is there, once all of it is."""
    entries = {
        file.path: {"size": file.size, "sha256": file.sha256 or download.digest(home / file.path)}
        for file in files
    }
    shutil.rmtree(home / SCRATCH, ignore_errors=True)
    write_json(home / MANIFEST, {"repository": repository, "revision": revision, "files": entries})


def _is_whole(path: Path, file: RemoteFile) -> bool:
    """Whether the file is there: it got its name when its hash was right."""
    return path.is_file() and path.stat().st_size == file.size


def _blob(path: Path) -> str:
    """Git's name of a file's content: SHA-1 over ``blob SIZE NUL content``."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _check_space(home: Path, files: Sequence[RemoteFile]) -> None:
    there = download.existing_parent(home)
    free = shutil.disk_usage(there).free
    needed = sum(file.size for file in files) + SLACK
    if files and needed > free:
        raise UserError(
            f"not enough space at {there}: {needed >> 20} MiB needed, {free >> 20} MiB free",
            "Free some: orchestrate model ls, then model rm; or move it with $ORCHESTRATE_STATE.",
        )


def unfinished(home: Path) -> list[str]:
    """What an interrupted pull has begun."""
    return sorted(path.name for path in (home / SCRATCH).glob("*"))


def write_json(path: Path, document: Any) -> None:
    """Beside and renamed."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(document, indent=1) + "\n")
    beside.replace(path)


@contextmanager
def _explained(repository: str, revision: str) -> Iterator[None]:
    """The library's errors as one message each."""
    from huggingface_hub import errors

    web_error = errors.HTTPError  # type: ignore[attr-defined]  # of the client that it uses
    what = f"{repository} at {revision[:12]}"
    token = "set HF_TOKEN to a token of an account that may read it"
    try:
        yield
    except errors.GatedRepoError:
        raise UserError(
            f"{what}: the hub wants its terms accepted first",
            f"Accept them at its page there, then {token}.",
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(
            f"{what}: the repository has no such commit",
            "It may have been rewritten: see its history on the hub, and pin another revision.",
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{what}: the hub has no such repository, or does not show it",
            f"Check the name; where it is private, {token}.",
        ) from None
    except (web_error, OSError, ValueError) as error:
        said = str(error).strip().splitlines()
        raise UserError(
            f"{what}: the hub does not answer: {said[0] if said else type(error).__name__}",
            "Without network, take the files from a directory: --from DIRECTORY.",
        ) from None
