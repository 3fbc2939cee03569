#!/usr/bin/env python3
"""What sampling costs a server: the same load with and without the product's sampler, in turns.

    benchmarks/sampling_cost.py URL OUT SECONDS

URL serves a model called `m`, by tokens, on this machine. Standard library, and this checkout.
OUT.json gets every round, and the ratio of the medians with its interval.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from orchestrator.performance.bench.sample import SAMPLER  # the checkout's own

URL, OUT, SECONDS = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
#: Requests at once and of a round, tokens of a prompt and an answer; samples to draw for a ratio.
AT_ONCE, REQUESTS, PROMPT, ANSWER, DRAWS = 8, 16, 64, 96, 4000


def requests(first: int) -> None:
    """Every AT_ONCE'th of a round's."""
    for number in range(first, REQUESTS, AT_ONCE):
        request(number)


def request(number: int) -> None:
    tokens = [5 + (number * 7 + k) % 200 for k in range(PROMPT)]
    body = {"model": "m", "prompt": tokens, "max_tokens": ANSWER, "ignore_eos": True}
    head = {"Content-Type": "application/json"}
    asked = urllib.request.Request(f"{URL}/v1/completions", json.dumps(body).encode(), head)
    urllib.request.urlopen(asked, timeout=60).read()


def tokens_per_s() -> float:
    """Of one round of the load."""
    begun = time.perf_counter()
    threads = [threading.Thread(target=requests, args=(first,)) for first in range(AT_ONCE)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return REQUESTS * ANSWER / (time.perf_counter() - begun)


def sampled() -> float:
    argv = [sys.executable, "-I", "-S", "-c", SAMPLER, f"{URL}/metrics"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as sampler:
        assert sampler.stdin and sampler.stdout
        sampler.stdout.readline()  # it samples
        found = tokens_per_s()
        sampler.stdin.close()
        sampler.stdout.read()
    return found


def ratio(without: list[float], having: list[float]) -> dict[str, float]:
    """Of medians, with 95 % of what drawing rounds anew gives."""
    chance = random.Random(0)
    drawn = sorted(
        statistics.median(chance.choices(having, k=len(having)))
        / statistics.median(chance.choices(without, k=len(without)))
        for _ in range(DRAWS)
    )
    whole = statistics.median(having) / statistics.median(without)
    return {"ratio": whole, "low": drawn[DRAWS // 40], "high": drawn[-DRAWS // 40]}


def main() -> None:
    end = time.monotonic() + SECONDS
    tokens_per_s()
    found: dict[str, list[float]] = {"without": [], "with": []}
    while time.monotonic() < end:
        kinds = [("without", tokens_per_s), ("with", sampled)]
        random.shuffle(kinds)
        for name, measure in kinds:
            found[name].append(measure())
        told = {"load": [PROMPT, ANSWER, AT_ONCE], "tokens_per_s": found}
        OUT.write_text(json.dumps(told | ratio(found["without"], found["with"])))
    print(json.dumps(ratio(found["without"], found["with"]) | {"rounds": len(found["with"])}))


if __name__ == "__main__":
    main()
