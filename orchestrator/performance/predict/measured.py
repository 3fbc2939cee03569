"""Steps as the engine itself was measured; formulas only for what differs from that.

The load model is inverted: from each cell's times come the steps with which the model gives these
times back. What is kept of a step is its distance from the formula of the cluster that was
measured. Between cells this distance is interpolated linearly, and for another link, layout or card
it is added to the formula of that one: so only what changes is modelled. Without formulas the
distance is the step itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

from orchestrator.performance.predict.engine import Engine
from orchestrator.performance.predict.load import Limits, LoadRound, OfferedLoad, one_round
from orchestrator.performance.predict.phase import Parts, Work
from orchestrator.performance.predict.steps import Formulas, Nothing, Steps
from orchestrator.performance.results.engine import EngineCell, EngineRates

#: Tries at a step's time, and the most by which the assumed work of the host is multiplied.
TRIES, MOST = 40, 64.0
#: A step with more requests takes at least this share of one with the fewest: noise of the others'
#: prompts must not make it free.
LEAST = 0.25
#: How sharply a step of prompts bends from the host's time to the card's (``bent``).
BEND = 4.0
#: No step takes less than this share of what formulas say, however wrong they are: none is free.
NO_LESS = 0.01

#: (of what, seconds) in ascending order.
Points = tuple[tuple[float, float], ...]
#: Such rows, by another quantity in ascending order.
Table = tuple[tuple[float, Points], ...]


@dataclass(frozen=True)
class MeasuredSteps:
    """Measured steps. ``base``: the formulas of what is asked for; ``then``: of what was measured,
    where that is something else.

    All other fields are seconds beyond ``then``. ``decode``: by running requests; ``contexts``:
    more than that, by tokens before a new one and by requests; ``prompts``: by tokens in a step;
    ``sent``: until the first token, by a prompt's tokens and requests sent at the same time.
    ``floor``: the least share of the device's time by formula that a step was measured to take.
    """

    base: Steps
    decode: Points = ()
    contexts: Table = ()
    prompts: Points = ()
    sent: Table = ()
    floor: float = 0.0
    then: Steps | None = None

    @property
    def stages(self) -> int:
        return self.base.stages

    def step(self, work: Work, in_flight: float) -> Parts:
        found = self.base.step(work, in_flight)
        grows = isinstance(self.base, Nothing)
        if work.prompts:
            beyond = bent(self.prompts, work.tokens) if grows else at(self.prompts, work.tokens)
        else:
            running = work.sequences * in_flight
            beyond = at(self.decode, running, grows)
            beyond += over(self.contexts, work.context, running, grows=False)
        if self.then and beyond > 0:
            # It is mostly the host's work, which more of the device's and the messages' time hides.
            more_s = found.seconds - self.then.step(work, in_flight).seconds
            beyond = max(beyond - max(more_s, 0.0), 0.0)
        return self._beyond(found, beyond)

    def first(self, steps: Parts, last: Work, together: float) -> Parts:
        found = self.base.first(steps, last, together)
        late_s = over(self.sent, 2 * last.context, together, grows=True) if together > 1 else 0.0
        return self._beyond(found, late_s)

    def _beyond(self, found: Parts, beyond: float) -> Parts:
        """More is the engine's; less makes all parts smaller, since none is known to be wrong."""
        if beyond >= 0 or not found.seconds:
            return found.plus(engine_s=max(beyond, 0.0))
        least_s = max(self.floor * found.device_s, NO_LESS * found.seconds)
        whole = max(found.seconds + beyond, least_s)
        return found.times(whole / found.seconds)


def bent(points: Points, x: float) -> float:
    """A step of x tokens between measured ones. While a card computes, the host launches what comes
    next, so the longer of a fixed time and one that grows with the tokens decides, and where they
    meet both do a little: y⁴ = a⁴ + (b x)⁴ (docs/explanation/performance-model.md)."""
    if len(points) < 2:
        return points[0][1] if points else 0.0
    pairs = list(pairwise(points))
    (x0, y0), (x1, y1) = next((pair for pair in pairs if x <= pair[1][0]), pairs[-1])
    if y1 <= y0:  # repeats differ by more than such a step grows
        x = min(max(x, x0), x1)
    low, high = max(y0, 0.0) ** BEND, max(y1, 0.0) ** BEND
    way = (x**BEND - x0**BEND) / (x1**BEND - x0**BEND)
    found: float = max((1 - way) * low + way * high, min(low, high) / 2**BEND) ** (1 / BEND)
    return found


def at(points: Points, x: float, grows: bool = False) -> float:
    """The value at x by linear interpolation; none below the first point is lower than it would be
    on the first line. Beyond the last point: the last line if it ``grows``, else the last value."""
    if len(points) < 2:
        return points[0][1] if points else 0.0
    if x <= points[0][0] and not grows:
        return points[0][1]
    pairs = list(pairwise(points))
    (x0, y0), (x1, y1) = next((pair for pair in pairs if x <= pair[1][0]), pairs[-1])
    if x > x1:
        return y1 + max(y1 - y0, 0.0) / (x1 - x0) * (x - x1) if grows else y1
    if x < x0:
        return y0 - min(max(y1 - y0, 0.0) / (x1 - x0) * (x0 - x), y0 / 2 if y0 > 0 else 0.0)
    return y0 + (x - x0) * (y1 - y0) / (x1 - x0)


def over(table: Table, y: float, x: float, grows: bool) -> float:
    """The value at x of each row, interpolated to y; beyond the outer rows: theirs."""
    return at(tuple((each, at(row, x, grows)) for each, row in table), y, grows=False)


def load_of(cell: EngineCell, copies: int) -> OfferedLoad:
    """A cell's load on one of the copies."""
    return OfferedLoad(cell.prompt_tokens, cell.output_tokens, max(cell.concurrency / copies, 1.0))


def fitted(engine: EngineRates, formulas: Formulas, limits: Limits) -> Engine:
    """The engine's constants that give the smallest load back: the host's work is the assumed one,
    multiplied; what then lacks until the first token is the request's."""
    cell = min(engine.cells, key=lambda each: (each.concurrency, each.prompt_tokens))
    load, start = load_of(cell, engine.data), formulas.rates.engine

    def multiplied(factor: float, request_s: float = 0.0) -> Engine:
        return replace(
            start,
            step_s=start.step_s * factor,
            per_sequence_s=start.per_sequence_s * factor,
            request_s=request_s,
            per_layer_operations=start.per_layer_operations * factor,
            per_message_operations=start.per_message_operations * factor,
        )

    def seen(constants: Engine) -> LoadRound:
        steps = replace(formulas, rates=replace(formulas.rates, engine=constants))
        return one_round(steps, load, limits)

    factor = _solved(lambda f: seen(multiplied(f)).further.seconds, cell.tpot_s.median, 0.0, MOST)
    lacks_s = cell.ttft_s.median - seen(multiplied(factor)).first.seconds
    return multiplied(factor, max(lacks_s, 0.0))


def inverted(engine: EngineRates, then: Steps, limits: Limits) -> MeasuredSteps:
    """Steps that give the cells back. ``then``: the formulas of what was measured."""
    cells = sorted(engine.cells, key=lambda each: (each.concurrency, each.prompt_tokens))
    if isinstance(then, Nothing):
        then = replace(then, request_s=_request(cells, engine.data))
    found = MeasuredSteps(then)
    for cell in cells:
        load = load_of(cell, engine.data)
        tokens = _tokens(found, load, limits)
        if load.concurrency == 1 or all(tokens > point[0] * 1.01 for point in found.prompts):
            found = _with_prompt(found, cell, load, tokens, limits)
    found = _with_decode(found, cells, engine.data, limits)
    found = replace(found, floor=_floor(found, cells, engine.data, limits))
    return _with_sent(found, cells, engine.data, limits)


def _request(cells: Iterable[EngineCell], copies: int) -> float:
    """Seconds of a request beyond its steps, where no formula says: a prompt without tokens would
    take a step."""
    alone = [cell for cell in cells if cell.concurrency <= copies]
    by_prompt = sorted((cell.prompt_tokens, cell.ttft_s.median) for cell in alone)
    if not by_prompt:
        return 0.0
    (x0, y0), (x1, y1) = by_prompt[0], by_prompt[-1]
    slope = max(y1 - y0, 0.0) / (x1 - x0) if x1 > x0 else 0.0
    return max(y0 - slope * x0 - alone[0].tpot_s.median, 0.0)


def _tokens(steps: Steps, load: OfferedLoad, limits: Limits) -> float:
    return one_round(steps, load, limits).last.tokens


def _with_prompt(
    found: MeasuredSteps, cell: EngineCell, load: OfferedLoad, tokens: float, limits: Limits
) -> MeasuredSteps:
    """With the step of so many tokens that gives the cell's time to the first token."""

    def tried(value: float) -> MeasuredSteps:
        others = [point for point in found.prompts if point[0] != tokens]
        return replace(found, prompts=tuple(sorted([*others, (tokens, value)])))

    def first(value: float) -> float:
        return one_round(tried(value), load, limits).first.seconds

    seconds, low = cell.ttft_s.median, -first(0.0)
    if load.concurrency > 1 and (fewer := [each for each, _ in found.prompts if each < tokens]):
        # Requests that do not wait for each other say nothing of one step with all their prompts:
        # it takes no less than one with fewer tokens.
        last, in_flight = one_round(found, load, limits).last, _in_flight(found, load)
        least = found.step(replace(last, tokens=max(fewer)), in_flight).seconds
        low = max(low, least - found.base.step(last, in_flight).seconds)
    return tried(_solved(first, seconds, low, seconds))


def _with_decode(
    found: MeasuredSteps, cells: list[EngineCell], copies: int, limits: Limits
) -> MeasuredSteps:
    """With steps that give the cells' times per further token: by requests from the prompt length
    with most cells, and what other lengths take beyond that by context."""
    rows: dict[int, list[EngineCell]] = {}
    for cell in cells:
        if cell.output_tokens > 1:
            rows.setdefault(cell.prompt_tokens, []).append(cell)
    if not rows:
        return found
    main = max(rows, key=lambda prompt: (len(rows[prompt]), -prompt))
    for cell in rows[main]:
        found = _with_plain(found, cell, load_of(cell, copies), limits)
    table: dict[float, Points] = {main + rows[main][0].output_tokens / 2: ((1.0, 0.0),)}
    for prompt, row in rows.items():
        if prompt != main:
            own = [_context(found, cell, load_of(cell, copies), limits) for cell in row]
            table[prompt + row[0].output_tokens / 2] = tuple(sorted(own))
    return replace(found, contexts=tuple(sorted(table.items())))


def _with_plain(
    found: MeasuredSteps, cell: EngineCell, load: OfferedLoad, limits: Limits
) -> MeasuredSteps:
    others = tuple(point for point in found.decode if point[0] != load.concurrency)

    def tried(value: float) -> MeasuredSteps:
        return replace(found, decode=tuple(sorted([*others, (load.concurrency, value)])))

    def further(value: float) -> float:
        return one_round(tried(value), load, limits).further.seconds

    step_s = found.base.step(one_round(found, load, limits).plain, _in_flight(found, load)).seconds
    least = -step_s
    if others:
        least += LEAST * max(step_s + others[0][1], 0.0)
    return tried(_solved(further, cell.tpot_s.median, least, cell.tpot_s.median))


def _context(
    found: MeasuredSteps, cell: EngineCell, load: OfferedLoad, limits: Limits
) -> tuple[float, float]:
    """Running requests of this context, and what their step takes beyond one of the others'."""
    plain = one_round(found, load, limits).plain

    def further(value: float) -> float:
        tried = replace(found, contexts=((plain.context, ((1.0, value),)),))
        return one_round(tried, load, limits).further.seconds

    least = (LEAST - 1) * found.step(plain, _in_flight(found, load)).seconds
    return load.concurrency, _solved(further, cell.tpot_s.median, least, cell.tpot_s.median)


def _in_flight(found: MeasuredSteps, load: OfferedLoad) -> float:
    return min(float(found.stages), load.concurrency)


def _floor(found: MeasuredSteps, cells: Iterable[EngineCell], copies: int, limits: Limits) -> float:
    shares = [1.0]
    for cell in cells:
        seen = one_round(found, load_of(cell, copies), limits)
        for work in (seen.plain, seen.last):
            device_s = found.base.step(work, 1.0).device_s
            shares += [found.step(work, 1.0).seconds / device_s] if device_s else []
    return min(shares)


def _with_sent(
    found: MeasuredSteps, cells: Iterable[EngineCell], copies: int, limits: Limits
) -> MeasuredSteps:
    """With what requests that were sent together waited beyond the load model."""
    rows: dict[float, dict[float, float]] = {}
    for cell in cells:
        load = load_of(cell, copies)
        if load.concurrency == 1:
            continue
        model_s = one_round(found, load, limits).first.seconds
        row = rows.setdefault(float(cell.prompt_tokens), {1.0: 0.0})
        row[load.concurrency] = cell.ttft_s.median - model_s
    table = ((prompt, tuple(sorted(row.items()))) for prompt, row in rows.items())
    return replace(found, sent=tuple(sorted(table)))


def _solved(of: Callable[[float], float], wanted: float, low: float, high: float) -> float:
    """Where ``of``, which never falls, is ``wanted``; an end if it is nowhere.

    By regula falsi (Illinois): ``of`` is made of few lines, so it takes few tries.
    """
    below, above = of(low) - wanted, of(high) - wanted
    if below >= 0 or above <= 0:
        return low if below >= 0 else high
    last = 0
    for _ in range(TRIES):
        middle = low - below * (high - low) / (above - below)
        off = of(middle) - wanted
        if abs(off) <= 1e-9 * wanted:
            return middle
        side = 1 if off > 0 else -1
        if off > 0:
            high, above, below = middle, off, below / (2 if last == side else 1)
        else:
            low, below, above = middle, off, above / (2 if last == side else 1)
        last = side
    return (low + high) / 2
