"""What a commit of a model holds, by the hub or by a directory, and which of it vLLM needs."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TypeVar

from orchestrator.core.errors import UserError

_Answer = TypeVar("_Answer")

#: What is brought of a repository beside the weights -> what it is for. Nothing else is: no code,
#: no pictures, and only files at its root, since directories hold other formats (onnx/, original/).
WANTED = {
    "*.json": "the model's shape, its tokenizer, which weights are in which file",
    "*.model": "SentencePiece's vocabulary",
    "*.tiktoken": "tiktoken's vocabulary",
    "*.txt": "vocabulary and merges of older tokenizers",
    "*.jinja": "the chat template",
}


@dataclass(frozen=True)
class Weights:
    """A format of the weights: files of ``pattern``, but not of ``other``, which are ``why``."""

    pattern: str
    other: tuple[str, ...] = ()
    why: str = ""


#: One format is brought: the first that there is. Each would be all of the model once more.
FORMATS = (
    Weights("*.safetensors", ("consolidated*",), "the same weights, for Mistral's own programs"),
    Weights("consolidated*.safetensors"),
    Weights("*.bin", ("training_args.bin", "optimizer.bin", "scheduler.bin"), "of its training"),
)

#: Hidden, so that it is not handed out to nodes: what `hub` writes beside the files.
MANIFEST = ".orchestrate.json"
#: Seconds before the hub is asked once more, where it has too much to do.
PAUSES = (1.0, 3.0)
TOO_BUSY = (429, 500, 502, 503, 504)
#: What the hub names contents by: sha256 of a large file, git's SHA-1 of others.
SHA256, BLOB = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")
TOKEN = "set HF_TOKEN to a token with read access"


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub lists it. ``sha256`` of a large one, ``blob`` (git's SHA-1) of others;
    neither where nobody says what it should be."""

    path: str
    size: int
    sha256: str | None = None
    blob: str | None = None
    url: str = ""


def chosen(files: Iterable[RemoteFile]) -> list[RemoteFile]:
    """Those that vLLM needs; no weights among them where there are none that it reads."""
    root = [file for file in files if "/" not in file.path and not file.path.startswith(".")]
    for weights in FORMATS:
        found = [
            file
            for file in root
            if fnmatch(file.path, weights.pattern)
            and not any(fnmatch(file.path, each) for each in weights.other)
        ]
        if found:
            break
    return found + [file for file in root if any(fnmatch(file.path, each) for each in WANTED)]


def must_be_a_model(files: Sequence[RemoteFile], what: str, hint: str) -> None:
    """Raises UserError where the chosen files are none that vLLM can serve."""
    if not any(file.path == "config.json" for file in files):
        raise UserError(f"{what} holds no model for vLLM: there is no config.json", hint)
    if not any(fnmatch(file.path, each.pattern) for file in files for each in FORMATS):
        raise UserError(f"{what} holds no weights that vLLM reads (*.safetensors or *.bin)", hint)


def listed(repository: str, revision: str) -> list[RemoteFile]:
    """What the hub says that a commit holds, all of it. Raises UserError where it does not say."""
    from huggingface_hub import HfApi, hf_hub_url

    with explained(repository, revision):
        info = _asked(
            lambda: HfApi().model_info(repository, revision=revision, files_metadata=True)
        )
    if info.sha != revision:
        raise UserError(
            f"the hub returned commit {info.sha} of {repository} instead of {revision}",
            "A revision must be a full commit hash of 40 digits.",
        )
    return [
        RemoteFile(
            each.rfilename,
            each.size or 0,
            each.lfs.sha256 if each.lfs else None,
            None if each.lfs else each.blob_id,
            hf_hub_url(repository, each.rfilename, revision=revision),
        )
        for each in info.siblings or ()
    ]


def commit_of(repository: str, branch: str) -> str:
    """The commit that a branch or a tag is at now. Raises UserError as ``listed`` does."""
    from huggingface_hub import HfApi

    with explained(repository, branch):
        return str(_asked(lambda: HfApi().model_info(repository, revision=branch)).sha)


def in_directory(source: Path, repository: str, revision: str) -> list[RemoteFile]:
    """The files of a commit in a directory: one that `model pull` made, the hub's own cache, what
    `hf download --local-dir` made, or files by hand. Of all but the last the hashes are known.

    Raises UserError where it is of another commit.
    """
    home = _home(source, repository, revision)
    promised = _promised(home, revision)
    return [
        RemoteFile(
            path.name, path.stat().st_size, *_hashes(path, promised), path.resolve().as_uri()
        )
        for path in sorted(home.iterdir())
        if path.is_file()
    ]


def _home(source: Path, repository: str, revision: str) -> Path:
    """Where the files are: in ``source``, or where one of the hub's layouts has them below it."""
    cached = Path(f"models--{repository.replace('/', '--')}", "snapshots", revision)
    below = (
        Path(),
        Path("snapshots", revision),
        cached,
        "hub" / cached,
        Path(repository, revision),
    )
    homes = [source / each for each in below]
    return next((home for home in homes if (home / "config.json").is_file()), source)


def _promised(home: Path, revision: str) -> dict[str, str]:
    """By name, the sha256 or blob that whoever brought the files wrote down."""
    found, commits = {}, set()
    if (home / MANIFEST).is_file():
        document = json.loads((home / MANIFEST).read_text())
        commits.add(document["revision"])
        found = {name: str(entry["sha256"]) for name, entry in document["files"].items()}
    for note in (home / ".cache/huggingface/download").glob("*.metadata"):
        commit, etag, *_ = [*note.read_text().split(), "", ""]
        commits.add(commit)
        found[note.name.removesuffix(".metadata")] = etag
    if others := commits - {revision}:
        raise UserError(
            f"{home} holds commit {sorted(others)[0]}; the profile requires {revision}",
            "Provide that commit, or change the profile's revision.",
        )
    return found


def _hashes(path: Path, promised: dict[str, str]) -> tuple[str | None, str | None]:
    """Its sha256 or its blob, as far as somebody says so; in the hub's cache its link does."""
    name = promised.get(path.name) or (path.resolve().name if path.is_symlink() else "")
    return (
        name if SHA256.fullmatch(name) else None,
        name if BLOB.fullmatch(name) else None,
    )


def _asked(question: Callable[[], _Answer]) -> _Answer:
    """Ask the hub, and once more where it has too much to do."""
    from huggingface_hub.errors import HfHubHTTPError

    for pause in PAUSES:
        try:
            return question()
        except HfHubHTTPError as error:
            if error.response.status_code not in TOO_BUSY:
                raise
        time.sleep(pause)
    return question()


def refused(repository: str, file: str, status: int | None, said: str) -> UserError:
    """Why a file of a listed commit does not come."""
    what = f"{repository}: cannot download {file} from the hub: {said}"
    if status in (401, 403):
        return UserError(what, f"Accept the terms on its hub page, if it has any, and {TOKEN}.")
    if status in (404, 410):
        return UserError(what, "The hub no longer has it: pin another revision in the profile.")
    return UserError(what, "Run it again: it resumes where it stopped.")


@contextmanager
def explained(repository: str, revision: str) -> Iterator[None]:
    """The library's errors as one message each."""
    from huggingface_hub import errors

    web_error = errors.HTTPError  # type: ignore[attr-defined]  # of the client that it uses
    what = f"{repository} at {revision[:12]}"
    try:
        yield
    except errors.GatedRepoError:
        raise UserError(
            f"{what}: the hub requires that its terms are accepted first",
            f"Accept them on its hub page, then {TOKEN}.",
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(
            f"{what}: the repository has no such commit, branch or tag",
            "It may have been rewritten: see its history on the hub, and use another revision.",
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{what}: the hub has no such repository, or it is private",
            f"Check the name; for a private repository, {TOKEN}.",
        ) from None
    except (web_error, OSError, ValueError) as error:
        reply = getattr(error, "response", None)
        if reply is None:
            said = [*str(error).strip().splitlines(), type(error).__name__][0]
            raise UserError(
                f"{what}: the hub does not answer: {said}",
                "Without network, take the files from a directory: --from DIRECTORY.",
            ) from None
        if reply.status_code == 401:
            raise UserError(
                f"{what}: Hugging Face rejected the token (401)",
                "It comes from HF_TOKEN, else from 'hf auth login'. Renew or remove it.",
            ) from None
        said = reply.headers.get("X-Error-Message") or reply.reason_phrase
        raise UserError(
            f"{what}: the hub refused it: HTTP {reply.status_code} {said}",
            "Try again later."
            if reply.status_code in TOO_BUSY
            else f"If it needs permission, {TOKEN}.",
        ) from None
