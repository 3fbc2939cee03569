"""Which layout serves a stated workload best, by forecasts, and when another one is worth a change.

Pure: the same forecasts give the same answer. The rules: docs/explanation/performance-model.md,
"The layout that auto takes".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.performance.predict.layout import Parallelism
from orchestrator.performance.predict.load import OfferedLoad
from orchestrator.performance.predict.outlook import Figure, ranged, timed
from orchestrator.performance.predict.rank import SAME, Ranked

#: Latency targets by figure, as people call them.
NAMES = {"ttft_s": "first token", "tpot_s": "each further token", "e2el_s": "whole request"}


@dataclass(frozen=True)
class Wanted:
    """What a layout is chosen for. ``targets_s``: the most seconds, by figure (NAMES)."""

    name: str
    load: OfferedLoad
    targets_s: Mapping[str, float]

    def __str__(self) -> str:
        load = self.load
        many = f"{load.rate_per_s:g} requests/s" if load.rate_per_s else f"{load.concurrency:g}"
        many += "" if load.rate_per_s else " at once"
        return f"{self.name} ({load.prompt_tokens}+{load.output_tokens} tokens, {many})"


@dataclass(frozen=True)
class Candidate:
    """A layout under the workload. ``missed``: by figure, how many times its target it takes.
    ``saturated``: requests come faster than it serves them. ``narrower``: what measurement would
    narrow its intervals."""

    layout: Parallelism
    ttft_s: Figure
    tpot_s: Figure
    e2el_s: Figure
    output_tokens_per_s: Figure
    missed: Mapping[str, float]
    saturated: bool = False
    at_a_rate: bool = False
    narrower: tuple[str, ...] = ()

    @property
    def figures(self) -> dict[str, Figure]:
        """Those that targets are for, by name."""
        return {"ttft_s": self.ttft_s, "tpot_s": self.tpot_s, "e2el_s": self.e2el_s}

    @property
    def by_time(self) -> bool:
        """Whether a request's time tells layouts apart: at a rate all give the same tokens."""
        return self.at_a_rate and not self.saturated

    @property
    def speed(self) -> float:
        """The larger the better."""
        return 1 / self.e2el_s.value if self.by_time else self.output_tokens_per_s.value

    @property
    def told(self) -> str:
        """The figure that counts, with its interval."""
        if self.by_time:
            return f"{timed(self.e2el_s)} a request"
        tokens = self.output_tokens_per_s
        text = f"{ranged(tokens.value, tokens.low, tokens.high)} tokens/s"
        return f"{text}, less than is asked for" if self.saturated else text

    def misses(self, wanted: Wanted) -> str:
        """Which targets it misses, and by how much; empty if none."""
        return "; ".join(
            f"{NAMES[name]} {timed(self.figures[name])}, {times:.3g} times the target of"
            f" {wanted.targets_s[name] * 1e3:g} ms"
            for name, times in self.missed.items()
        )


def candidate(one: Ranked, wanted: Wanted) -> Candidate:
    """A layout's forecasts, held against the targets."""
    further = wanted.load.output_tokens - 1
    first, each = one.ttft_s, one.tpot_s
    whole = Figure(
        first.value + further * each.value,
        first.low + further * each.low,
        first.high + further * each.high,
        each.origin,
    )
    figures = {"ttft_s": first, "tpot_s": each, "e2el_s": whole}
    times = {name: figures[name].value / most for name, most in wanted.targets_s.items()}
    return Candidate(
        one.layout,
        **figures,
        output_tokens_per_s=one.output_tokens_per_s,
        missed={name: factor for name, factor in times.items() if factor > 1},
        saturated=one.loaded.saturated,
        at_a_rate=wanted.load.rate_per_s is not None,
        narrower=one.narrower,
    )


def communication(layout: Parallelism) -> tuple[int, ...]:
    """A key to sort by: the less its ranks send each other, the sooner; then, the fewer there are.

    Stages send less than slices of layers do, and copies nothing.
    """
    return (layout.tensor * layout.pipeline, layout.tensor, layout.data)


def best(candidates: Iterable[Candidate]) -> Candidate | None:
    """The fastest of those that keep up with the requests and within the targets.

    If none meets them all, the one that misses least. What differs by less than forecasts can
    tell (SAME) is a tie, which the layout with the least communication wins.
    """
    found = list(candidates)
    found = [one for one in found if not one.saturated] or found
    if good := [one for one in found if not one.missed]:
        most = max(one.speed for one in good)
        tied = [one for one in good if one.speed >= most * (1 - SAME)]
    else:
        least = min((_worst(one) for one in found), default=0.0)
        tied = [one for one in found if _worst(one) <= least * (1 + SAME)]
    return min(tied, key=lambda one: communication(one.layout), default=None)


def _worst(one: Candidate) -> float:
    return max(one.missed.values(), default=0.0)


def clearly_better(new: Candidate, old: Candidate, wanted: Wanted) -> bool:
    """Whether a layout beats another by more than both forecasts' intervals."""
    asked = (wanted.load.rate_per_s or 0.0) * wanted.load.output_tokens
    if old.saturated and not new.saturated:
        return old.output_tokens_per_s.high < asked
    if old.missed:
        sure = _least(old, wanted)
        return sure > (_most(new, wanted) if new.missed else 1.0)
    if new.by_time:
        return new.e2el_s.high < old.e2el_s.low
    return new.output_tokens_per_s.low > old.output_tokens_per_s.high


def _least(one: Candidate, wanted: Wanted) -> float:
    """How many times the worst target it takes at the least."""
    return max(one.figures[name].low / most for name, most in wanted.targets_s.items())


def _most(one: Candidate, wanted: Wanted) -> float:
    return max(one.figures[name].high / most for name, most in wanted.targets_s.items())


def gain(new: Candidate, old: Candidate, wanted: Wanted) -> str:
    """What a change would bring."""
    text = f"{new.told} instead of {old.told}"
    if new.by_time == old.by_time:
        share = new.e2el_s.value / old.e2el_s.value if new.by_time else new.speed / old.speed
        text += f" ({share - 1:+.0%})"
    if (missed := old.misses(wanted)) and not new.missed:
        text += f"; within the targets, which {old.layout} misses ({missed})"
    return text


def by_speed(candidates: Iterable[Candidate]) -> Sequence[Candidate]:
    """For people: the best first."""
    left = list(candidates)
    ordered: list[Candidate] = []
    while left:
        first = best(left)
        assert first is not None
        ordered.append(first)
        left.remove(first)
    return ordered
