"""What a commit of a model holds, by the hub or by a directory."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.core import download
from orchestrator.core.console import VisibleFormatter, err
from orchestrator.core.download import is_secure
from orchestrator.core.errors import UserError
from orchestrator.core.foreign import ForeignDirectory
from orchestrator.models import wanted
from orchestrator.models.hub_errors import OTHER_WAY, TOO_BUSY, explained

_Answer = TypeVar("_Answer")

#: Hidden, so that it is not handed out to nodes: what `hub` writes beside the files.
MANIFEST = ".orchestrate.json"
#: Seconds before the hub is asked once more, where it has too much to do and says no time.
PAUSES = (1.0, 3.0)
#: What the hub names contents by: sha256 of a large file, git's SHA-1 of others.
SHA256, BLOB = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")
#: The most bytes of a listing or a manifest, of a compressed one, and of a note on one file.
LISTING, COMPRESSED, NOTE = 64 << 20, 1 << 20, 4096
#: A name of a repository, as far as a message may repeat it.
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
#: The most bytes of a file's name: a part has a suffix.
NAME_BYTES = 240


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


@dataclass(frozen=True)
class Listing:
    """What a commit holds. ``repository``: its name today, which a renamed one is still found by;
    ``original``: of which model the hub's page says that it was made, where it says so."""

    files: list[RemoteFile]
    repository: str
    original: str = ""


def require_secure_hub() -> None:
    """Raises UserError where the hub is reached by plain http: it says which hashes are right."""
    from huggingface_hub import constants

    if not is_secure(constants.ENDPOINT):
        raise UserError(
            f"HF_ENDPOINT is {constants.ENDPOINT}: anybody on the way can change what plain http "
            "brings, and the hub says which hashes are right",
            f"Use https, or {OTHER_WAY}.",
        )


def listed(repository: str, revision: str) -> Listing:
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
        files = [
            RemoteFile(
                _file_name(each.rfilename),
                _file_size(each.size),
                each.lfs.sha256 if each.lfs else None,
                None if each.lfs else each.blob_id,
                hf_hub_url(repository, each.rfilename, revision=revision),
            )
            for each in info.siblings or ()
        ]
        if len({file.path for file in files}) < len(files):
            raise ValueError("it lists a file twice")
        return Listing(files, _name(info.id) or repository, _original(info.card_data))


def _original(card: Any) -> str:
    """The model that this one was made of; empty where there are several, or nobody says."""
    found = card.get("base_model") if card else None
    return _name(found[0] if isinstance(found, list) and len(found) == 1 else found)


def _name(given: object) -> str:
    return given if isinstance(given, str) and NAME.fullmatch(given) else ""


def _file_name(given: object) -> str:
    """Raises ValueError for what is no name of a file that anybody has."""
    if not isinstance(given, str) or not given.isprintable() or not given:
        raise ValueError(f"it lists a file named {given!r:.100}")
    if "/" not in given and len(given.encode()) > NAME_BYTES:
        raise ValueError(f"it lists a file with a name of {len(given.encode())} bytes")
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


def in_directory(
    source: Path, repository: str, revision: str, code: bool = False
) -> list[RemoteFile]:
    """The files of a commit in a directory: one that `model pull` made, the hub's own cache, what
    `hf download --local-dir` made, or files by hand. Of all but the last the hashes are known.

    Raises UserError where it is of another commit, or a file is a link that leads out of it.
    """
    there = ForeignDirectory(source)
    home = _home(there, repository, revision)
    promised = _promised(there, home, revision)
    names = [name for name in there.names(home) if wanted.may_be_wanted(name, code)]
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
    configs = (wanted.CONFIG, wanted.NATIVE_CONFIG)
    return next(
        (home for home in below if any(source.is_file(f"{home}/{name}") for name in configs)), "."
    )


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
    """Ask the hub, and again where it has too much to do: at the time that it says, if any."""
    from huggingface_hub import get_session
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import logging

    for handler in logging.get_logger().handlers:  # it warns of what a header says
        handler.setFormatter(VisibleFormatter())
    web = get_session()
    answered = web.event_hooks["response"]
    if _bounded not in answered:
        web.event_hooks = {**web.event_hooks, "response": [*answered, _bounded]}
    patience = download.PATIENCE
    for pause in PAUSES:
        try:
            return question()
        except HfHubHTTPError as error:
            status, later = error.response.status_code, download.wished(error.response.headers)
            if status not in TOO_BUSY or later > patience:
                raise
        if later:
            patience -= later
            err.print(f"the hub: HTTP {status}: {download.waits(later)}")
        time.sleep(max(pause, later))
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
