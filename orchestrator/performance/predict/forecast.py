"""The forecast of a profile's model on its cluster, as one document."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from orchestrator.core.errors import BadInput, UserError
from orchestrator.models import cards
from orchestrator.models.config import context_of
from orchestrator.performance.predict import rank
from orchestrator.performance.predict.engine import Engine
from orchestrator.performance.predict.layout import Parallelism, accelerators, candidates
from orchestrator.performance.predict.load import Limits, OfferedLoad, limits
from orchestrator.performance.predict.phase import Cause
from orchestrator.performance.predict.rates import SYNCHRONOUS, Rates, rates
from orchestrator.performance.predict.shape import ModelShape, read
from orchestrator.performance.results.probe import Probes

if TYPE_CHECKING:
    from orchestrator.profile.model import Profile

#: The default load to rank by; its lengths are cut to the profile's context.
USUAL = OfferedLoad(prompt_tokens=512, output_tokens=128, concurrency=8)


@dataclass(frozen=True)
class Forecast:
    """Layouts, the best first.

    ``warnings``: reasons against the profile's layout. ``counterfactuals``: tokens per second of a
    single request on the layout ``compared``, if one thing differed. ``unpredicted``: properties of
    the model that could not be read. ``assumed``: constants that were not measured.
    """

    model: str
    probes: str
    chosen: Parallelism
    load: OfferedLoad
    limits: Limits
    ranked: tuple[rank.Ranked, ...]
    answer: str
    warnings: tuple[str, ...]
    compared: Parallelism
    counterfactuals: dict[str, float]
    unpredicted: tuple[str, ...]
    assumed: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """The forecast as JSON types."""
        found: dict[str, Any] = TypeAdapter(Forecast).dump_python(self, mode="json")
        for row, one in zip(found["ranked"], self.ranked, strict=True):
            row["name"] = str(one.layout)
            row["single_tokens_per_s"] = one.single_tokens_per_s
            row["fit"] |= {"fits": one.fit.fits, "runs": one.fit.runs, "text": str(one.fit)}
        return found

    def rows(self) -> Iterator[tuple[str, ...]]:
        """The rows of a table with the columns ``headings``."""
        for one in self.ranked:
            chosen = one.layout == self.chosen
            yield (
                f"{one.layout}{' (the profile)' if chosen else ''}",
                f"{one.single_tokens_per_s:.3g}" if one.fit.runs else "-",
                _milliseconds(one.loaded.prefill.seconds) if one.fit.runs else "-",
                _milliseconds(one.loaded.decode.seconds) if one.fit.runs else "-",
                f"{one.loaded.output_tokens_per_s:.3g}" if one.fit.runs else "-",
                str(one.single.decode.bound),
                str(one.fit),
            )


def headings(load: OfferedLoad) -> tuple[str, ...]:
    """The table's column headings: figures of a single request, then those of the load."""
    many = f"{load.concurrency:g} at once"
    return (
        "layout",
        "one request, tokens/s",
        f"{many}: first token",
        "each further",
        "all, tokens/s",
        "bottleneck",
        "memory",
    )


def forecast(
    profile: Profile,
    config: dict[str, Any],
    chosen: Parallelism,
    probes: Probes,
    engine: Engine | None = None,
    load: OfferedLoad | None = None,
) -> Forecast:
    """Rank all layouts that the probes suffice for.

    Raises BadInput if the model's sizes are not in config.json, UserError if no device was probed.
    """
    dtype = str(profile.serving.args.get("dtype", "auto"))
    cache = str(profile.serving.args.get("kv-cache-dtype", "auto"))
    shape, unpredicted = read(config, dtype, cache)
    if shape is None:
        where = profile.where("serving", "model")
        raise BadInput(f"{where}: {profile.serving.model}: {'; '.join(unpredicted)}")
    devices = accelerators(profile)
    on_cpu = any(device.device == SYNCHRONOUS for device in probes.devices)
    allowed = limits(profile, on_cpu)
    if allowed.context is None:
        allowed = replace(allowed, context=context_of(config))
    asked = load or _cut(USUAL, allowed.context)
    layouts = [
        layout
        for layout in candidates(config, len(devices))
        if not cards.rank_misfit(profile, config, layout.tensor)
    ]
    known, missing = _known(probes, profile, layouts, engine)
    ranked = rank.rank(shape, known, known.__getitem__, asked, allowed)
    compared = chosen if chosen in known and not chosen.one else _widest(list(known))
    return Forecast(
        model=profile.serving.model,
        probes=probes.time,
        chosen=chosen,
        load=asked,
        limits=allowed,
        ranked=tuple(ranked),
        answer=rank.does_clustering_help(ranked, asked),
        warnings=(*missing, *_warnings(profile, ranked, chosen, probes)),
        compared=compared,
        counterfactuals=rank.counterfactuals(shape, compared, known[compared], asked, allowed),
        unpredicted=tuple(_unpredicted(shape, unpredicted, known[compared].flops_per_s)),
        assumed=(engine or Engine()).assumed,
    )


def _known(
    probes: Probes, profile: Profile, layouts: list[Parallelism], engine: Engine | None
) -> tuple[dict[Parallelism, Rates], tuple[str, ...]]:
    """The rates of each layout that the probes suffice for, and notes on what the others lack."""
    found, missing = {}, {}
    for layout in layouts:
        try:
            found[layout] = rates(probes, profile, layout, engine)
        except UserError as error:
            missing[f"not predicted: {layout}: {error.message}. {error.hint}"] = error
    if not found:
        raise next(iter(missing.values()))
    return found, tuple(missing)


def _cut(load: OfferedLoad, context: int | None) -> OfferedLoad:
    if context is None or load.prompt_tokens + load.output_tokens <= context:
        return load
    output = max(1, min(load.output_tokens, context // 4))
    return OfferedLoad(max(1, context // 2), output, load.concurrency)


def _widest(layouts: list[Parallelism]) -> Parallelism:
    """The layout of one copy over the most accelerators, with the most tensor parallelism."""
    one_copy = [layout for layout in layouts if layout.data == 1]
    return max(one_copy, key=lambda layout: (layout.ranks, layout.tensor))


def _warnings(
    profile: Profile, ranked: list[rank.Ranked], chosen: Parallelism, probes: Probes
) -> Iterator[str]:
    if probes.profile != profile.name:
        yield f"the probes belong to the profile {probes.profile}, not to {profile.name}"
    if text := rank.loses(ranked, chosen):
        yield text
    mine = next((one for one in ranked if one.layout == chosen), None)
    if mine and not mine.fit.fits:
        yield f"the profile's layout ({chosen}) {mine.fit}"
    if mine and mine.fit.fits and mine.loaded.request.bound is Cause.BATCH_LIMIT:
        yield f"requests wait most of the time: max-num-seqs allows only {mine.loaded.running:g}"
    yield from mine.notes if mine else ()
    for failed in probes.failed:
        yield f"the probe {failed.probe} of {failed.where} failed: {failed.reason}"


def _unpredicted(
    shape: ModelShape, unread: tuple[str, ...], flops: dict[str, float]
) -> Iterator[str]:
    yield from unread
    if shape.dtype not in flops:
        taken = ", ".join(sorted(flops))
        yield f"no matrix rate of {shape.dtype} was measured: using that of {taken}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
