"""``orchestrate profile``: check, choose and list cluster profiles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli import complete
from orchestrator.cli.choice import json_option
from orchestrator.cli.where import profile_name_option
from orchestrator.core.console import out, print_json, print_text
from orchestrator.core.errors import BadInput
from orchestrator.profile import choose

if TYPE_CHECKING:
    from orchestrator.models.serving import Layout
    from orchestrator.profile import Profile
    from orchestrator.profile.existing import Attached


@click.group()
def profile() -> None:
    """Check, choose and list cluster profiles.

    A profile is a YAML file of profiles/ (by name) or elsewhere (by path).
    """


@profile.command()
@click.argument("name_or_path", shell_complete=complete.profiles)
def use(name_or_path: str) -> None:
    """Check a profile and make it this machine's active one.

    Example: orchestrate profile use 0.1
    """
    loaded, _ = _resolved(choose.locate(name_or_path))
    choose.use(name_or_path)
    out.print(f"The active profile is {loaded.name} ({_shown(loaded.path)}).", markup=False)


@profile.command()
@click.argument("name_or_path", required=False, shell_complete=complete.profiles)
@json_option
def check(name_or_path: str | None, as_json: bool) -> None:
    """Check a profile and print every error.

    Without a name: the active profile. Exit code 0 if there is no error, else 2.

    Example: orchestrate profile check 0.1
    """
    path = choose.active_path(name_or_path)
    document: dict[str, Any] = {"path": str(path.absolute()), "ok": False, "problems": []}
    try:
        loaded, _ = _resolved(path)
    except BadInput as error:
        if not as_json:
            raise
        print_json({**document, "problems": _problems(error), "notes": []})
        raise SystemExit(error.exit_code) from None
    notes = list(_notes(loaded))
    if as_json:
        print_json({**document, "ok": True, "notes": notes})
    else:
        out.print(f"{_shown(path)}: no errors", markup=False)
        for note in notes:
            out.print(f"note: {note}", markup=False)


@profile.command("list")
@json_option
def list_profiles(as_json: bool) -> None:
    """List the checkout's profiles; '*' marks the active one.

    Example: orchestrate profile list
    """
    rows = [_row(name) for name in choose.known()]
    if as_json:
        print_json(rows)
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        mark = "*" if row["active"] else " "
        out.print(f"{mark} {row['name']:<{width}}  {row['summary']}", markup=False)


@profile.command()
@profile_name_option
@json_option
def show(profile: str | None, as_json: bool) -> None:
    """Show a profile with defaults and sizes filled in.

    Example: orchestrate profile show --profile 0.1
    """
    from dataclasses import asdict

    import yaml

    loaded, layout = _resolved(choose.active_path(profile))
    document: dict[str, Any] = {"path": str(loaded.path.absolute()), "profile": loaded.document()}
    document |= {"layout": asdict(layout[0])} if layout else {}
    if layout and len(layout) > 1:
        document["layouts"] = [asdict(each) for each in layout]
    if as_json:
        print_json(document)
    else:
        out.print(yaml.safe_dump(document, sort_keys=False).rstrip(), markup=False)


@profile.command()
@click.option("--reference", is_flag=True, help="Print the reference (Markdown) instead.")
def schema(reference: bool) -> None:
    """Print the JSON schema, for editors (profiles/schema.json).

    Example: orchestrate profile schema --reference
    """
    from orchestrator.profile import schema as derived

    print_text(derived.reference() if reference else derived.schema_text())


def _resolved(path: Path) -> tuple[Profile, tuple[Layout, ...]] | tuple[Attached, None]:
    """The profile and how its models lie on it: only both together show that it can be served.

    A cluster that others run has the layout that they gave it.
    """
    from orchestrator.profile.load import is_existing, load_attached

    if is_existing(path):
        return load_attached(path), None
    from orchestrator.models import serving
    from orchestrator.models.profiles import load

    loaded = load(path)
    return loaded, serving.resolve_all(loaded)


def _notes(profile: Profile | Attached) -> Iterator[str]:
    """What is not wrong, but not all there is to know."""
    from orchestrator.image import store
    from orchestrator.models import capacity, catalog
    from orchestrator.profile.existing import Attached

    if isinstance(profile, Attached):
        return

    image = capacity.of_image(store.built(profile.image))
    for each in profile.services:
        model = catalog.served(each)
        size = capacity.of_model(model)
        for text in capacity.misfits(each, size, image, capacity.of_nodes(each, {})):
            yield f"{text}; {capacity.ADVICE}"
        if model.repository and not model.config:
            yield (
                f"{model.name} is not on this machine yet: its sizes and its quantization are not"
                f" checked ({model.repository} at {model.revision[:12]})"
            )
    for name, hub in profile.models.items():
        if not hub.revision:
            pin = catalog.how_to_pin(name)
            yield f"models.{name} has no revision, which serving it needs: {pin}"


def _problems(error: BadInput) -> list[dict[str, Any]]:
    from dataclasses import asdict

    from orchestrator.core.document import DocumentError

    if isinstance(error, DocumentError):
        return [asdict(problem) for problem in error.problems]
    return [{"text": error.message}]


def _row(name: str) -> dict[str, Any]:
    from orchestrator.profile.existing import Attached

    path = choose.locate(name)
    row: dict[str, Any] = {"name": name, "active": choose.is_active(path), "path": str(path)}
    try:
        loaded, layout = _resolved(path)
    except BadInput as error:
        count = len(_problems(error))
        summary = f"{count} error{'s' * (count != 1)}: orchestrate profile check {name}"
        return {**row, "ok": False, "summary": summary}
    if isinstance(loaded, Attached) or layout is None:
        summary = f"{len(loaded.nodes)} machines of others, model {loaded.serving.model}"
        return {**row, "ok": True, "summary": summary}
    summary = (
        f"{len(loaded.compute_nodes)} compute nodes, "
        f"{sum(node.accelerators for node in loaded.compute_nodes)} accelerators, image"
        f" {loaded.image}, model {', '.join(one.serving.model for one in loaded.services)}"
    )
    return {**row, "ok": True, "summary": summary}


def _shown(path: Path) -> str:
    from orchestrator.core.source import display

    return display(path)
