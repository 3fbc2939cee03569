"""What a run's forecasts are made from: probes, the fitted engine, the measured engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.core.errors import UserError
from orchestrator.performance.bench.seal import Basis, digest
from orchestrator.performance.predict import inputs
from orchestrator.performance.predict.engine import Engine
from orchestrator.performance.predict.layout import Parallelism
from orchestrator.performance.predict.load import limits
from orchestrator.performance.predict.outlook import Known
from orchestrator.performance.predict.rates import Rates, rates
from orchestrator.performance.predict.shape import ModelShape, read
from orchestrator.performance.results.bench import Provenance
from orchestrator.performance.results.engine import EngineRates
from orchestrator.profile.existing import Attached

if TYPE_CHECKING:
    from orchestrator.profile.model import Profile

T = TypeVar("T")


def basis(
    profile: Profile | Attached,
    provenance: Provenance,
    layout: Parallelism,
    config: Mapping[str, Any] | None = None,
) -> Basis:
    """What is known now on this machine. ``config``: the model's config.json, where it is here."""
    problems: list[str] = []

    def tried(load: Callable[[], T]) -> T | None:
        """A source; None, and a problem, where it is missing or damaged."""
        try:
            return load()
        except UserError as error:
            problems.append(" ".join(str(error).split()))
            return None

    every = tried(lambda: inputs.engines(profile.name)) or ()
    args = profile.serving.args
    measured = next((each for each in every if same_engine(each, provenance, layout, args)), None)
    fitted: Engine | None = None
    shape: ModelShape | None = None
    found: Rates | None = None
    sources: dict[str, Any] = {"engine": measured}
    if config is not None and not isinstance(profile, Attached):
        own = profile
        shape, unread = read(dict(config), str(profile.serving.args.get("dtype", "auto")))
        if shape is None:
            problems += unread
        fitted = tried(lambda: inputs.engine(own.name))
        if probes := tried(lambda: inputs.probes(own.name)):
            found = tried(lambda: rates(probes, own, layout, fitted))
            sources |= {"probes": probes, "fitted engine": fitted}
    made_from = {name: digest(each) for name, each in sources.items() if each is not None}
    if measured is None and (shape is None or found is None):
        reason = "; ".join(problems) or "no measurement that a forecast could be made from"
        return Basis(None, reason, made_from)
    allowed = limits(profile, found.synchronous if found else False)
    return Basis(Known(layout, allowed, shape, found, measured), "", made_from)


def same_engine(
    found: EngineRates, now: Provenance, layout: Parallelism, args: Mapping[str, Any]
) -> bool:
    """Whether the engine was measured with what a run has: model, layout, flags, image, vLLM."""
    versions = {found.versions.get("vllm"), now.versions.get("vllm")} - {None}
    return (
        found.model == now.model
        and (found.tensor, found.pipeline, found.data)
        == (layout.tensor, layout.pipeline, layout.data)
        and _plain(found.args) == _plain(args)
        and found.image_id == now.image_id
        and len(versions) <= 1
    )


def _plain(args: Mapping[str, Any]) -> dict[str, str]:
    """Flags as text: a profile may write them with lines below."""
    return {name.replace("_", "-"): str(value) for name, value in args.items()}
