"""Load the inputs of predictions from this machine: probes, and the fitted engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from orchestrator.core import paths
from orchestrator.core.errors import BadInput, UserError
from orchestrator.performance.predict.engine import Engine
from orchestrator.performance.results.engine import EngineRates
from orchestrator.performance.results.probe import Probes

#: Names in a cluster's directory ``measured/``.
PROBES = "probes"
ENGINE = "engine.json"
#: The directory with the engine's own measurements, one file for each key.
ENGINES = "engines"

T = TypeVar("T")


@dataclass(frozen=True)
class Engines:
    """The engine as far as it is known: constants fitted to runs, and its own measurements."""

    fitted: Engine | None = None
    measured: tuple[EngineRates, ...] = ()


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


def engine(cluster: str) -> Engine | None:
    """The engine fitted to a run on one node; None if there was no such run."""
    file = paths.measured(cluster) / ENGINE
    return _read(file, Engine) if file.is_file() else None


def engines(cluster: str) -> tuple[EngineRates, ...]:
    """The engine as it was measured on this cluster, the newest first."""
    files = (paths.measured(cluster) / ENGINES).glob("*.json")
    return tuple(sorted((_read(f, EngineRates) for f in files), key=lambda e: e.time, reverse=True))


def both(cluster: str) -> Engines:
    """All that is known of the engine on this cluster."""
    return Engines(engine(cluster), engines(cluster))


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
