"""Which profile is meant: by name, by path, or the active one. The only place that decides."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from orchestrator.core import paths
from orchestrator.core.errors import BadInput
from orchestrator.core.nearest import nearest

if TYPE_CHECKING:
    from orchestrator.profile.model import Profile

VARIABLE = "ORCHESTRATE_PROFILE"
SUFFIX = ".yml"

_Command = TypeVar("_Command", bound=Callable[..., Any])


def profile_option(command: _Command) -> _Command:
    """Add ``--profile NAME_OR_PATH``; the verb gets it as ``profile``, for ``active``."""
    return click.option(
        "--profile",
        metavar="NAME_OR_PATH",
        shell_complete=lambda _context, _parameter, typed: [
            name for name in known() if name.startswith(typed)
        ],
        help=f"The cluster's profile. Default: ${VARIABLE}, else what 'profile use' chose.",
    )(command)


def active(option: str | None = None, *, anywhere: bool = False) -> Profile:
    """The profile that ``--profile``, the environment or ``profile use`` names, in this order.

    Raises BadInput where none does, where the named one does not exist, or where it is wrong; and
    RunsThere where its commands belong on another computer, except for what is done ``anywhere``.
    """
    from orchestrator.profile import load

    profile = load(active_path(option))
    if profile.control_host and not anywhere:
        from orchestrator.cli.control_host import send_on

        send_on(profile)
    return profile


def go_to_its_host() -> None:
    """For what concerns the cluster's computer, and no cluster: images, models. Raises RunsThere
    as ``active`` does; without an active profile, or with a wrong one, it is done here."""
    try:
        active()
    except BadInput:
        return


def active_path(option: str | None = None) -> Path:
    """The file of the active profile, not read yet. Raises BadInput as ``active`` does."""
    for origin, chosen in (
        ("", option),
        (f" (named by ${VARIABLE})", os.environ.get(VARIABLE)),
        (" (chosen by 'orchestrate profile use')", _chosen_by_use()),
    ):
        if chosen:
            return locate(chosen, origin)
    raise BadInput(
        "no profile is chosen",
        f"Choose one: 'orchestrate profile use NAME', --profile NAME, or {VARIABLE}=NAME. "
        f"Known: {', '.join(known()) or 'none'}.",
    )


def is_active(path: Path) -> bool:
    """Whether ``path`` is what ``active`` would read without an option."""
    try:
        return active_path().resolve() == path.resolve()
    except BadInput:
        return False


def known() -> list[str]:
    """The names of the checkout's profiles."""
    return sorted(path.stem for path in _shelf().glob(f"*{SUFFIX}"))


def locate(name_or_path: str, origin: str = "") -> Path:
    """The file of a profile. What has a ``/`` or ends in ``.yml`` is a path, the rest a name.

    ``origin`` follows the name in the error. Raises BadInput where there is no such file.
    """
    if "/" in name_or_path or name_or_path.endswith((SUFFIX, ".yaml")):
        path = Path(name_or_path)
        if not path.is_file():
            raise BadInput(
                f"there is no profile file {name_or_path}{origin}",
                f"A name without '/' and '{SUFFIX}' means one of the checkout: "
                f"{', '.join(known()) or 'none'}.",
            )
        return path
    path = _shelf() / f"{name_or_path}{SUFFIX}"
    if not path.is_file():
        hint = nearest(name_or_path, known())
        raise BadInput(f"there is no profile '{name_or_path}'{origin}", hint)
    return path


def use(name_or_path: str) -> Path:
    """Make a profile the active one on this machine; returns its file. Does not check it."""
    path = locate(name_or_path)
    shelved = path.absolute().parent == _shelf()
    record = _record()
    record.parent.mkdir(parents=True, exist_ok=True)
    beside = record.with_name(f"{record.name}.{os.getpid()}")
    beside.write_text(f"{path.stem if shelved else path.resolve()}\n", encoding="utf-8")
    beside.replace(record)
    return path


def _chosen_by_use() -> str:
    """What ``profile use`` recorded; empty where it never ran."""
    record = _record()
    try:
        return record.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise BadInput(
            f"{record}: {error.strerror}", f"Name a profile: --profile NAME, or ${VARIABLE}."
        ) from None


def _shelf() -> Path:
    return paths.checkout() / "profiles"


def _record() -> Path:
    return paths.state() / "active-profile"
