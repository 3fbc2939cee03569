"""`orchestrate model`: models of the hub on this machine, and what a model is."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli import complete
from orchestrator.cli.choice import json_option
from orchestrator.cli.where import on_cluster, on_clusters_computer, profile_name_option
from orchestrator.core.console import out, print_json, print_warning
from orchestrator.core.sizes import human_size

if TYPE_CHECKING:
    from orchestrator.models.hub import Held, Pulled
    from orchestrator.profile import Profile
    from orchestrator.profile.serving import HubModel

#: How many of the files that were not needed a line names.
SHOWN = 4


@click.group()
def model() -> None:
    """Models of the Hugging Face hub: inspect, pull, list, remove.

    NAME is a key of the profile's 'models'. Models of the checkout's models/ need no pull:
    'orchestrate up' makes them.
    """


@model.command()
@partial(on_cluster, pinned=False)
@json_option
@click.option(
    "--from",
    "source",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Take the files from a directory, without network: one of this command's, "
    "the hub's own cache, or one of 'hf download --local-dir'.",
)
@click.option("--check", is_flag=True, help="Read all files again, and replace damaged ones.")
@click.option(
    "--revision",
    metavar="BRANCH",
    help="Pull what this branch, tag or commit holds now, and print the line that pins it in the "
    "profile. Default: the profile's revision, else main.",
)
@click.argument("name", required=False, shell_complete=complete.models)
def pull(
    profile: Profile,
    as_json: bool,
    source: Path | None,
    check: bool,
    revision: str | None,
    name: str | None,
) -> None:
    """Download a model's files, at the commit that the profile pins (default: all served models).

    Downloads only the files that vLLM reads, the weights in one format and precision, and checks
    the hub's hashes. What vLLM does not serve is refused before the weights come. The model's own
    Python files come only if serving.args has trust-remote-code: true. An interrupted pull
    resumes. The token for a gated repository is read from HF_TOKEN, or from where 'hf auth login'
    put it.

    A model without a revision in the profile is pulled at the newest commit of its main branch.
    The profile needs that commit before the model is served: the line to add is printed.

    \b
    Example: orchestrate model pull mistral-small --profile 0.1
    Example: orchestrate model pull gemma-2b --revision main --profile 0.1
    Example: orchestrate model pull --from /media/usb/mistral-small
    """
    from orchestrator.core.errors import BadInput
    from orchestrator.models import flags, hub
    from orchestrator.models.hub_choice import Wish

    served = {each.model: each.args for each in profile.serving.entries.values()}
    # Models of the checkout need no pull; one that stands alone is refused below, by its name.
    names = [each for each in served if each in profile.models] or [profile.serving.model]
    names = [name] if name else names
    if len(names) > 1 and (source or revision):
        raise click.UsageError("--from and --revision are for one model: name it")
    documents = []
    for each in names:
        entry = profile.models.get(each)
        if entry is None:
            text = f"the profile {profile.name!r} has no hub model {each!r}"
            raise BadInput(text, _known(profile))
        commit = _commit(profile, each, entry, revision, source)
        args = served.get(each, {})
        wish = Wish(flags.trusts_code(args), flags.wants_native(args))
        if source:
            pulled = hub.take(entry.repository, commit, source, wish)
        else:
            pulled = hub.pull(entry.repository, commit, check, wish)
        documents.append({"name": each, "revision": commit, "pinned": commit == entry.revision,
                          "directory": pulled.directory, "files": pulled.files,
                          "size": pulled.size, "present": pulled.present,
                          "left": [path for path, _ in pulled.left], "code": pulled.code,
                          "notes": pulled.notes})  # fmt: skip
        if as_json:
            continue
        _show(each, pulled)
        if commit != entry.revision:
            _tell_how_to_pin(profile, each, commit)
    if as_json:
        print_json(documents if len(documents) > 1 else documents[0])


def _show(name: str, pulled: Pulled) -> None:
    if pulled.files:
        out.print(f"{name}: {pulled.files} files, {human_size(pulled.size)}, checked", markup=False)
    else:
        out.print(f"{name}: nothing to do, all files are here and checked", markup=False)
    if pulled.left:
        size = human_size(sum(size for _, size in pulled.left))
        names = ", ".join(path for path, _ in pulled.left[:SHOWN])
        more = f" and {len(pulled.left) - SHOWN} more" if len(pulled.left) > SHOWN else ""
        out.print(f"{name}: not needed beside these weights, {size}: {names}{more}", markup=False)
    for path, digest in pulled.code.items():
        out.print(f"{name}: code that will run on the nodes: {path} sha256 {digest}", markup=False)
    for note in pulled.notes:
        print_warning(f"{name}: {note}")


def _commit(
    profile: Profile, name: str, entry: HubModel, revision: str | None, source: Path | None
) -> str:
    """Which commit to pull. Raises BadInput where a directory is given and nobody says which."""
    from orchestrator.core.errors import BadInput
    from orchestrator.models import hub_listing

    if revision is None and entry.revision:
        return entry.revision
    if revision and hub_listing.BLOB.fullmatch(revision):
        return revision
    if source:
        raise BadInput(
            f"{profile.where('models', name)}: {name} has no commit, so the directory's files"
            " cannot be told from another commit's",
            "Add its revision to the profile, or name the commit: --revision COMMIT.",
        )
    return hub_listing.commit_of(entry.repository, revision or "main")


def _tell_how_to_pin(profile: Profile, name: str, commit: str) -> None:
    pinned = profile.models[name].revision
    what = f"replace {pinned} at" if pinned else "add this to"
    out.print(
        f"{name} is not pinned to this commit. To serve it, {what}"
        f" {profile.where('models', name)}:",
        markup=False,
        soft_wrap=True,
    )
    out.print(f"    revision: {commit}", markup=False, soft_wrap=True)


@model.command()
@profile_name_option
@json_option
@click.option(
    "--revision",
    metavar="COMMIT",
    default="main",
    show_default=True,
    help="The repository's commit, branch or tag.",
)
@click.option(
    "--engine/--no-engine",
    default=True,
    show_default=True,
    help="Ask vLLM's own classes where its Python is at hand; --no-engine: do not.",
)
@click.argument("name", metavar="MODEL", shell_complete=complete.models)
def inspect(profile: str | None, as_json: bool, revision: str, engine: bool, name: str) -> None:
    """Say what MODEL is and needs, and whether vLLM serves it. Downloads no weights.

    MODEL is a repository of the hub (OWNER/NAME), a directory, a config.json, or a model that the
    profile names. Sizes come from the headers of its safetensors files, else from vLLM's own
    classes, else from its index, else from config.json: each says from where, and sources that
    differ by more than 2 % are listed. With a profile, also which layouts its accelerators can
    hold.

    vLLM's classes make the model without memory and accelerators, on a running node of the profile
    (machines: existing: the first with 'engine'), else in the built image on this computer, as
    root. That takes up to a minute the first time, then the answer is kept. The model's own code is
    never run.

    \b
    unread    what was not understood: figures may be wrong there
    refused   why vLLM does not serve it; the exit code is then 1

    \b
    Example: orchestrate model inspect Qwen/Qwen3-8B
    Example: orchestrate model inspect ./config.json --json
    """  # fmt: skip
    from orchestrator.cli.inspecting import inspected, show

    document = inspected(profile, name, revision, engine)
    if as_json:
        print_json(document)
    else:
        show(document)
    if document["refused"]:
        click.get_current_context().exit(1)


@model.command()
@on_clusters_computer
@json_option
def ls(as_json: bool) -> None:
    """List models of the hub: those on this machine, and those that profiles name.

    \b
    complete    all files are here and were checked
    partial     an interrupted pull; the next pull resumes it
    by hand     files that no pull has checked
    missing     a profile names it; no file is here
    not pinned  a profile names it without a revision

    Example: orchestrate model ls
    """
    rows = _rows()
    if as_json:
        print_json(rows)
        return
    if not rows:
        out.print("No model of the hub is on this machine, and no profile names one.")
    cells = [_cells(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        line = "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        out.print(line.rstrip(), markup=False, soft_wrap=True)


@model.command()
@on_clusters_computer
@json_option
@click.option("--force", is_flag=True, help="Even if a cluster of this machine serves it.")
@click.argument("repository", metavar="NAME")
def rm(as_json: bool, force: bool, repository: str) -> None:
    """Remove a model's files: NAME of a profile, or OWNER/NAME of the hub (all its commits).

    Example: orchestrate model rm AMead10/Mistral-Small-Instruct-2409-awq
    """
    from orchestrator.core.errors import BadInput, UserError
    from orchestrator.models import hub
    from orchestrator.models.publish import withdraw

    names = _names()
    held = hub.held()
    found = [
        each
        for each in held
        if repository == each.repository
        or any(repository == use.partition(":")[2] for use in names.get(_key(each), ()))
    ]
    if not found:
        known = ", ".join(sorted({each.repository for each in held})) or "none"
        raise BadInput(f"there is no model {repository!r} here", f"known: {known}")
    serving = sorted({use for each in found for use in _serving(each)})
    if serving and not force:
        raise UserError(
            f"{repository} is served by the cluster {', '.join(serving)}",
            "Take the cluster down first, or add --force: nodes keep their copy until they reboot.",
        )
    for each in found:
        hub.remove(each)
    for cluster in serving:
        withdraw(cluster)
    size = sum(each.size for each in found)
    if as_json:
        print_json({"removed": [str(each.directory) for each in found], "size": size})
    else:
        out.print(f"{repository}: {human_size(size)} removed", markup=False)


def _names() -> dict[tuple[str, str], list[str]]:
    """By repository and commit, PROFILE:NAME of profiles that name it: of the checkout's, and of
    the active one."""
    from orchestrator.core.errors import UserError
    from orchestrator.models.profiles import load
    from orchestrator.profile import choose

    files = [choose.locate(name).resolve() for name in choose.known()]
    with suppress(UserError):
        files.append(choose.active_path().resolve())
    found: dict[tuple[str, str], list[str]] = {}
    for file in dict.fromkeys(files):
        try:
            profile = load(file)
        except UserError:
            continue  # what is wrong with it is for `profile check`
        for key, entry in profile.models.items():
            use = f"{profile.name}:{key}"
            found.setdefault((entry.repository, entry.revision or ""), []).append(use)
    return found


def _rows() -> list[dict[str, Any]]:
    """What is here, then what profiles name and is not."""
    from orchestrator.models import hub

    names = _names()
    rows = [
        _row(each.repository, each.revision, each.state, names.pop(_key(each), []))
        | {"size": each.size, "directory": str(each.directory), "serving": _serving(each)}
        for each in hub.held()
    ]
    for (repository, revision), uses in names.items():
        state = "missing" if revision else "not pinned"
        nothing: dict[str, Any] = {"size": None, "directory": None, "serving": []}
        rows.append(_row(repository, revision, state, uses) | nothing)
    return rows


def _row(repository: str, revision: str, state: str, uses: list[str]) -> dict[str, Any]:
    return {
        "names": sorted({use.partition(":")[2] for use in uses}),
        "repository": repository,
        "revision": revision or None,
        "state": state,
        "profiles": uses,
    }


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    used = ", ".join(dict.fromkeys(use.partition(":")[0] for use in row["profiles"]))
    serving = f", served by {', '.join(row['serving'])}" if row["serving"] else ""
    return (
        ", ".join(row["names"]) or "-",
        row["repository"],
        (row["revision"] or "-")[:12],
        "-" if row["size"] is None else human_size(row["size"]),
        row["state"],
        (f"used by {used}" if used else "no profile") + serving,
    )


def _serving(held: Held) -> list[str]:
    """The clusters of this machine that are up, or were when it went off, with this very model."""
    from orchestrator.models.publish import handed_out

    return list(handed_out(held.directory))


def _key(held: Held) -> tuple[str, str]:
    return held.repository, held.revision


def _known(profile: Profile) -> str:
    names = ", ".join(profile.models) or "none"
    return f"Its 'models': {names}. One of the checkout's models/ needs no pull."
