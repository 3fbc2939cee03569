"""The forecast of a load, sealed before the load is measured.

The seal is a hash over the forecast and everything that it depends on. It shows that a file was
changed afterwards. It is no signature: who changes a forecast on purpose can make a new seal.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from orchestrator.core.errors import UserError
from orchestrator.performance.bench.load import offered
from orchestrator.performance.predict.load import Prediction
from orchestrator.performance.predict.outlook import Figure, Known, Outlook, outlook
from orchestrator.performance.results.bench import Foreseen, Provenance, Run, Sealed, Workload

#: The form of seals that this version makes and checks.
FORM = Sealed.form
#: What a forecast depends on, of a run's provenance.
DEPENDS = ("profile_text", "image_id", "versions", "model", "model_revision", "layout")


@dataclass(frozen=True)
class Basis:
    """What forecasts are made from now. ``known``: None where they cannot be made, for the
    ``reason``. ``made_from``: the sha256 of each source."""

    known: Known | None
    reason: str = ""
    made_from: Mapping[str, str] | None = None


def digest(found: Any) -> str:
    """The sha256 of a value's JSON, as it is after it was stored and loaded. Fields that have their
    default do not count: a later version may have more of them."""
    kind = _adapter(found.__class__)
    loaded = kind.validate_python(kind.dump_python(found, mode="json"))
    plain = kind.dump_python(loaded, mode="json", exclude_defaults=True)
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    """Kept: to make one takes longer than all that it is used for."""
    return TypeAdapter(kind)


def foreseen(run: Run, workload: Workload, basis: Basis) -> Run:
    """The run with the sealed forecast of a workload that it has not measured."""
    made = replace(
        _made(workload, basis),
        time=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        made_from=dict(basis.made_from or {}),
    )
    made = replace(made, seal=seal_of(made, run.provenance))
    others = (each for each in run.forecasts if each.workload != workload)
    return replace(run, forecasts=(*others, made))


def seal_of(made: Sealed, provenance: Provenance) -> str:
    depends = {name: getattr(provenance, name) for name in DEPENDS}
    return digest({"forecast": digest(replace(made, seal="")), **depends})


def broken(made: Sealed, provenance: Provenance) -> str:
    """What is wrong with a forecast's seal; empty if it holds."""
    if made.form != FORM:
        return f"sealed by another version of orchestrate (form {made.form}): cannot be checked"
    if made.seal != seal_of(made, provenance):
        return "the seal is broken: the forecast, or what it was made from, was changed afterwards"
    return ""


def out_of_date(run: Run, workload: Workload, basis: Basis) -> str:
    """A warning if the sources of a workload's forecast changed after it was sealed; else empty."""
    made = next((each for each in run.forecasts if each.workload == workload), None)
    if made is None or made.made_from == dict(basis.made_from or {}):
        return ""
    return f"{workload.name}: its forecast is from older measurements; they changed before it ended"


def _made(workload: Workload, basis: Basis) -> Sealed:
    if basis.known is None:
        return Sealed(workload, "", reason=basis.reason)
    try:
        found = outlook(basis.known, offered(workload))
    except UserError as error:
        return Sealed(workload, "", reason=" ".join(str(error).split()))
    figures = (found.ttft_s, found.tpot_s, found.output_tokens_per_s)
    if not all(math.isfinite(n) for each in figures for n in (each.value, each.low, each.high)):
        return Sealed(workload, "", reason="the forecast is not a finite number")
    return _stored(workload, found)


def _stored(workload: Workload, found: Outlook) -> Sealed:
    return Sealed(
        workload,
        "",
        ttft_s=_figure(found.ttft_s, found.prefill),
        tpot_s=_figure(found.tpot_s, found.decode),
        output_tokens_per_s=_figure(found.output_tokens_per_s),
        saturated=found.saturated,
    )


def _figure(found: Figure, phase: Prediction | None = None) -> Foreseen:
    cause = str(phase.bound) if phase else ""
    return Foreseen(found.value, found.low, found.high, str(found.origin), cause)
