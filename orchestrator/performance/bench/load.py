"""Workloads, their command for vLLM's benchmark client, and its results. Pure."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.core.errors import BadInput
from orchestrator.node.paths import FILES_ROOT, VENV, WITH_ENVIRONMENT
from orchestrator.performance import metrics
from orchestrator.performance.predict.load import OfferedLoad, limits
from orchestrator.performance.results.bench import Measured, Window, Workload
from orchestrator.performance.results.probe import spread
from orchestrator.profile import Profile
from orchestrator.profile.bench import MOST_CONCURRENCY, MOST_RATE, MOST_REQUESTS
from orchestrator.profile.existing import Attached

#: The context in tokens to measure with, if the profile allows more or sets no limit.
CONTEXT = 2048
#: The sweep's largest concurrency, if the profile allows more.
MOST = 32
#: The rate sweep's rates, as shares of the throughput at the largest concurrency.
RATE_SHARES = (0.25, 0.5, 0.75)
#: The most requests at once that are assumed for a workload with a rate.
AT_A_RATE = 256
#: Suffixes of the metrics that only grow.
COUNTED = ("_total", "_sum", "_count")
#: The client's result file on the control node.
RESULT = "/run/orchestrate/bench.json"
#: The file with the client's process id: the client does not end with the SSH connection. The API
#: key comes on standard input, so that neither a command line nor a file contains it.
PID = "/run/orchestrate/bench.pid"
WITH_KEY = f'echo $$ >{PID}; read -r OPENAI_API_KEY; export OPENAI_API_KEY; exec "$@"'
#: Ends the client, after a check that the process id was not reused by another program.
END = f"pid=$(cat {PID}) && grep -qa bench /proc/$pid/cmdline && kill $pid; rm -f {PID}"


def workloads(profile: Profile | Attached) -> list[Workload]:
    """The standard workloads within the profile's limits, and the profile's own.

    The profile's own replace standard ones of the same name. The rate sweep is not included: its
    rates depend on results (`rate_workloads`).
    """
    allowed = limits(profile)
    context = min(allowed.context or CONTEXT, CONTEXT)
    most = min(allowed.sequences, MOST)
    half, short = context // 2, max(8, context // 16)
    found = [Workload("single stream", half, half - short, 4, 1)]
    at_once = 2
    while at_once <= most:
        found.append(Workload(f"{at_once} at once", half, half - short, 2 * at_once, at_once))
        at_once *= 2
    few = max(1, min(2, most))
    found.append(Workload("prefill-heavy", context - 2 * short, short, 4 * few, few))
    found.append(Workload("decode-heavy", short, context - 2 * short, 4 * few, few))
    own = [
        Workload(name, load.prompt_tokens, load.output_tokens, load.requests,
                 load.concurrency, load.rate)
        for name, load in profile.bench.workloads.items()
    ]  # fmt: skip
    return list({each.name: each for each in (*found, *own)}.values())


def offered(workload: Workload) -> OfferedLoad:
    return OfferedLoad(
        workload.prompt_tokens,
        workload.output_tokens,
        workload.concurrency or AT_A_RATE,
        workload.rate,
    )


def targets(profile: Profile | Attached) -> dict[str, float]:
    """The profile's latency targets in milliseconds, by the client's names (ttft, tpot, e2el)."""
    given = profile.bench.targets.model_dump(exclude_none=True)
    return {name.removesuffix("_ms"): float(value) for name, value in given.items()}


def rate_workloads(done: Sequence[Measured]) -> list[Workload]:
    """The rate sweep: rates below the throughput at the largest measured concurrency."""
    swept = [each for each in done if each.workload.name.endswith("at once")]
    if not swept:
        return []
    best = max(swept, key=lambda each: each.requests_per_s.median)
    size = best.workload
    return [
        Workload(
            f"{share:.0%} of the maximum", size.prompt_tokens, size.output_tokens, size.requests,
            None, round(best.requests_per_s.median * share, 4),
        )
        for share in RATE_SHARES
    ]  # fmt: skip


def check(workload: Workload, profile: Profile | Attached) -> None:
    """Raises BadInput for a workload with a value out of range."""
    context = limits(profile).context
    wrong = {
        "requests": not 0 < workload.requests <= MOST_REQUESTS,
        "tokens": min(workload.prompt_tokens, workload.output_tokens) < 1,
        "concurrency": workload.concurrency is not None
        and not 0 < workload.concurrency <= MOST_CONCURRENCY,
        "rate": workload.rate is not None and not 0 < workload.rate <= MOST_RATE,
    }
    if bad := [name for name, is_bad in wrong.items() if is_bad]:
        raise BadInput(
            f"Invalid workload {workload.name!r}: {', '.join(bad)} out of range.",
            f"Allowed: 1 to {MOST_REQUESTS} requests, 1 or more tokens, up to {MOST_CONCURRENCY} "
            f"at once, up to {MOST_RATE:g} a second.",
        )
    if context and workload.prompt_tokens + workload.output_tokens > context:
        raise BadInput(
            f"Invalid workload {workload.name!r}: {workload.prompt_tokens} +"
            f" {workload.output_tokens} tokens, the profile's max-model-len is {context}",
            "Make it shorter, or serving.args.max-model-len longer.",
        )


def command(
    profile: Profile,
    workload: Workload,
    endpoint: str,
    *,
    repeats: int,
    seed: int,
    targets_ms: Mapping[str, float],
) -> list[str]:
    """The client's command line, run on the control node.

    The client is started once for all repeats, since its start takes longer than most workloads;
    the repeats are separated by the requests' order. Each workload has its own seed, so that no
    prompt is in the prefix cache.
    """
    model = profile.serving.model
    words = [f"{VENV}/bin/vllm", "bench", "serve", "--backend", "openai"]
    words += ["--base-url", endpoint, "--endpoint", "/v1/completions", "--model", model]
    words += ["--tokenizer", f"{FILES_ROOT}/models/{model}", "--dataset-name", "random"]
    words += ["--random-input-len", str(workload.prompt_tokens)]
    words += ["--random-output-len", str(workload.output_tokens), "--ignore-eos"]
    words += ["--temperature", "0", "--seed", str(seed)]
    words += ["--num-prompts", str(workload.requests * repeats)]
    words += ["--num-warmups", str(min(2, workload.concurrency or 2))]
    words += ["--request-rate", str(workload.rate) if workload.rate is not None else "inf"]
    if workload.concurrency is not None:
        words += ["--max-concurrency", str(workload.concurrency)]
    if targets_ms:
        words += ["--goodput", *(f"{name}:{value:g}" for name, value in targets_ms.items())]
    words += ["--percentile-metrics", "ttft,tpot,itl,e2el", "--disable-tqdm"]
    words += ["--save-result", "--save-detailed"]
    words += ["--result-dir", RESULT.rpartition("/")[0]]
    words += ["--result-filename", RESULT.rpartition("/")[2]]
    offline = ["env", "HF_HUB_OFFLINE=1", "VLLM_NO_USAGE_STATS=1", "OMP_NUM_THREADS=1"]
    return ["sh", "-c", WITH_KEY, "sh", *offline, WITH_ENVIRONMENT, *words]


def measured(
    text: str,
    workload: Workload,
    repeats: int,
    clock: float,
    engine: Mapping[str, float],
    targets_ms: Mapping[str, float],
) -> Measured:
    """Parse the client's result, and split it into repeats by the order of the requests.

    ``clock``: the control node's wall clock minus its monotonic clock, in seconds. Raises
    ValueError if the text is not such a result.
    """
    found = json.loads(text)
    requests = [
        (start, ttft, sum(gaps), len(gaps) + 1)
        for start, ttft, gaps, error in zip(
            found["start_times"], found["ttfts"], found["itls"], found["errors"], strict=True
        )
        if not error
    ]
    if len(requests) < repeats:
        raise ValueError(f"{len(requests)} of {len(found['errors'])} requests were answered")
    requests.sort()
    size = len(requests) // repeats
    batches = [requests[size * number : size * (number + 1)] for number in range(repeats)]
    ends = [max(start + ttft + rest for start, ttft, rest, _ in each) for each in batches]
    begins = [each[0][0] for each in batches]
    seconds = [max(end - begin, 1e-9) for begin, end in zip(begins, ends, strict=True)]
    tokens = [sum(count for *_, count in each) for each in batches]
    tpot = [[rest / (count - 1) for *_, rest, count in each if count > 1] for each in batches]
    ttft = [[first for _, first, _, _ in each] for each in batches]
    good = [
        sum(_good(first, rest, count, targets_ms) for _, first, rest, count in each)
        for each in batches
    ]
    rates = list(zip(tokens, good, seconds, batches, strict=True))
    return Measured(
        workload=workload,
        ttft_s=spread([statistics.median(each) for each in ttft]),
        ttft_p99_s=spread([_p99(each) for each in ttft]),
        tpot_s=spread([statistics.median(each) if each else 0.0 for each in tpot]),
        tpot_p99_s=spread([_p99(each) if each else 0.0 for each in tpot]),
        output_tokens_per_s=spread([count / took for count, _, took, _ in rates]),
        requests_per_s=spread([len(each) / took for _, _, took, each in rates]),
        goodput_per_s=spread([fit / took for _, fit, took, _ in rates]) if targets_ms else None,
        completed=len(requests),
        failed=len(found["errors"]) - len(requests),
        windows=tuple(
            Window(begin + clock, end + clock) for begin, end in zip(begins, ends, strict=True)
        ),
        engine=dict(engine),
    )


def _good(first: float, rest: float, count: int, targets_ms: Mapping[str, float]) -> bool:
    seen = {"ttft": first, "tpot": rest / (count - 1) if count > 1 else 0.0, "e2el": first + rest}
    return all(seen[name] * 1e3 <= most for name, most in targets_ms.items())


def _p99(values: Sequence[float]) -> float:
    """The smallest value that at least 99 % of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, -(-99 * len(ordered) // 100) - 1)]


def counters(page: str) -> dict[str, float]:
    """vLLM's counters and histogram sums, added over engines: name without prefix -> value."""
    found = metrics.values(page)
    return {name: each for name, each in found.items() if name.endswith(COUNTED)}


def differences(before: Mapping[str, float], after: Mapping[str, Any]) -> dict[str, float]:
    """The counters that grew, and by how much."""
    found = {name: value - before.get(name, 0.0) for name, value in after.items()}
    return {name: value for name, value in found.items() if value > 0}


def engine_times(engine: Mapping[str, float]) -> dict[str, float]:
    """Mean seconds per request in "queue", "prefill" and "decode", as far as vLLM counted them."""
    found = {}
    for phase in ("queue", "prefill", "decode"):
        name = f"request_{phase}_time_seconds"
        if count := engine.get(f"{name}_count"):
            found[phase] = engine.get(f"{name}_sum", 0.0) / count
    return found
