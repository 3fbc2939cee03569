"""The forecast of a model on machines, as one document: those of a profile, or others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from pydantic import TypeAdapter

from orchestrator.core.errors import BadInput, UserError
from orchestrator.models import cards, flags
from orchestrator.models.config import context_of
from orchestrator.performance.predict import rank
from orchestrator.performance.predict.engine import Engine
from orchestrator.performance.predict.layout import Parallelism, candidates
from orchestrator.performance.predict.links import LinkRate
from orchestrator.performance.predict.load import Limits, OfferedLoad, limits
from orchestrator.performance.predict.outlook import Known, ranged, timed
from orchestrator.performance.predict.phase import Cause
from orchestrator.performance.predict.rates import (
    SYNCHRONOUS,
    Machines,
    Rates,
    is_eager,
    machines,
    rates_on,
    what_if,
)
from orchestrator.performance.predict.shape import ModelShape, read
from orchestrator.performance.results.engine import EngineRates
from orchestrator.performance.results.probe import Probes
from orchestrator.profile.existing import Attached
from orchestrator.profile.model import Profile

#: The default load to rank by; its lengths are cut to the profile's context.
USUAL = OfferedLoad(prompt_tokens=512, output_tokens=128, concurrency=8)


@dataclass(frozen=True)
class Forecast:
    """Layouts, the best first.

    ``warnings``: reasons against the profile's layout. ``counterfactuals``: tokens per second of a
    single request on the layout ``compared``, if one thing differed. ``unpredicted``: properties of
    the model that could not be read. ``assumed``: constants that were not measured. ``sources``:
    where the figures of devices that are not there come from.
    """

    model: str
    probes: str
    chosen: Parallelism | None
    load: OfferedLoad
    limits: Limits
    ranked: tuple[rank.Ranked, ...]
    answer: str
    warnings: tuple[str, ...]
    compared: Parallelism
    counterfactuals: dict[str, float]
    unpredicted: tuple[str, ...]
    assumed: tuple[str, ...]
    sources: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
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
            token_s, tokens = one.single_tpot_s, one.output_tokens_per_s
            figures = (
                ranged(1 / token_s.value, 1 / token_s.high, 1 / token_s.low),
                timed(one.ttft_s),
                timed(one.tpot_s),
                ranged(tokens.value, tokens.low, tokens.high),
            )
            yield (
                f"{one.layout}{' (the profile)' if chosen else ''}",
                *(figures if one.fit.runs else ("-",) * len(figures)),
                str(one.single.decode.bound),
                str(one.fit),
                str(token_s.origin),
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
        "origin",
    )


@dataclass(frozen=True)
class Question:
    """What is to be forecast. ``config``: the model's; ``machines``: what it is to run on;
    ``then``: what the engines were measured on, where that is something else; ``link``: in place
    of the probed one; ``misfit``: why a tensor size is impossible. Whatever is missing is left out
    of the forecast."""

    model: str
    limits: Limits
    chosen: Parallelism | None = None
    config: dict[str, Any] | None = None
    machines: Machines | None = None
    then: Machines | None = None
    link: LinkRate | None = None
    engines: tuple[EngineRates, ...] = ()
    eager: bool = False
    dtype: str = "auto"
    cache: str = "auto"
    load: OfferedLoad | None = None
    sources: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    misfit: Callable[[int], str] = field(default=lambda _: "")

    def rates(self, there: Machines, layout: Parallelism) -> Rates:
        """As ``rates_on``."""
        return rates_on(there, layout, eager=self.eager)


def asked(
    profile: Profile | Attached,
    config: dict[str, Any] | None,
    chosen: Parallelism,
    probes: Probes | None,
    engines: Sequence[EngineRates] = (),
) -> Question:
    """What a profile asks for, on the machines that it has. ``engines``: also others, of other
    models or with other flags."""
    on_cpu = probes is not None and any(each.device == SYNCHRONOUS for each in probes.devices)
    foreign = probes is not None and probes.profile != profile.name
    dtype, cache = flags.number_formats(profile.serving.args)
    text = f"the probes belong to the profile {probes.profile if probes else ''}, not to "
    return Question(
        model=profile.serving.model,
        limits=limits(profile, on_cpu),
        chosen=chosen,
        config=config,
        machines=machines(probes, profile) if probes else None,
        engines=tuple(
            each
            for each in engines
            if each.of(profile.serving.model, flags.deciding(profile.serving))
        ),
        eager=is_eager(profile),
        dtype=dtype,
        cache=cache,
        warnings=(f"{text}{profile.name}",) if foreign else (),
        misfit=lambda tensor: (
            ""
            if isinstance(profile, Attached)
            else cards.rank_misfit(profile, config or {}, tensor)
        ),
    )


def rank_all(asked: Question) -> Forecast:
    """Rank all layouts of which enough is known.

    Raises BadInput if the model's sizes are not in config.json, UserError if nothing was measured.
    """
    shape, unread = read(asked.config, asked.dtype, asked.cache) if asked.config else (None, ())
    if asked.config and shape is None:
        raise BadInput(f"{asked.model}: {'; '.join(unread)}")
    allowed = asked.limits
    if allowed.context is None and asked.config:
        allowed = replace(allowed, context=context_of(asked.config))
    asked = replace(asked, limits=allowed)
    load = asked.load or _cut(USUAL, allowed.context)
    known, missing = _known(asked, shape)
    ranked = rank.rank(known.values(), load)
    widest = _widest(list(known))
    chosen = asked.chosen
    compared = chosen if chosen in known and chosen and not chosen.one else widest
    rates = known[compared].rates
    probes = asked.machines.probes if asked.machines else None
    return Forecast(
        model=asked.model,
        probes=probes.time if probes else "",
        chosen=asked.chosen,
        load=load,
        limits=allowed,
        ranked=tuple(ranked),
        answer=rank.does_clustering_help(ranked, load),
        warnings=(*asked.warnings, *missing, *_warnings(ranked, asked.chosen, probes)),
        compared=compared,
        counterfactuals=rank.counterfactuals(known[compared], load),
        unpredicted=tuple(_unpredicted(shape, unread, rates)),
        assumed=() if known[compared].engine else tuple(each.name for each in fields(Engine)),
        sources=asked.sources,
    )


def _known(
    asked: Question, shape: ModelShape | None
) -> tuple[dict[Parallelism, Known], tuple[str, ...]]:
    """What is known of each layout of which enough is, and notes on what the others lack."""
    found: dict[Parallelism, Known] = {}
    missing: dict[str, UserError] = {}
    engines = {layout_of(each): each for each in reversed(asked.engines) if each.cells}
    if shape is None or asked.machines is None:
        if not engines:
            lacks = "sizes of the model" if shape is None else "probes"
            raise UserError(
                f"nothing to forecast from: no {lacks}, and the engine was not measured",
                "Run: orchestrate probe --only engine. Or give --config FILE, and run: probe",
            )
        return {
            layout: Known(layout, asked.limits, engine=each) for layout, each in engines.items()
        }, ()
    for layout in _layouts(asked, asked.machines):
        try:
            found[layout] = _with_rates(asked, asked.machines, layout, shape)
        except UserError as error:
            missing[f"not predicted: {layout}: {error.message}. {error.hint}"] = error
    if not found:
        raise next(iter(missing.values()))
    whole = {layout: _with_engine(asked, known, engines) for layout, known in found.items()}
    return whole, tuple(missing)


def _with_rates(asked: Question, there: Machines, layout: Parallelism, shape: ModelShape) -> Known:
    rates = asked.rates(there, layout)
    if asked.link:
        rates = what_if(
            rates,
            link_bytes_per_s=asked.link.bytes_per_s,
            link_latency_s=asked.link.latency_s,
        )
    return Known(layout, asked.limits, shape, rates)


def known_of(asked: Question, layout: Parallelism, shape: ModelShape) -> Known:
    """What is known of one layout. Raises UserError if its rates were not measured."""
    if asked.machines is None:
        raise UserError("no device was measured", "Run: orchestrate probe")
    engines = {layout_of(each): each for each in reversed(asked.engines) if each.cells}
    return _with_engine(asked, _with_rates(asked, asked.machines, layout, shape), engines)


def layout_of(engine: EngineRates) -> Parallelism:
    return Parallelism(engine.tensor, engine.pipeline, engine.data)


def _layouts(asked: Question, there: Machines) -> list[Parallelism]:
    return [
        layout
        for layout in candidates(asked.config or {}, len(there.nodes))
        if not asked.misfit(layout.tensor)
    ]


def _with_engine(asked: Question, known: Known, engines: dict[Parallelism, EngineRates]) -> Known:
    """With the engine as it was measured with this layout, else with the most like it."""
    there = asked.then or asked.machines
    assert there is not None

    def unlike(layout: Parallelism) -> tuple[int, ...]:
        mine = known.layout
        sizes = (mine.tensor - layout.tensor, mine.pipeline - layout.pipeline)
        return (*map(abs, sizes), abs(mine.data - layout.data))

    for layout in sorted(engines, key=unlike):
        if layout == known.layout and asked.then is None and asked.link is None:
            return replace(known, engine=engines[layout])
        try:
            then = asked.rates(there, layout)
        except UserError:
            continue
        return replace(known, engine=engines[layout], then=then)
    return known


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
    ranked: Sequence[rank.Ranked], chosen: Parallelism | None, probes: Probes | None
) -> Iterator[str]:
    if chosen and (text := rank.loses(ranked, chosen)):
        yield text
    mine = next((one for one in ranked if one.layout == chosen), None)
    if mine and not mine.fit.fits:
        yield f"the profile's layout ({chosen}) {mine.fit}"
    if mine and mine.fit.fits and mine.loaded.request.bound is Cause.BATCH_LIMIT:
        yield f"requests wait most of the time: max-num-seqs allows only {mine.loaded.running:g}"
    yield from mine.notes if mine else ()
    for failed in probes.failed if probes else ():
        yield f"the probe {failed.probe} of {failed.where} failed: {failed.reason}"


def _unpredicted(
    shape: ModelShape | None, unread: tuple[str, ...], rates: Rates | None
) -> Iterator[str]:
    yield from unread
    if shape and rates and shape.dtype not in rates.flops_per_s:
        taken = ", ".join(sorted(rates.flops_per_s))
        yield f"no matrix rate of {shape.dtype} was measured: using that of {taken}"
