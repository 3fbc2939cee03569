"""Rank layouts: which one is best, whether more nodes help, and what would change that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from orchestrator.core.sizes import human_size
from orchestrator.performance.predict.layout import Parallelism
from orchestrator.performance.predict.load import Limits, LoadPrediction, OfferedLoad, Prediction
from orchestrator.performance.predict.outlook import Figure, Known, Origin, outlook
from orchestrator.performance.predict.phase import Cause
from orchestrator.performance.predict.rates import Rates, what_if
from orchestrator.performance.predict.shape import ModelShape

#: Differences below this share count as none: the model is not more exact.
SAME = 0.05
#: The name of the case without a change, among counterfactuals.
AS_IT_IS = "as it is"
#: Usual links: name -> bytes per second of one TCP stream. Ethernet: 94 % of the bits, the rest is
#: headers. USB4: as reported for thunderbolt_net.
LINKS = {
    "2.5 GbE": 2.5e9 / 8 * 0.94,
    "10 GbE": 10e9 / 8 * 0.94,
    "USB4": 9.5e9 / 8,
    "25 GbE": 25e9 / 8 * 0.94,
}


@dataclass(frozen=True)
class Fit:
    """The memory of the fullest rank's device, in bytes, and what it is used for.

    ``sequences``: requests of the longest context that have room at once, at most those allowed;
    ``wanted``: those that the profile needs room for. ``known``: whether the sizes are.
    """

    weight_bytes: float
    cache_bytes_per_sequence: float
    usable_bytes: float
    cache_bytes: float
    sequences: int
    wanted: int
    known: bool = True

    @property
    def runs(self) -> bool:
        """Whether at least one request of the longest context has room."""
        return self.weight_bytes <= self.usable_bytes and self.sequences >= 1

    @property
    def fits(self) -> bool:
        """Whether all requests that the profile wants have room."""
        return self.runs and self.sequences >= self.wanted

    def __str__(self) -> str:
        if not self.known:
            return "not known"
        held = f"weights {human_size(self.weight_bytes)} of {human_size(self.usable_bytes)}"
        if self.weight_bytes > self.usable_bytes:
            return f"does not fit: {held}"
        word = "fits" if self.fits else "does not fit"
        each = f"{human_size(self.cache_bytes_per_sequence)} each"
        return f"{word}: {held}, room for {self.sequences} requests, {each}"


@dataclass(frozen=True)
class Ranked:
    """A layout with its predictions: for a single request, and for the load.

    ``single_tpot_s``, ``ttft_s``, ``tpot_s``, ``output_tokens_per_s``: their figures with
    intervals; ``origins``: of the parts of a single request's token, by cause; ``narrower``: what
    measurement would narrow them.
    """

    layout: Parallelism
    fit: Fit
    single: LoadPrediction
    loaded: LoadPrediction
    notes: tuple[str, ...]
    single_tpot_s: Figure
    ttft_s: Figure
    tpot_s: Figure
    output_tokens_per_s: Figure
    origins: dict[str, Origin]
    narrower: tuple[str, ...] = ()

    @property
    def single_tokens_per_s(self) -> float:
        """Tokens per second while a single request decodes."""
        return 1 / self.single.decode.seconds


def fit(
    shape: ModelShape,
    layout: Parallelism,
    memory_bytes: float,
    limits: Limits,
    kv_tokens: int | None = None,
) -> Fit:
    """Compare weights and KV cache with a device's memory.

    A step's buffers are not counted: vLLM measures them at start, and makes the cache smaller.
    ``kv_tokens``: the room in the cache by the engine's word, where it was measured.
    """
    usable = memory_bytes * (1.0 if limits.cache_bytes else limits.memory_share)
    weights = shape.bytes_held(layout.tensor, layout.pipeline)
    left = max(usable - weights, 0.0)
    cache = left if limits.cache_bytes is None else min(limits.cache_bytes, left)
    stage = -(-shape.layers // layout.pipeline) / shape.layers
    each = shape.cache_held(limits.context or 0, layout.tensor) * stage
    fitting = int(cache / each) if each else limits.sequences
    if kv_tokens is not None and limits.context:
        fitting = kv_tokens // limits.context
    room = min(fitting, limits.sequences)
    return Fit(weights, each, usable, cache, room, limits.wanted)


def rank(knowns: Iterable[Known], load: OfferedLoad) -> list[Ranked]:
    """Sort layouts by tokens per second of a single request; those that fit come first."""
    found = [_ranked(known, load) for known in knowns]
    return sorted(found, key=lambda one: (not one.fit.fits, not one.fit.runs, -_speed(one)))


def _speed(one: Ranked) -> float:
    return one.single_tokens_per_s


def _ranked(known: Known, load: OfferedLoad) -> Ranked:
    room = room_of(known)
    # Requests without room wait. If not even one has room, predict the speed as if one had.
    allowed = replace(known, limits=replace(known.limits, sequences=max(1, room.sequences)))
    single = outlook(allowed, replace(load, concurrency=1, rate_per_s=None))
    loaded = outlook(allowed, load)
    return Ranked(
        known.layout,
        room,
        single.whole,
        loaded.whole,
        known.rates.notes if known.rates else (),
        single.tpot_s,
        loaded.ttft_s,
        loaded.tpot_s,
        loaded.output_tokens_per_s,
        single.origins,
        loaded.narrower,
    )


def room_of(known: Known) -> Fit:
    """What a layout has room for; as much as is allowed where the sizes are not known."""
    engine, limits = known.engine, known.limits
    same = engine is not None and known.layout == Parallelism(
        engine.tensor, engine.pipeline, engine.data
    )
    if known.shape and known.rates:
        said = engine.kv_tokens if engine and same else None
        return fit(known.shape, known.layout, known.rates.memory_bytes, limits, said)
    return Fit(0.0, 0.0, 0.0, 0.0, limits.sequences, limits.wanted, known=False)


def best(ranked: Sequence[Ranked], of: Callable[[Ranked], float]) -> Ranked | None:
    """The layout with the largest ``of`` among those that run; of equals, the smallest layout."""
    running = [one for one in ranked if one.fit.runs]
    if not running:
        return None
    most = max(map(of, running))
    good = (one for one in running if of(one) >= most * (1 - 1e-9))
    return min(good, key=lambda one: one.layout.ranks)


def throughput(one: Ranked) -> float:
    return one.loaded.output_tokens_per_s


def loses(ranked: Sequence[Ranked], chosen: Parallelism) -> str:
    """Why the chosen layout is slower than one device; empty if it is not, or one cannot run it."""
    one, mine = _of(ranked, Parallelism()), _of(ranked, chosen)
    if one is None or mine is None or not one.fit.runs or chosen.one:
        return ""
    alone, spread = one.single_tokens_per_s, mine.single_tokens_per_s
    if spread >= alone * (1 - SAME):
        return ""
    return (
        f"the profile's layout ({chosen}) is predicted to be slower than one device for a single "
        f"request: {spread:.3g} tokens/s, alone {alone:.3g}; the largest added cost is "
        f"{_added(one.single.decode, mine.single.decode)}"
    )


def _added(alone: Prediction, spread: Prediction) -> Cause:
    """The part that grows most from one layout to the other."""
    before, after = alone.parts.shares(), spread.parts.shares()
    return max(after, key=lambda cause: after[cause] - before.get(cause, 0.0))


def does_clustering_help(ranked: Sequence[Ranked], load: OfferedLoad) -> str:
    """The answer in one line, with figures. Only layouts with one copy are compared."""
    one = _of(ranked, Parallelism())
    several = [each for each in ranked if not each.layout.one and each.layout.data == 1]
    if one is None:
        return "Does clustering help? Not known: one device cannot be predicted."
    if not several:
        return "Does clustering help? Only one device can be predicted."
    if best(several, _speed) is None:
        return f"Does clustering help? No layout of several devices runs: {several[0].fit}"
    if not one.fit.runs:
        return f"Does clustering help? Yes: on one device the model {one.fit}"
    at = f"{load.rate_per_s:g} requests/s" if load.rate_per_s else f"{load.concurrency:g} at once"
    return "Does clustering help? " + "; ".join(
        _answer(name, one, best(several, of), of)
        for name, of in (("one request", _speed), (at, throughput))
    )


def _answer(name: str, one: Ranked, other: Ranked | None, of: Callable[[Ranked], float]) -> str:
    assert other is not None
    alone, together = of(one), of(other)
    word = "no difference" if abs(together - alone) <= SAME * alone else ""
    word = word or ("yes" if together > alone else "no")
    return f"{name}: {word}, {together:.3g} tokens/s ({other.layout}), alone {alone:.3g}"


def counterfactuals(known: Known, load: OfferedLoad) -> dict[str, float]:
    """Tokens per second of a single request if one thing differed, by that thing."""
    alone = replace(load, concurrency=1, rate_per_s=None)
    rates = known.rates

    def speed(changed: Rates | None) -> float:
        other = replace(known, rates=changed, then=known.then or rates)
        return 1 / outlook(other, alone).tpot_s.value

    found = {AS_IT_IS: speed(rates)}
    if rates is None or known.shape is None:
        return found
    if rates.link is not None:
        found |= {
            f"with a {name} link": speed(what_if(rates, link_bytes_per_s=bytes_per_s))
            for name, bytes_per_s in LINKS.items()
            if bytes_per_s > rates.link.bytes_per_s * (1 + SAME)
        }
        found["with half the latency"] = speed(what_if(rates, latency_factor=0.5))
    found["with twice the memory bandwidth"] = speed(what_if(rates, memory_factor=2.0))
    found["with a host twice as fast"] = speed(what_if(rates, host_factor=0.5))
    return found


def _of(ranked: Sequence[Ranked], layout: Parallelism) -> Ranked | None:
    return next((one for one in ranked if one.layout == layout), None)
