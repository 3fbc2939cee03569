"""Which files of a commit are brought, and what vLLM refuses of them before the weights come."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from orchestrator.core import download
from orchestrator.core.document import read_json
from orchestrator.core.errors import UserError
from orchestrator.models import catalog, wanted
from orchestrator.models.hub_listing import RemoteFile
from orchestrator.models.reading.served import ALLOW, foreign, refused, remote_code

#: How many bytes tell what a file is, and how git's note in place of a large file begins.
HEAD, POINTER = 64, b"version https://git-lfs"


@dataclass(frozen=True)
class Wish:
    """What the profile's flags for vLLM want of a model's files. ``code``: its own Python files,
    which may run; ``native``: Mistral's own format."""

    code: bool = False
    native: bool = False


NO_WISH = Wish()


class NotServed(UserError):
    """The small files tell that the others need not come."""


def format_of(names: Sequence[str], what: str, wish: Wish, hint: str) -> wanted.Format:
    """The format to bring. Raises UserError where there is none for vLLM."""
    if why := foreign(names):
        raise UserError(f"{what}: {why}", hint)
    form = wanted.format_of(names, wish.native)
    if wish.native and form is not wanted.NATIVE:
        raise UserError(
            f"{what} has no weights in Mistral's own format (consolidated*.safetensors and"
            " params.json), which serving.args wants",
            "Remove load-format and config-format from serving.args, or use another repository.",
        )
    return wanted.must_be_a_model(names, form, what, hint)


def weights_of(home: Path, names: Collection[str], form: wanted.Format, what: str) -> list[str]:
    """The weights once: by their index, which is in ``home``, else by their names."""
    if form.index in names:
        found, lacking = wanted.indexed(home / form.index, names, form)
        why = "its index names"
    else:
        found = wanted.weights(names, form)
        lacking, why = wanted.lacking_parts(found), "its files are named as"
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise NotServed(
            f"{what} is incomplete: {why} {lacking[0]}{more}, which is missing",
            "In a directory: copy the missing files too. On the hub: pin another revision.",
        )
    return found


def must_be_served(home: Path, names: Sequence[str], what: str, wish: Wish, hint: str) -> None:
    """Raises NotServed where vLLM would refuse the model, by its small files."""
    why = list(refused(catalog.hub_config(home), wish.code))
    code = [name for name in code_named(home, names) if "--" not in name] if wish.code else []
    if lacking := sorted(set(code) - set(names)):
        why.append(f"it names code that it does not have: {', '.join(lacking)}")
    if why:
        raise NotServed(f"{what}: vLLM does not serve it: {'; '.join(why)}", hint)


def must_be_torchs(file: RemoteFile, what: str, hint: str) -> None:
    """Raises NotServed where a .bin file is another program's: many write such."""
    begins = head(file)
    if begins and not begins.startswith(wanted.PICKLES):
        raise NotServed(
            f"{what}: {file.path} is no file of PyTorch's: it begins with {begins[:8]!r}", hint
        )


def head(file: RemoteFile) -> bytes:
    """The first bytes of a file; of one of the hub's, nothing where they do not come."""
    if file.opened:
        with file.opened() as stream:
            return stream.read(HEAD)
    with web_client() as web, suppress(httpx.HTTPError):
        asked = {"Range": f"bytes=0-{HEAD - 1}", "Accept-Encoding": "identity"}
        with web.stream("GET", file.url, headers=asked) as reply:
            reply.raise_for_status()
            return next(reply.iter_raw(HEAD), b"")
    return b""


def code_named(home: Path, names: Collection[str]) -> set[str]:
    """The files of its own code that a model's small files want to run."""
    files = [name for name in names if name.endswith(".json") and ".index" not in name]
    found: set[str] = set()
    for name in files:
        with suppress(UserError):
            document = read_json(home / name)
            if isinstance(document, dict) and "auto_map" in document:
                found |= set(remote_code(document))
    return found


def notes(home: Path, known: Mapping[str, Any], wish: Wish) -> Iterator[str]:
    """What a person has to know of the files that are there; ``known``: by their names."""
    form = wanted.format_of(known, wish.native)
    if form and form.pickle:
        yield (
            "its weights are pickle files: vLLM has torch read tensors from them, and nothing else"
            " (weights_only); safetensors need no such care"
        )
    if not wanted.has_tokenizer(known):
        yield (
            "no tokenizer is among its files (tokenizer.json, *.model, tekken.json), and vLLM needs"
            " one: use a revision or a repository that has it"
        )
    if (named := code_named(home, known)) and not wish.code:
        yield (
            f"it names code of its own ({', '.join(sorted(named))}), which was not brought and does"
            f" not run. If vLLM asks for it: {ALLOW}"
        )


def must_be_files(files: Sequence[RemoteFile], source: Path) -> None:
    """Raises UserError where a clone has git's notes in place of its large files."""
    for file in files:
        if head(file).startswith(POINTER):
            raise UserError(
                f"{source}: {file.path} is git's note on a large file, not the file",
                "In the clone, run: git lfs pull",
            )


def web_client() -> httpx.Client:
    """A client that shows the user's token to the hub; a redirect to another host does not take it
    along: httpx leaves it out."""
    from huggingface_hub import get_token

    web = download.client()
    if token := get_token():
        web.headers["Authorization"] = f"Bearer {token}"
    return web
