"""Which profile is meant: by name, by path, or the active one. The only place that decides."""

from __future__ import annotations

import os
from pathlib import Path

from orchestrator.core import paths
from orchestrator.core.errors import BadInput
from orchestrator.core.files import write
from orchestrator.core.nearest import nearest

VARIABLE = "ORCHESTRATE_PROFILE"
SUFFIX = ".yml"


def active_path(option: str | None = None) -> Path:
    """The file of the active profile, not read yet.

    ``option`` (``--profile``), the environment or ``profile use`` names it, in this order. Raises
    BadInput where none does, or where the named one does not exist.
    """
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


def named(path: Path) -> str:
    """A profile's file as ``--profile`` takes it."""
    shelved = path.absolute().parent == _shelf()
    return path.stem if shelved else str(path)


def is_active(path: Path) -> bool:
    """Whether ``path`` is the active profile, as without an option."""
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
    write(_record(), f"{named(path.resolve())}\n")
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
