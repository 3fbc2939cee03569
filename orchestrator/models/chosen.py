"""The layout that was chosen for ``serving.layout: auto``, and why: the cluster's layout.json.

Desired state is made from this file, not from forecasts: so a new measurement changes nothing that
runs. Only `orchestrate up` writes it; `orchestrate down` removes it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.core import paths
from orchestrator.core.errors import BadInput
from orchestrator.core.files import write_json


@dataclass(frozen=True)
class ChosenLayout:
    """``sizes``: by key of the profile's ``serving``. ``asked``: a hash of what the profile said of
    model, flags, workload, targets and accelerators. ``reason``: forecasts and measurements."""

    model: str
    sizes: dict[str, int]
    asked: str
    time: str
    why: str
    reason: dict[str, Any] = field(default_factory=dict)


def read(cluster: str) -> ChosenLayout | None:
    """The choice; None if there is none. Raises BadInput if the file does not hold one."""
    file = _file(cluster)
    try:
        found = ChosenLayout(**json.loads(file.read_text()))
        if not all(isinstance(size, int) and size > 0 for size in found.sizes.values()):
            raise ValueError
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError):
        raise BadInput(
            f"{file}: does not hold the layout that was chosen",
            "Remove the file, then run: orchestrate up",
        ) from None
    return found


def write(cluster: str, choice: ChosenLayout) -> None:
    """Save a choice, atomically."""
    write_json(_file(cluster), asdict(choice))


def forget(cluster: str) -> None:
    """Nothing is served any more: the next `up` chooses anew."""
    _file(cluster).unlink(missing_ok=True)


def _file(cluster: str) -> Path:
    return paths.cluster(cluster) / "layout.json"
