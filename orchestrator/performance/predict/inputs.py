"""Load the inputs of predictions from this machine: probes, and the measured engine."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from orchestrator.core import paths
from orchestrator.core.errors import BadInput, UserError
from orchestrator.performance.results.engine import EngineRates
from orchestrator.performance.results.probe import Probes

#: Names in a cluster's directory ``measured/``.
PROBES = "probes"
#: The directory with the engine's own measurements, one file for each key.
ENGINES = "engines"

T = TypeVar("T")


def probes(cluster: str, named: Path | None = None) -> Probes:
    """The probes in the file `named`, else the cluster's newest.

    Raises UserError if there are none, BadInput if the file does not contain probes.
    """
    if named is not None:
        return _read(named, Probes)
    found = sorted((paths.measured(cluster) / PROBES).glob("*.json"))
    if not found:
        raise UserError(f"no measurements of {cluster} yet", "Run: orchestrate probe")
    return _read(found[-1], Probes)


def engines(cluster: str) -> tuple[EngineRates, ...]:
    """The engine as it was measured on this cluster, the newest first."""
    files = (paths.measured(cluster) / ENGINES).glob("*.json")
    return tuple(sorted((_read(f, EngineRates) for f in files), key=lambda e: e.time, reverse=True))


def _read(file: Path, kind: type[T]) -> T:
    try:
        return TypeAdapter(kind).validate_json(file.read_bytes())
    except OSError as error:
        raise BadInput(f"{file}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        text = f"{file}: does not hold {kind.__name__.lower()}: {where}: {first['msg']}"
        raise BadInput(text, "Run: orchestrate probe") from None
