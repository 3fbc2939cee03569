"""Models of the Hugging Face hub on this machine: brought, checked, listed, removed.

huggingface_hub says what a commit holds and knows the user's token; the bytes come as those of
images do, since its own downloads begin anew after an interruption. A model is whole when its
manifest is there, which is written last: every file with its size and sha256.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from orchestrator.core import download, paths
from orchestrator.core.console import err
from orchestrator.core.errors import UserError
from orchestrator.core.files import locked, write_json
from orchestrator.core.sizes import human_size
from orchestrator.core.transfers import Progress
from orchestrator.models import hub_choice, wanted
from orchestrator.models.hub_choice import NO_WISH, NotServed, Wish
from orchestrator.models.hub_errors import refused
from orchestrator.models.hub_listing import MANIFEST, RemoteFile, in_directory, listed

#: Where parts of downloads lie until they are whole; gone when all are.
SCRATCH = ".download"
#: Room that has to stay free beside what is brought, in bytes.
SLACK = 256 << 20
JOBS = 4


@dataclass(frozen=True)
class Pulled:
    """``files`` were brought, ``size`` bytes; ``present`` were there before. ``left``: weights that
    stayed where they are, and their bytes; ``code``: files of the model's own code and their
    sha256; ``notes``: what a person has to know."""

    directory: Path
    files: int
    size: int
    present: int
    left: tuple[tuple[str, int], ...] = ()
    code: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


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


def pull(repository: str, revision: str, check: bool = False, wish: Wish = NO_WISH) -> Pulled:
    """Bring what vLLM needs of a commit and check every byte of it.

    What is complete is left alone; with ``check`` it is read again, and what is damaged brought
    anew. Raises UserError where the hub does not give it, vLLM does not serve it, the disk is too
    small, another pull is at it, or a file is not what the hub says that it is (such a file is
    removed).
    """
    home = directory(repository, revision)
    known = manifest(home)
    if not _suffices(home, known, wish):
        known = {}
    if known and not check:
        return _told(home, Pulled(home, 0, 0, len(known)), wish)
    if known:
        return _bring(repository, revision, _written_down(repository, revision, known), wish, "")
    there = listed(repository, revision)
    instead = f"Use another repository: its page names {there.original} as the original."
    pulled = _bring(
        repository, revision, there.files, wish,
        instead if there.original else "Use the model's original repository.",
    )  # fmt: skip
    if there.repository == repository:
        return pulled
    moved = f"{repository} is {there.repository} now: change 'repository' in the profile"
    return replace(pulled, notes=(moved, *pulled.notes))


def take(repository: str, revision: str, source: Path, wish: Wish = NO_WISH) -> Pulled:
    """The same from a directory, for a machine without network. Files are compared with the hashes
    that whoever brought them wrote down; of files by hand, the hashes are written down as they are.

    Raises UserError where it holds no model or another commit, the disk is too small, or a file is
    damaged.
    """
    files = in_directory(source, repository, revision, wish.code)
    hub_choice.must_be_files(files, source)
    hint = "Name the directory that has config.json and the weights."
    return _bring(repository, revision, files, wish, hint, str(source))


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


def _bring(
    repository: str,
    revision: str,
    there: Sequence[RemoteFile],
    wish: Wish,
    hint: str,
    what: str = "",
) -> Pulled:
    """Bring what is not there or not right, then write the manifest. ``hint``: what to do where
    these files are no model for vLLM."""
    home = directory(repository, revision)
    what = what or f"{repository} at {revision[:12]}"
    by_name = {file.path: file for file in there}
    form = hub_choice.format_of(list(by_name), what, wish, hint)
    index = [by_name[form.index]] if form.index in by_name else []
    with _alone(home), _removed_if_refused(home):
        _check_space(home, index)
        brought = _fetched(repository, home, index)
        weights = hub_choice.weights_of(home, by_name, form, what)
        beside = [by_name[name] for name in wanted.beside(by_name, form, wish.code)]
        files = [*beside, *(by_name[name] for name in weights)]
        _check_space(home, files)
        # What is small first, so that what vLLM does not serve is known before the weights come.
        small = [file for file in beside if file.path.endswith(".json") and file not in index]
        rest = [file for file in files if file not in (*small, *index)]
        with Progress(sum(file.size for file in [*small, *rest]), len(small + rest)) as progress:
            brought += _fetched(repository, home, small, progress)
            hub_choice.must_be_served(home, [file.path for file in files], what, wish, hint)
            if form.pickle:
                hub_choice.must_be_torchs(by_name[weights[0]], what, hint)
            brought += _fetched(repository, home, rest, progress)
        _finish(home, repository, revision, files, wish)
    size = sum(file.size for file in brought)
    left = [(each.path, each.size) for each in there
            if each not in files and wanted.are_weights(each.path, by_name)]  # fmt: skip
    pulled = Pulled(home, len(brought), size, len(files) - len(brought), tuple(left))
    return _told(home, pulled, wish)


def _told(home: Path, pulled: Pulled, wish: Wish) -> Pulled:
    """With what a person has to know of the files that are there now."""
    known = manifest(home)
    own = [name for name in known if name.endswith(".py") and wish.code]
    code = {name: str(known[name]["sha256"]) for name in own}
    return replace(pulled, code=code, notes=tuple(hub_choice.notes(home, known, wish)))


def _suffices(home: Path, known: Mapping[str, Any], wish: Wish) -> bool:
    """Whether what was brought before has what is wished now."""
    if wish.native and wanted.format_of(known, native=True) is not wanted.NATIVE:
        return False
    if not wish.code or any(path.endswith(".py") for path in known):
        return True
    with suppress(OSError, ValueError, AttributeError):
        return bool(json.loads((home / MANIFEST).read_text()).get("code"))
    return False


def _fetched(
    repository: str, home: Path, files: Sequence[RemoteFile], progress: Progress | None = None
) -> list[RemoteFile]:
    """Several at a time; returns those that were not there."""
    if not files:
        return []
    (home / SCRATCH).mkdir(exist_ok=True)
    advance = progress.advance if progress else lambda _: None
    finish = progress.finish if progress else lambda: None

    def one(file: RemoteFile) -> bool:
        target, part = home / file.path, home / SCRATCH / file.path
        hashed, expected = _hash(file)
        if _is_there(target, file) and hashed(target) == expected:
            advance(file.size)
            finish()
            return False
        target.unlink(missing_ok=True)
        try:
            loader.fetch(file.url, part, file.size, expected, hashed, file.opened)
        except download.Unavailable as error:
            raise refused(repository, file.path, error) from None
        part.chmod(0o644)  # the web server is nobody in particular
        part.replace(target)
        finish()
        return True

    with hub_choice.web_client() as web, download.threads(JOBS) as (pool, stop):
        loader = download.Downloader(web, advance, stop, tell=err.print)
        # The largest first: else the last minutes wait for one file.
        order = sorted(files, key=lambda each: -each.size)
        jobs = [(file, pool.submit(one, file)) for file in order]
        return [file for file, job in jobs if job.result()]


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


def _finish(
    home: Path, repository: str, revision: str, files: Sequence[RemoteFile], wish: Wish
) -> None:
    """Write down what is there, once all of it is; what an earlier pull brought beside it goes."""
    entries = {
        file.path: {
            "size": file.size,
            "sha256": file.sha256 or download.digest(home / file.path),
            **({"blob": file.blob} if file.blob else {}),
        }
        for file in files
    }
    shutil.rmtree(home / SCRATCH, ignore_errors=True)
    for gone in manifest(home).keys() - entries.keys():
        (home / gone).unlink()
    document = {"repository": repository, "revision": revision, "code": wish.code, "files": entries}
    write_json(home / MANIFEST, document)


def _is_there(path: Path, file: RemoteFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size


def _blob(path: Path) -> str:
    """Git's name of a file's content: SHA-1 over ``blob SIZE NUL content``."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as stream:
        while chunk := stream.read(download.CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


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


@contextmanager
def _removed_if_refused(home: Path) -> Iterator[None]:
    """Small files of a model that vLLM does not serve are not left for one that is begun."""
    fresh = not any(home.iterdir())
    try:
        yield
    except NotServed:
        if fresh:
            shutil.rmtree(home)
        raise
