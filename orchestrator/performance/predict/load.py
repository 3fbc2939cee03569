"""Many requests at once: latency of one request, throughput of all.

Rounds: with r requests running, a request stays for its own prompt, the others' prompts and its own
tokens. Prompts share steps up to ``max-num-batched-tokens``, and a step with a prompt also computes
the next token of every running request (vLLM's chunked prefill: v1/core/sched/scheduler.py).
Requests of equal length that start when others end stay in step, but the engine does not wait for
all of them: the first prompt is computed alone, the others' follow in their order, and the median
request is in the middle of that line. With a rate, requests come one by one, and the
number of running ones follows Little's law (r = rate x stay). The model's limits:
docs/explanation/performance-model.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from orchestrator.performance.predict.phase import Cause, Parts, Work
from orchestrator.performance.predict.steps import Steps
from orchestrator.profile.existing import Attached
from orchestrator.profile.model import Profile

#: vLLM 0.30's defaults of flags (engine/arg_utils.py, config/cache.py). On large cards, and with
#: several ranks on CPU, vLLM's first two defaults are larger.
DEFAULT_SEQUENCES = 256
DEFAULT_BATCHED_TOKENS = 2048
DEFAULT_MEMORY_SHARE = 0.92
#: The largest step that vLLM captures as a graph by default, if twice the requests are not less.
MOST_CAPTURED = 512
#: The variable with vLLM's cache size on CPU, in GiB; it replaces the share above.
CPU_CACHE = "VLLM_CPU_KVCACHE_SPACE"
ROUNDS = 60
#: The most requests at once that are assumed for a workload with a rate.
AT_A_RATE = 256


@dataclass(frozen=True)
class OfferedLoad:
    """The offered load: ``concurrency`` requests at once; with ``rate_per_s``, requests that arrive
    at that rate, at most ``concurrency`` at once."""

    prompt_tokens: int
    output_tokens: int
    concurrency: float = 1.0
    rate_per_s: float | None = None


@dataclass(frozen=True)
class Limits:
    """The profile's limits. ``sequences``: most requests at once; ``wanted``: requests that need
    room in memory, if the profile says so; ``context``: tokens of one request, None: the model's
    own limit; ``cache_bytes``: size of the KV cache, if it is not a share of the memory;
    ``captured``: the most tokens of a step that runs as a captured graph, where the device can."""

    sequences: int = DEFAULT_SEQUENCES
    wanted: int = 1
    batched_tokens: int = DEFAULT_BATCHED_TOKENS
    context: int | None = None
    memory_share: float = DEFAULT_MEMORY_SHARE
    cache_bytes: float | None = None
    captured: int = 0


@dataclass(frozen=True)
class Prediction:
    """A phase: "prefill" is the time to first token, "decode" the time per further token, "request"
    a whole request. ``seconds``: the sum of the parts."""

    phase: str
    seconds: float
    parts: Parts
    bound: Cause


@dataclass(frozen=True)
class LoadPrediction:
    """The prediction for a load on a layout. ``running``: requests in the engine, of all copies
    together; ``waiting``: requests in the queue. ``saturated``: requests arrive faster than they
    can be served, so that the queue grows for ever; then no waiting time is predicted."""

    prefill: Prediction
    decode: Prediction
    request: Prediction
    running: float
    waiting: float
    requests_per_s: float
    output_tokens_per_s: float
    saturated: bool = False


def stated(profile: Profile) -> OfferedLoad | None:
    """The load that the profile is served for; None where it does not say."""
    found = profile.bench.workloads.get(profile.serving.workload or "")
    if found is None:
        return None
    at_once = found.concurrency or AT_A_RATE
    return OfferedLoad(found.prompt_tokens, found.output_tokens, at_once, found.rate)


def limits(profile: Profile | Attached, synchronous: bool = False) -> Limits:
    """The limits in the profile's flags of ``vllm serve``. ``synchronous``: the device is a CPU."""
    args = {key.replace("_", "-"): value for key, value in profile.serving.args.items()}
    share = args.get("gpu-memory-utilization")
    cache = profile.serving_env().get(CPU_CACHE, "") if synchronous else ""
    sequences = _whole(args.get("max-num-seqs")) or DEFAULT_SEQUENCES
    captured = _whole(args.get("max-cudagraph-capture-size")) or min(2 * sequences, MOST_CAPTURED)
    return Limits(
        sequences=sequences,
        wanted=_whole(args.get("max-num-seqs")) or 1,
        batched_tokens=_whole(args.get("max-num-batched-tokens")) or DEFAULT_BATCHED_TOKENS,
        context=_whole(args.get("max-model-len")),
        memory_share=float(share) if isinstance(share, int | float) else DEFAULT_MEMORY_SHARE,
        cache_bytes=float(cache) * 2**30 if cache.replace(".", "", 1).isdigit() else None,
        captured=0 if args.get("enforce-eager") else captured,
    )


def _whole(value: object) -> int | None:
    return int(str(value)) if str(value).isdigit() and int(str(value)) > 0 else None


def under_load(steps: Steps, copies: int, load: OfferedLoad, allowed: Limits) -> LoadPrediction:
    """Predict a load on ``copies`` engines with such steps. They share the load evenly."""
    used = copies if load.rate_per_s else min(copies, max(load.concurrency, 1.0))
    at_once = max(load.concurrency / used, 1.0)
    most = min(at_once, float(allowed.sequences))

    def at(running: float) -> LoadRound:
        return one_round(steps, replace(load, concurrency=running), allowed)

    if load.rate_per_s is None:
        found = at(most)
        throughput = found.running / found.stay_s
        waiting = at_once - most
        return _forecast(found, load, used, throughput, waiting, False)
    rate = load.rate_per_s / used

    def among(running: float) -> LoadRound:
        """The round of a new request: it meets ``running`` requests, and is one more (Wolff,
        "Poisson arrivals see time averages", 1982)."""
        return at(min(running + 1, most))

    running = _little(rate, most, among)
    found = among(running)
    saturated = running >= most and rate > most / found.stay_s
    throughput = min(rate, most / found.stay_s)
    return _forecast(replace(found, running=running), load, used, throughput, 0.0, saturated)


@dataclass(frozen=True)
class LoadRound:
    """One copy with ``running`` requests and an empty queue. ``plain``: a step without prompts;
    ``last``: a request's last step with them."""

    running: float
    first: Parts
    further: Parts
    stay_s: float
    plain: Work
    last: Work


def _little(rate: float, most: float, among: Callable[[float], LoadRound]) -> float:
    """The number of running requests at a rate: the smallest r with r = rate x stay(r), at most
    ``most``."""
    low, high = 0.0, most
    if rate * among(high).stay_s >= high:
        return most
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        low, high = (middle, high) if rate * among(middle).stay_s > middle else (low, middle)
    return high


def one_round(steps: Steps, load: OfferedLoad, limits: Limits) -> LoadRound:
    """The stay of one request among ``load.concurrency`` running ones."""
    prompt, further = load.prompt_tokens, load.output_tokens - 1
    in_flight = min(float(steps.stages), load.concurrency)
    together = max(load.concurrency / steps.stages, 1.0)  # of one batch in the stages
    if load.rate_per_s is not None:
        own = max(1, math.ceil(prompt / limits.batched_tokens))
        last = Work(prompt / own, 1.0, prompt / 2, prompts=True)
        mixed, after = steps.step(last, in_flight), (together - 1) * own
        turn, sent = PlaceInLine(last, mixed.times(own), after, after * mixed.seconds), 1.0
    else:
        turn, sent = _median(steps, load, limits, in_flight), load.concurrency
    # Others' prompts while its own tokens come; what is left delays the next one's.
    during_s = turn.after_s * min(1.0, further / turn.after if turn.after else 1.0)
    during = min(turn.after, float(further))
    waited = turn.parts.plus(prefill_s=turn.after_s - during_s)
    first = steps.first(waited, turn.last, sent)
    plain = Work(together, together, prompt + load.output_tokens / 2)
    each = steps.step(plain, in_flight)
    if further:
        each = each.times((further - during) / further).plus(prefill_s=during_s / further)
    stay_s = first.seconds + further * each.seconds
    return LoadRound(load.concurrency, first, each, stay_s, plain, turn.last)


@dataclass(frozen=True)
class PlaceInLine:
    """A request's turn among others that were sent with it. ``last``: the step that ends its
    prompt; ``parts``: all until then; ``after``: steps with others' prompts that follow, which take
    ``after_s``."""

    last: Work
    parts: Parts
    after: float
    after_s: float


def _median(steps: Steps, load: OfferedLoad, limits: Limits, in_flight: float) -> PlaceInLine:
    """The median request's turn. The engine computes the first prompt alone; the others share the
    following steps in their order, as many tokens in each as the budget allows. A step starts when
    the first stage is free. The median of an even number of requests is between two."""
    prompt, budget = load.prompt_tokens, limits.batched_tokens
    own = max(1, math.ceil(prompt / budget))
    others = (load.concurrency - 1) * prompt  # tokens
    many = math.ceil(others / budget)

    def prompts(tokens: float) -> tuple[Work, Parts]:
        work = Work(tokens, max(tokens / prompt, 1.0), prompt / 2, prompts=True)
        return work, steps.step(work, in_flight)

    alone, ahead = prompts(prompt / own)
    # The last of the shared steps is smaller.
    full, least = prompts(min(budget, others)), prompts(max(others - (many - 1) * budget, 1.0))

    def turn(place: int) -> PlaceInLine:
        """Of the request that so many others are ahead of."""
        if not place:
            after_s = (many - 1) * full[1].seconds + least[1].seconds if many else 0.0
            return PlaceInLine(alone, ahead.times(own), many, after_s)
        number = min(math.ceil(place * prompt / budget), many)
        work, parts = least if number == many else full
        before_s = own * ahead.seconds + (number - 1) * full[1].seconds
        left = many - number
        after_s = (left - 1) * full[1].seconds + least[1].seconds if left else 0.0
        return PlaceInLine(work, parts.plus(prefill_s=before_s / steps.stages), left, after_s)

    place = (load.concurrency - 1) / 2
    low, high = turn(math.floor(place)), turn(math.ceil(place))
    share = place - math.floor(place)
    return PlaceInLine(
        high.last,
        low.parts.times(1 - share).plus(**vars(high.parts.times(share))),
        low.after + share * (high.after - low.after),
        low.after_s + share * (high.after_s - low.after_s),
    )


def _forecast(
    found: LoadRound,
    load: OfferedLoad,
    copies: float,
    throughput: float,
    waiting: float,
    saturated: bool,
) -> LoadPrediction:
    first = found.first.plus(queue_s=waiting / throughput)
    further = load.output_tokens - 1
    prompts = first.seconds - first.queue_s + further * found.further.prefill_s
    whole = replace(found.further.times(further), prefill_s=prompts, queue_s=first.queue_s)
    return LoadPrediction(
        prefill=_prediction("prefill", first),
        decode=_prediction("decode", found.further),
        request=_prediction("request", whole),
        running=found.running * copies,
        waiting=waiting * copies,
        requests_per_s=throughput * copies,
        output_tokens_per_s=throughput * copies * load.output_tokens,
        saturated=saturated,
    )


def _prediction(phase: str, parts: Parts) -> Prediction:
    return Prediction(phase, parts.seconds, parts, parts.bound)
