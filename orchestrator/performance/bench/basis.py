"""What a run's forecasts are made from: probes, and the measured engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from orchestrator.core.errors import UserError
from orchestrator.models import flags
from orchestrator.performance.bench.seal import Basis, digest
from orchestrator.performance.predict import inputs
from orchestrator.performance.predict.forecast import asked, known_of, layout_of
from orchestrator.performance.predict.layout import Parallelism
from orchestrator.performance.predict.load import limits
from orchestrator.performance.predict.outlook import PROBE, Known
from orchestrator.performance.predict.shape import read
from orchestrator.performance.results.bench import Provenance
from orchestrator.performance.results.engine import EngineRates
from orchestrator.performance.results.probe import Probes
from orchestrator.profile.existing import Attached
from orchestrator.profile.model import Profile

T = TypeVar("T")


def basis(
    profile: Profile | Attached,
    provenance: Provenance,
    layout: Parallelism,
    config: dict[str, Any] | None = None,
) -> Basis:
    """What is known now on this machine, as `plan --serving` takes it. ``config``: the model's
    config.json, where it is here."""
    problems: list[str] = []

    def tried(load: Callable[[], T]) -> T | None:
        """A source; None, and a problem, where it is missing or damaged."""
        try:
            return load()
        except UserError as error:
            problems.append(" ".join(str(error).split()))
            return None

    args = flags.deciding(profile.serving)
    every = tried(lambda: inputs.engines(profile.name)) or ()
    engines = [each for each in every if each.cells and same_engine(each, provenance, args)]
    probes: Probes | None = None
    known: Known | None = None
    sources: dict[str, Any] = {}
    if config is not None:
        shape, unread = read(config, *flags.number_formats(args))
        problems += unread if shape is None else ()
        probes = tried(lambda: inputs.probes(profile.name))
        if shape is not None and probes is not None:
            sources = {"probes": probes}
            known = tried(
                lambda: known_of(asked(profile, config, layout, probes, engines), layout, shape)
            )
    mine = next((each for each in engines if layout_of(each) == layout), None)
    if known is None and mine is not None:
        sources, known = {}, Known(layout, limits(profile), engine=mine)
    if known is None:
        return Basis(None, "; ".join(problems) or f"the engine was not measured. Run: {PROBE}")
    sources["engine"] = known.engine
    made_from = {name: digest(each) for name, each in sources.items() if each is not None}
    return Basis(known, "", made_from)


def same_engine(found: EngineRates, now: Provenance, args: Mapping[str, Any]) -> bool:
    """Whether the engine was measured with what a run has: model, flags, image, vLLM."""
    versions = {found.versions.get("vllm"), now.versions.get("vllm")} - {None}
    return found.of(now.model, args) and found.image_id == now.image_id and len(versions) <= 1
