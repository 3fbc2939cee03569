"""What a commit of a model holds, by the hub or by a directory, and which of it vLLM needs."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.core.console import VisibleFormatter
from orchestrator.core.download import is_secure
from orchestrator.core.errors import UserError
from orchestrator.core.foreign import ForeignDirectory

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
#: What a model's own code is; brought only where the profile trusts it.
CODE = "*.py"


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
#: The most bytes of a listing or a manifest, of a compressed one, and of a note on one file.
LISTING, COMPRESSED, NOTE = 64 << 20, 1 << 20, 4096
TOKEN = "set HF_TOKEN to a token with read access"


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub lists it. ``sha256`` of a large one, ``blob`` (git's SHA-1) of others;
    neither where nobody says what it should be. Of a file in a directory, ``opened`` opens it."""

    path: str
    size: int
    sha256: str | None = None
    blob: str | None = None
    url: str = ""
    opened: Callable[[], BufferedReader] | None = None


def chosen(files: Iterable[RemoteFile], code: bool = False) -> list[RemoteFile]:
    """Those that vLLM needs; no weights among them where there are none that it reads. With
    ``code``, also what the model runs of its own."""
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
    wanted = [*WANTED, *([CODE] if code else [])]
    return found + [file for file in root if any(fnmatch(file.path, each) for each in wanted)]


def must_be_a_model(files: Sequence[RemoteFile], what: str, hint: str) -> None:
    """Raises UserError where the chosen files are none that vLLM can serve."""
    if not any(file.path == "config.json" for file in files):
        raise UserError(f"{what} holds no model for vLLM: there is no config.json", hint)
    if not any(fnmatch(file.path, each.pattern) for file in files for each in FORMATS):
        raise UserError(f"{what} holds no weights that vLLM reads (*.safetensors or *.bin)", hint)


def require_secure_hub() -> None:
    """Raises UserError where the hub is reached by plain http: it says which hashes are right."""
    from huggingface_hub import constants

    if not is_secure(constants.ENDPOINT):
        raise UserError(
            f"HF_ENDPOINT is {constants.ENDPOINT}: anybody on the way can change what plain http "
            "brings, and the hub says which hashes are right",
            "Use https, or take the files from a directory: --from DIRECTORY.",
        )


def listed(repository: str, revision: str) -> list[RemoteFile]:
    """What the hub says that a commit holds, all of it. Raises UserError where it does not say."""
    from huggingface_hub import HfApi, hf_hub_url

    require_secure_hub()
    with explained(repository, revision):
        info = _asked(
            lambda: HfApi().model_info(repository, revision=revision, files_metadata=True)
        )
    if info.sha != revision:
        raise UserError(
            f"the hub returned commit {info.sha} of {repository} instead of {revision}",
            "A revision must be a full commit hash of 40 digits.",
        )
    with explained(repository, revision):
        return [
            RemoteFile(
                _file_name(each.rfilename),
                _file_size(each.size),
                each.lfs.sha256 if each.lfs else None,
                None if each.lfs else each.blob_id,
                hf_hub_url(repository, each.rfilename, revision=revision),
            )
            for each in info.siblings or ()
        ]


def _file_name(given: object) -> str:
    """Raises ValueError for what is no name of a file that anybody has."""
    if not isinstance(given, str) or not given.isprintable() or not given:
        raise ValueError(f"it lists a file named {given!r:.100}")
    return given


def _file_size(given: object) -> int:
    if given is None:
        return 0
    if not isinstance(given, int) or given < 0:
        raise ValueError(f"it lists a file of {given!r:.100} bytes")
    return given


def commit_of(repository: str, branch: str) -> str:
    """The commit that a branch or a tag is at now. Raises UserError as ``listed`` does."""
    from huggingface_hub import HfApi

    require_secure_hub()
    with explained(repository, branch):
        return str(_asked(lambda: HfApi().model_info(repository, revision=branch)).sha)


def content(repository: str, file: str, commit: str) -> bytes:
    """A small file of a commit. Raises UserError as ``listed`` does."""
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils._headers import build_hf_headers
    from huggingface_hub.utils._http import hf_raise_for_status

    def asked() -> bytes:
        url = hf_hub_url(repository, file, revision=commit)
        reply = get_session().get(url, headers=build_hf_headers(), follow_redirects=True)
        hf_raise_for_status(reply)
        return bytes(reply.content)

    with explained(repository, commit):
        return _asked(asked)


def tensors_of(repository: str, file: str, commit: str) -> list[tuple[str, str, list[int]]]:
    """(name, format, shape) by the header of a safetensors file, of which no more is read."""
    from huggingface_hub import HfApi

    with explained(repository, commit):
        found = _asked(
            lambda: HfApi().parse_safetensors_file_metadata(repository, file, revision=commit)
        )
    return [(name, str(each.dtype), list(each.shape)) for name, each in found.tensors.items()]


def in_directory(source: Path, repository: str, revision: str) -> list[RemoteFile]:
    """The files of a commit in a directory: one that `model pull` made, the hub's own cache, what
    `hf download --local-dir` made, or files by hand. Of all but the last the hashes are known.

    Raises UserError where it is of another commit, or a file is a link that leads out of it.
    """
    there = ForeignDirectory(source)
    home = _home(there, repository, revision)
    promised = _promised(there, home, revision)
    names = [name for name in there.names(home) if _may_be_chosen(name)]
    found = {name: f"{home}/{name}" for name in names if there.is_file(f"{home}/{name}")}
    return [
        RemoteFile(
            name,
            there.look(path).st_size,
            *_hashes(there, path, promised.get(name)),
            (source / path).absolute().as_uri(),
            partial(there.open, path),
        )
        for name, path in found.items()
    ]


def _may_be_chosen(name: str) -> bool:
    patterns = [*WANTED, *(each.pattern for each in FORMATS)]
    return not name.startswith(".") and any(fnmatch(name, pattern) for pattern in patterns)


def _home(source: ForeignDirectory, repository: str, revision: str) -> str:
    """Where the files are: in ``source``, or where one of the hub's layouts has them below it."""
    cached = f"models--{repository.replace('/', '--')}/snapshots/{revision}"
    below = (
        ".",
        f"snapshots/{revision}",
        cached,
        f"hub/{cached}",
        f"{repository}/{revision}",
    )
    return next((home for home in below if source.is_file(f"{home}/config.json")), ".")


def _promised(source: ForeignDirectory, home: str, revision: str) -> dict[str, str]:
    """By name, the sha256 or blob that whoever brought the files wrote down."""
    found: dict[str, str] = {}
    commits = set()
    if source.is_file(f"{home}/{MANIFEST}"):
        commit, found = _manifest(source, f"{home}/{MANIFEST}")
        commits.add(commit)
    notes = f"{home}/.cache/huggingface/download"
    for name in _names(source, notes):
        if name.endswith(".metadata") and source.is_file(f"{notes}/{name}"):
            text = source.read(f"{notes}/{name}", NOTE).decode(errors="replace")
            commit, etag, *_ = [*text.split(), "", ""]
            commits.add(commit)
            found[name.removesuffix(".metadata")] = etag
    if others := commits - {revision}:
        raise UserError(
            f"{source.root / home} holds commit {sorted(others)[0]}; the profile requires"
            f" {revision}",
            "Provide that commit, or change the profile's revision.",
        )
    return found


def _manifest(source: ForeignDirectory, path: str) -> tuple[str, dict[str, str]]:
    """The commit and the hashes that `model pull` wrote down. Raises UserError where it did not."""
    try:
        document = json.loads(source.read(path, LISTING))
        files = {str(name): str(entry["sha256"]) for name, entry in document["files"].items()}
        return str(document["revision"]), files
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"{source.root / path}: is not what 'orchestrate model pull' writes",
            "Copy the directory again, or remove this file: the others are then taken as they are.",
        ) from None


def _names(source: ForeignDirectory, inside: str) -> list[str]:
    try:
        return source.names(inside)
    except FileNotFoundError:
        return []


def _hashes(
    source: ForeignDirectory, path: str, promised: str | None
) -> tuple[str | None, str | None]:
    """Its sha256 or its blob, as far as somebody says so; in the hub's cache its link does."""
    name = promised or source.target(path)
    return (
        name if SHA256.fullmatch(name) else None,
        name if BLOB.fullmatch(name) else None,
    )


def _asked(question: Callable[[], _Answer]) -> _Answer:
    """Ask the hub, and once more where it has too much to do."""
    from huggingface_hub import get_session
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import logging

    for handler in logging.get_logger().handlers:  # it warns of what a header says
        handler.setFormatter(VisibleFormatter())
    web = get_session()
    answered = web.event_hooks["response"]
    if _bounded not in answered:
        web.event_hooks = {**web.event_hooks, "response": [*answered, _bounded]}
    for pause in PAUSES:
        try:
            return question()
        except HfHubHTTPError as error:
            if error.response.status_code not in TOO_BUSY:
                raise
        time.sleep(pause)
    return question()


def _bounded(answer: Any) -> None:
    """An answer of the hub that has no end is refused early, and not kept in memory."""
    chunks = answer.stream
    most = COMPRESSED if "content-encoding" in answer.headers else LISTING

    class Bounded(type(chunks)):  # type: ignore[misc]  # the client takes its own kind only
        def __init__(self) -> None: ...

        def __iter__(self) -> Iterator[bytes]:
            left = most
            for chunk in chunks:
                left -= len(chunk)
                if left < 0:
                    raise OSError(f"its answer is larger than {most >> 20} MiB")
                yield chunk

        def close(self) -> None:
            chunks.close()

    answer.stream = Bounded()


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
    except (KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"{what}: the hub's answer is not what a hub says",
            "Check HF_ENDPOINT, or take the files from a directory: --from DIRECTORY.",
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
