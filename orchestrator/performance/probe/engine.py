"""The engine's own figures: what they depend on, how they are kept, and what a probe made of them.

The engine is measured, not modelled: most of a token's time may be its host's, and no formula knows
that.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from orchestrator.core import paths
from orchestrator.core.errors import BadInput, UserError
from orchestrator.core.files import write_json
from orchestrator.performance.predict.inputs import ENGINES, engines
from orchestrator.performance.probe.node_rounds import FOLLOWING
from orchestrator.performance.probe.nodes import source
from orchestrator.performance.results.engine import EngineCell, EngineRates
from orchestrator.performance.results.probe import LinkRates, spread

#: Seconds for an engine's start, at most.
START_S = 900.0
#: Rates of links as they are sold, in Gb/s: a link counts as the one that is nearest.
CLASSES = (0.1, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 200.0, 400.0)
#: Bytes of a config.json.
MOST_CONFIG = 4 << 20
#: Programs, one after the other, as one text; the last one runs.
JOINED = """\
import sys, types
for name, text in {parts!r}:
    part = types.ModuleType(name)
    sys.modules[name] = part
    exec(compile(text, name, "exec"), vars(part))
GIVEN = {given!r}
exec(compile({program!r}, "probe", "exec"))
"""
#: Reads a program of so many bytes, and leaves the rest of the input: it is the lifeline.
BOOT = "import sys; exec(compile(sys.stdin.buffer.read(int(sys.argv[1])), 'probe', 'exec'))"
ROUNDS = "node_rounds"


def program(name: str, given: Mapping[str, Any]) -> bytes:
    """A program that uses ``node_rounds``, with what it is given: nothing is on a command line."""
    parts = [(f"{__name__.rpartition('.')[0]}.{ROUNDS}", source(ROUNDS))]
    return JOINED.format(parts=parts, given=dict(given), program=source(name)).encode()


def read_config(path: Path) -> dict[str, Any]:
    """A model's config.json, by the file or its directory. Raises BadInput for anything else."""
    file = path / "config.json" if path.is_dir() else path
    try:
        if file.stat().st_size > MOST_CONFIG:
            raise BadInput(f"{file}: larger than any config.json")
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise BadInput(f"{file}: is not JSON: {error}") from None
    if not isinstance(config, dict) or not config.get("architectures"):
        raise BadInput(f"{file}: is no model's config.json: it names no architectures")
    return config


def runnable(config: Mapping[str, Any]) -> None:
    """Raises UserError for a model that brings code of its own: it is never run."""
    if "auto_map" in json.dumps(config):
        raise UserError(
            "the model's config.json names code of its own (auto_map), which is never run here",
            "Serve it yourself, and measure what serves: orchestrate probe --only engine",
        )


def key(**depends: object) -> str:
    """A hash of what the figures depend on, and of how they are taken."""
    text = json.dumps(depends | {"following": FOLLOWING}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class SlowestLink:
    """The slowest of all links between an engine's nodes."""

    bytes_per_s: float
    latency_s: float

    @property
    def kind(self) -> float:
        """The rate in Gb/s that such a link is sold with."""
        seen = math.log(self.bytes_per_s * 8 / 1e9)
        return min(CLASSES, key=lambda each: abs(math.log(each) - seen))


def slowest(links: Sequence[LinkRates], nodes: Sequence[str]) -> SlowestLink | None:
    """The slowest link between these nodes; None where none was measured."""
    mine = [each for each in links if {each.a, each.b} <= set(nodes)]
    if not mine:
        return None
    return SlowestLink(
        min(each.bytes_per_s.median for each in mine), max(each.latency_s.median for each in mine)
    )


def with_figures(begun: EngineRates, found: Mapping[str, Any]) -> EngineRates:
    """The figures that a program printed. Raises UserError where they are none."""
    try:
        cells = tuple(_cells(found["cells"]))
        notes = tuple(str(each) for each in found["notes"])
        room = found["kv_tokens"]
        if weights := found.get("weights_gib"):
            notes += (f"weights: {weights:.4g} GiB on a rank",)
        if not cells:
            raise ValueError("no cells")
        return replace(
            begun,
            cells=cells,
            notes=(*begun.notes, *notes),
            kv_tokens=int(room) if room else None,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"the engine's figures are none: {error!r}") from None


def _cells(found: Sequence[Mapping[str, Any]]) -> Iterator[EngineCell]:
    for each in found:
        prompt, output, many = map(int, each["load"])
        rounds = each["rounds"]
        if not rounds:
            continue
        steps = [float(one["step_s"]) for one in rounds if "step_s" in one]
        values = {
            name: spread([float(one[name]) for one in rounds])
            for name in ("ttft_s", "tpot_s", "output_tokens_per_s")
        }
        step = spread(steps) if len(steps) == len(rounds) else None
        yield EngineCell(prompt, output, many, **values, step_s=step)


def known(cluster: str, wanted: str) -> EngineRates | None:
    return next((each for each in engines(cluster) if each.key == wanted), None)


def age(rates: EngineRates) -> str:
    try:
        seconds = (datetime.now(UTC) - datetime.fromisoformat(rates.time)).total_seconds()
    except (ValueError, TypeError):
        return "at an unknown time"
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return "just now" if seconds >= 0 else f"at {rates.time}, by a clock that was ahead"


def kept(cluster: str, rates: EngineRates) -> Path:
    return paths.measured(cluster) / ENGINES / f"{rates.key}.json"


def store(cluster: str, rates: EngineRates) -> Path:
    """Keep it under its key, in place of an older one. Raises UserError where that cannot be."""
    path = kept(cluster, rates)
    try:
        write_json(path, TypeAdapter(EngineRates).dump_python(rates, mode="json"))
    except OSError as error:
        raise UserError(
            f"the measurement cannot be kept: {path}: {error.strerror}",
            "Set ORCHESTRATE_STATE to a directory that you may write to.",
        ) from None
    return path
