"""``serving.layout: auto``: the layout that is served, why, and what the forecasts rank first now.

What was chosen before is kept (models/chosen.py) until the profile asks for something else, or
`up --change-layout` says to change it. Nothing here writes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from orchestrator.core.errors import UserError
from orchestrator.models import catalog, chosen, flags, serving
from orchestrator.models.chosen import ChosenLayout
from orchestrator.models.profiles import config_of
from orchestrator.performance.predict import inputs, room
from orchestrator.performance.predict.choose import (
    Candidate,
    Wanted,
    best,
    by_speed,
    candidate,
    clearly_better,
    communication,
    gain,
)
from orchestrator.performance.predict.forecast import Question, asked, rank_all
from orchestrator.performance.predict.layout import Parallelism, candidates
from orchestrator.performance.predict.load import stated
from orchestrator.performance.predict.shape import read
from orchestrator.performance.results.engine import EngineRates
from orchestrator.performance.results.probe import Probes

if TYPE_CHECKING:
    from orchestrator.profile.model import Profile

#: What measures enough to forecast from, and then more exactly.
PROBE, PROBE_ENGINE = "orchestrate probe", "orchestrate probe --only engine"
#: What shows a pending change, and what makes it.
SEE, CHANGE = "orchestrate plan --change-layout", "orchestrate up --change-layout"

#: Keys of the profile's ``serving``, in the order of a layout's sizes.
SIZES = ("tensor_parallel", "pipeline_parallel", "data_parallel")


@dataclass(frozen=True)
class Settled:
    """``choice``: what `up` serves; ``new``: it is not written down like this yet. ``pending``: a
    layout that would be better, and is not taken without being told to. ``lines``: all of it in
    words, the first of them the choice."""

    choice: ChosenLayout
    layout: serving.Layout
    new: bool
    lines: tuple[str, ...]
    pending: Parallelism | None = None
    ranked: tuple[Candidate, ...] = ()

    @property
    def took(self) -> Parallelism:
        """The layout, as forecasts have it."""
        return layout_of(self.choice)

    def document(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "sizes": self.choice.sizes,
            "new": self.new,
            "pending": sizes_of(self.pending) if self.pending else None,
            "lines": list(self.lines),
            "forecasts": [_figures(one) for one in self.ranked],
        }


@dataclass(frozen=True)
class Forecasts:
    """What is known of layouts. ``notes``: what is not, and of what age it is; ``old``: it was
    measured with another image; ``too_large``: by layout, why it does not fit the memory, if none
    does; ``sources``: what it is made from, for the record."""

    ranked: tuple[Candidate, ...] = ()
    notes: tuple[str, ...] = ()
    old: bool = False
    too_large: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, Any] = field(default_factory=dict)


def settle(profile: Profile, image_id: str = "", *, change: bool = False) -> Settled:
    """The layout of a profile with ``layout: auto``. ``image_id``: of the image that nodes are to
    run, where it is known; ``change``: take what is pending.

    Raises UserError where no layout fits the accelerators' memory, and none runs.
    """
    config, cannot = config_of(profile), serving.capabilities(profile.image)
    wanted, options = wanted_of(profile), choices(profile, config)
    known = known_of(profile, config, wanted, options, image_id)
    possible = serving.as_chosen(profile, config, cannot) is not None
    old = chosen.read(profile.name) if possible else None
    edited = old is not None and old.asked != asked_hash(profile)
    if old is None:
        judged = _first_choice(profile, config, options, known, wanted)
    else:
        judged = _again(old, known, wanted, edited=edited, change=change)
    layout = serving.with_sizes(profile, config, cannot, sizes_of(judged.took))
    assert layout is not None  # it is one of the options
    new = old is None or edited or judged.took != layout_of(old)
    if old is None or new:
        old = ChosenLayout(
            model=profile.serving.model,
            sizes=sizes_of(judged.took),
            asked=asked_hash(profile),
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            why=judged.why,
            reason=_reason(known, wanted),
        )
    lines = (*judged.lines, *_missed(known.ranked, judged.took, wanted), *known.notes)
    return Settled(old, layout, new, lines, judged.pending, tuple(by_speed(known.ranked)))


@dataclass(frozen=True)
class Judged:
    """The layout that is taken, why, and what to tell people. ``pending``: as of ``Settled``."""

    took: Parallelism
    why: str
    lines: tuple[str, ...]
    pending: Parallelism | None = None


def _first_choice(
    profile: Profile,
    config: Mapping[str, Any],
    options: Sequence[Parallelism],
    known: Forecasts,
    wanted: Wanted,
) -> Judged:
    """Where none was chosen. Raises UserError if none fits the memory."""
    if known.too_large:
        raise _too_large(profile, known.too_large)
    if first := best(known.ranked):
        took, why = first.layout, _because(known.ranked, first, wanted)
    else:
        took, text = default(profile, config, options)
        why = f"for {wanted} by default: no measurement says what is fastest. {text}"
    more = () if known.ranked else (f"To choose by forecasts: {PROBE}, then {PROBE_ENGINE}",)
    return Judged(took, why, (f"auto takes {took} {why}", *more))


def _again(
    old: ChosenLayout, known: Forecasts, wanted: Wanted, *, edited: bool, change: bool
) -> Judged:
    """What was chosen before, against what the forecasts rank first now. ``edited``: the profile
    asks for something else, so that a better layout is a change like any other of a profile."""
    running, first = layout_of(old), best(known.ranked)
    mine = next((one for one in known.ranked if one.layout == running), None)
    if first is None or first.layout == running:
        kept = _because(known.ranked, first, wanted) if first else f"kept, for {wanted}"
        why = kept if edited else old.why
        more: tuple[str, ...] = (
            () if first else (f"To compare it with others: {PROBE}, then {PROBE_ENGINE}",)
        )
        since = "" if edited else f"chosen {old.time} "
        return Judged(running, why, (f"{running} stays, {since}{why}", *more))
    if mine is None:
        text = f"{running} stays: no forecast of it can be compared"
        text += f". Ranked first for {wanted}: {first.layout}, {first.told}"
        return Judged(running, f"kept, for {wanted}" if edited else old.why, (text,))
    brings = f"for {wanted}: {gain(first, mine, wanted)}"
    if known.old or not clearly_better(first, mine, wanted):
        reason = "the figures are of another image" if known.old else "the intervals overlap"
        text = f"{running} stays, since {reason}. {first.layout} is ranked first {brings}"
        by = () if known.old else _narrower(mine, first)
        more = tuple(f"To narrow the intervals: {each}" for each in by)
        why = f"kept, for {wanted}: {mine.told}; first: {first.layout}, {first.told}; {reason}"
        return Judged(running, why if edited else old.why, (text, *more))
    if change or edited:
        why = _because(known.ranked, first, wanted)
        return Judged(first.layout, why, (f"changes from {running} to {first.layout} {brings}",))
    text = f"{running} stays until you change it. {first.layout} is forecast to be better {brings}"
    more = (f"To see the change: {SEE}. To make it, which loads the model again: {CHANGE}",)
    return Judged(running, old.why, (text, *more), first.layout)


def choices(profile: Profile, config: Mapping[str, Any]) -> list[Parallelism]:
    """All layouts that the profile's model can be served in, the least communication first."""
    total = sum(node.accelerators for node in profile.compute_nodes)
    cannot = serving.capabilities(profile.image)
    found = [
        layout
        for layout in candidates(config, total)
        if serving.with_sizes(profile, config, cannot, sizes_of(layout))
    ]
    return sorted(found, key=communication)


def wanted_of(profile: Profile) -> Wanted:
    """What the profile says that the layout is for."""
    load = stated(profile)
    assert load is not None  # a profile without it does not load
    targets = profile.bench.targets.model_dump(exclude_none=True)
    times = {f"{name.removesuffix('_ms')}_s": value / 1e3 for name, value in targets.items()}
    return Wanted(str(profile.serving.workload), load, times)


def known_of(
    profile: Profile,
    config: Mapping[str, Any],
    wanted: Wanted,
    options: Sequence[Parallelism],
    image_id: str,
) -> Forecasts:
    """The forecasts of what was measured on this cluster, of layouts that fit the memory."""
    engines = [
        each
        for each in inputs.engines(profile.name)
        if each.of(profile.serving.model, flags.deciding(profile.serving))
    ]
    try:
        probes: Probes | None = inputs.probes(profile.name)
    except UserError:
        probes = None
    engines, notes = _of_this_image(engines, probes, image_id)
    question = asked(profile, dict(config), options[0], probes, engines)
    try:
        found = rank_all(replace(question, load=wanted.load)).ranked
    except UserError as error:
        return Forecasts(notes=(f"No forecast: {error.message}.",) if probes or engines else ())
    ranked = [one for one in found if one.layout in options]
    fitting = [one for one in ranked if one.fit.runs]
    if ranked and not fitting:
        why = {str(one.layout): str(one.fit) for one in ranked}
        return Forecasts(notes=(*notes, "By the probes, no layout fits the memory."), too_large=why)
    old = bool(notes)
    left = [str(each) for each in options if each not in [one.layout for one in ranked]]
    notes += [f"No forecast of: {', '.join(left)}. Run: {PROBE}"] if left else []
    return Forecasts(
        tuple(candidate(one, wanted) for one in fitting),
        tuple(notes),
        old,
        sources=_sources(question),
    )


def _of_this_image(
    engines: list[EngineRates], probes: Probes | None, image_id: str
) -> tuple[list[EngineRates], list[str]]:
    """The engines that were measured with this image, else all; and what is of another image."""
    if not image_id:
        return engines, []
    mine = [each for each in engines if each.image_id in ("", image_id)]
    notes = []
    if probes and probes.image_id not in ("", image_id):
        notes += [_other_image(f"The probes of {probes.time}", probes.image_id, PROBE)]
    if engines and not mine:
        last = engines[0]
        notes += [_other_image(f"The engine, on {last.time},", last.image_id, PROBE_ENGINE)]
    return mine or engines, notes


def _other_image(what: str, image_id: str, probe: str) -> str:
    return f"{what} measured another image ({image_id[:12]}). Measure again: {probe}"


def _sources(question: Question) -> dict[str, Any]:
    """What forecasts are made from, and a hash of it."""
    probes = question.machines.probes if question.machines else None
    engines = [{"time": each.time, "key": each.key} for each in question.engines]
    whole = json.dumps([asdict(probes) if probes else None, engines], sort_keys=True)
    return {
        "probes": probes.time if probes else None,
        "engines": engines,
        "measured_sha256": hashlib.sha256(whole.encode()).hexdigest(),
    }


def default(
    profile: Profile, config: Mapping[str, Any], options: Sequence[Parallelism]
) -> tuple[Parallelism, str]:
    """The layout that is taken where nothing is known of speed: the least communication of those
    that fit the memory. Raises UserError if none does."""
    memories = room.memories(profile)
    shape, _ = read(dict(config), *flags.number_formats(profile.serving.args))
    if shape is None or not any(memories.values()):
        widest = max(options, key=lambda each: (each.ranks, each.tensor))
        return widest, "It takes the most accelerators, since their memory is not known"
    why: dict[str, str] = {}
    for layout in options:
        rooms = room.rooms(profile, memories, shape, config, layout)
        why[str(layout)] = next((each.why_not for each in rooms if each.why_not), "")
        if not why[str(layout)]:
            return layout, "It communicates least of those that fit the memory"
    raise _too_large(profile, why)


def _too_large(profile: Profile, why: Mapping[str, str]) -> UserError:
    lines = "\n".join(f"  {layout}: {text}" for layout, text in why.items())
    return UserError(
        f"{profile.where('serving', 'layout')}: no layout of {profile.serving.model} fits the"
        f" accelerators' memory:\n{lines}",
        "Make serving.args.max-model-len shorter, or serve a smaller model.",
    )


def _because(ranked: Sequence[Candidate], first: Candidate, wanted: Wanted) -> str:
    """Why a layout is first: its forecast, the next one's, and whether they can be told apart."""
    text = f"for {wanted}: {first.told}, {first.tpot_s.origin}"
    others = [one for one in by_speed(ranked) if one.layout != first.layout]
    if not others:
        return text
    text += f"; next: {others[0].layout}, {others[0].told}"
    if not first.missed and (missed := others[0].misses(wanted)):
        text += f", which misses a target ({missed})"
    if not clearly_better(first, others[0], wanted):
        text += "; their intervals overlap"
        text += "".join(f". To narrow them: {each}" for each in _narrower(first, others[0]))
    return text


def _narrower(*ones: Candidate) -> tuple[str, ...]:
    """The first thing that would narrow each one's intervals."""
    return tuple(dict.fromkeys(text for one in ones for text in one.narrower[:1]))


def _missed(ranked: Sequence[Candidate], took: Parallelism, wanted: Wanted) -> Iterator[str]:
    mine = next((one for one in ranked if one.layout == took), None)
    if mine and (missed := mine.misses(wanted)):
        others = all(one.missed for one in ranked)
        yield f"{'No layout meets the targets. ' if others else ''}{took} misses: {missed}"
    if mine and mine.saturated:
        yield f"{took} does not keep up with {wanted.load.rate_per_s:g} requests/s"


def _reason(known: Forecasts, wanted: Wanted) -> dict[str, Any]:
    forecasts = [_figures(one) for one in by_speed(known.ranked)]
    return {"workload": asdict(wanted), **known.sources, "forecasts": forecasts}


def asked_hash(profile: Profile) -> str:
    """A hash of what the profile says that a layout depends on."""
    wanted, model = wanted_of(profile), catalog.served(profile)
    said = {
        "model": [model.name, model.repository, model.revision],
        "flags": {str(name): str(value) for name, value in profile.serving.args.items()},
        "wanted": asdict(wanted),
        "accelerators": {node.name: node.accelerators for node in profile.compute_nodes},
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def sizes_of(layout: Parallelism) -> dict[str, int]:
    """By key of the profile's ``serving``."""
    sizes = (layout.tensor, layout.pipeline, layout.data)
    return dict(zip(SIZES, sizes, strict=True))


def layout_of(choice: ChosenLayout) -> Parallelism:
    return Parallelism(*(choice.sizes[key] for key in SIZES))


def _figures(one: Candidate) -> dict[str, Any]:
    """A candidate as JSON types."""
    names = ("ttft_s", "tpot_s", "e2el_s", "output_tokens_per_s")
    return {
        "layout": str(one.layout),
        **{name: asdict(getattr(one, name)) for name in names},
        "missed": dict(one.missed),
        "saturated": one.saturated,
    }
