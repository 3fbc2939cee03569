"""A load for an endpoint, from this computer: streamed completions of random tokens, timed.

vLLM's own client would have to be where vLLM is, and takes longer to start than a brief load lasts.
This one needs an endpoint alone. It hands out what vLLM's writes: start_times, ttfts, itls, errors
(performance.bench.load.measured).
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from orchestrator.core.errors import UserError
from orchestrator.core.visible import one_line
from orchestrator.performance.bench.load import counters, differences, measured
from orchestrator.performance.probe.node_rounds import completion
from orchestrator.performance.results.bench import Asked, Measured, Workload

#: A text of every common character: its tokens are ones that the model knows.
ALPHABET = (
    "The quick brown fox jumps over the lazy dog 0123456789 times, and nobody asked it why. "
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ abcdefghijklmnopqrstuvwxyz: every letter, once more; (a + b) * c."
)
#: Fewest tokens to draw from: with less, the endpoint's tokens are not understood.
FEWEST = 8
#: Tokens that nearly every model has, and none of which is a mark: those come first, or last.
USUAL = range(1000, 20000)
#: Bytes of one event of a stream, and of an answer: what vLLM sends of a token is a hundredth.
MOST_LINE, MOST_ANSWER = 1 << 20, 64 << 20
#: Characters of a refusal that are shown.
SHOWN = 200


@dataclass
class Timed:
    """Requests as they ended, in the order in which they began."""

    start_times: list[float] = field(default_factory=list)
    ttfts: list[float] = field(default_factory=list)
    itls: list[list[float]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    #: Tokens of each prompt, as the endpoint counted them; 0 where it did not.
    prompts: list[int] = field(default_factory=list)

    def text(self) -> str:
        """As vLLM's client writes it."""
        return json.dumps(
            {
                "start_times": self.start_times,
                "ttfts": self.ttfts,
                "itls": self.itls,
                "errors": self.errors,
            }
        )

    def add(self, start: float, seen: Streamed) -> None:
        self.start_times.append(start)
        self.ttfts.append(seen.arrivals[0] - start if seen.arrivals else 0.0)
        self.itls.append(seen.gaps())
        self.errors.append(seen.error)
        self.prompts.append(seen.prompt)


@dataclass
class Streamed:
    """One request: when its events came, and what the endpoint counted at its end."""

    arrivals: list[float] = field(default_factory=list)
    tokens: int = 0
    prompt: int = 0
    error: str = ""

    def gaps(self) -> list[float]:
        """The time before each further token. An event may hold several tokens: the endpoint's
        count is right, so the time is spread over it."""
        if len(self.arrivals) < 1:
            return []
        if self.tokens and self.tokens != len(self.arrivals):
            rest = self.arrivals[-1] - self.arrivals[0]
            return [rest / (self.tokens - 1)] * (self.tokens - 1) if self.tokens > 1 else []
        return [b - a for a, b in zip(self.arrivals, self.arrivals[1:], strict=False)]


def vocabulary(client: httpx.Client, model: str) -> list[int]:
    """Tokens that the model knows, to make prompts of; none where that cannot be found out.

    Without /tokenize (a router in front), the usual ones are tried: vLLM refuses unknown tokens.
    """
    told = _posted(client, "/tokenize", {"prompt": ALPHABET, "add_special_tokens": False}, model)
    listed = told.get("tokens")
    known = (
        {each for each in listed if isinstance(each, int)} if isinstance(listed, list) else set()
    )
    if len(known) >= FEWEST:
        return sorted(known)
    tried: dict[str, Any] = {"prompt": [USUAL.start, USUAL.stop - 1], "max_tokens": 1}
    counted = _posted(client, "/v1/completions", tried, model).get("usage")
    understood = isinstance(counted, dict) and counted.get("prompt_tokens") == len(tried["prompt"])
    return list(USUAL) if understood else []


def _posted(client: httpx.Client, path: str, body: dict[str, Any], model: str) -> dict[str, Any]:
    """The answer to a request; empty where there is none."""
    try:
        response = client.post(path, json=body | {"model": model})
        document = response.json() if response.status_code == httpx.codes.OK else {}
    except (httpx.HTTPError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def prompt(known: Sequence[int], tokens: int, chance: random.Random) -> list[int] | str:
    """A prompt that no cache has; words where tokens are not known, about as many."""
    if known:
        return chance.choices(known, k=tokens)
    return " ".join(chance.choices(ALPHABET.split(), k=tokens))


def loaded(
    client: httpx.AsyncClient,
    page: Callable[[], str],
    model: str,
    workload: Workload,
    known: Sequence[int],
    asked: Asked,
) -> tuple[Measured, Timed]:
    """Run a workload; its figures, and its requests. ``page``: reads the engine's metrics; "" where
    there are none. Raises UserError without figures."""
    before = counters(page())
    clock = time.time() - time.perf_counter()
    timed = asyncio.run(_timed(client, model, workload, known, asked.repeats))
    after = counters(page())
    try:
        engine = differences(before, after) if before else {}
        found = measured(timed.text(), workload, asked.repeats, clock, engine, asked.targets_ms)
    except ValueError as error:
        said = next(filter(None, timed.errors), "no error was told")
        raise UserError(
            f"the workload {workload.name!r} gave no figures: {error}: {said}",
            "The endpoint refused or aborted them. Run: orchestrate verify; orchestrate status",
        ) from None
    return found, timed


async def _timed(
    client: httpx.AsyncClient, model: str, workload: Workload, known: Sequence[int], repeats: int
) -> Timed:
    """Run a workload to its end. Its first requests warm up, and are not timed."""
    chance = random.Random()  # no prompt is known from a load before
    timed = Timed()
    many = workload.concurrency or 2
    free = asyncio.Semaphore(many if workload.rate is None else workload.requests * repeats)

    def body() -> dict[str, Any]:
        words = prompt(known, workload.prompt_tokens, chance)
        return completion(model, words, workload.output_tokens)

    async def one() -> None:
        async with free:
            asked = body()
            start = time.perf_counter()
            timed.add(start, await stream(client, asked))

    async with client:
        await asyncio.gather(*(stream(client, body()) for _ in range(min(2, many))))
        async with asyncio.TaskGroup() as group:
            for _ in range(workload.requests * repeats):
                group.create_task(one())
                if workload.rate is not None:
                    await asyncio.sleep(chance.expovariate(workload.rate))
    return timed


async def stream(client: httpx.AsyncClient, asked: dict[str, Any]) -> Streamed:
    """One request. What goes wrong is in its ``error``."""
    seen = Streamed()
    try:
        async with client.stream("POST", "/v1/completions", json=asked) as response:
            if response.status_code != httpx.codes.OK:
                text = (await response.aread())[:SHOWN].decode(errors="replace")
                seen.error = f"HTTP {response.status_code}: {one_line(text)}"
                return seen
            async for line in _lines(response):
                _event(line, seen)
    except httpx.HTTPError as error:
        seen.error = one_line(str(error) or type(error).__name__)
    except ValueError as error:
        seen.error = str(error)
    if not seen.error and not seen.arrivals:
        seen.error = "an answer without tokens"
    return seen


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """The stream's lines, each and all of them limited."""
    rest, size = b"", 0
    async for chunk in response.aiter_bytes():
        size += len(chunk)
        rest += chunk
        *whole, rest = rest.split(b"\n")
        if len(rest) > MOST_LINE or size > MOST_ANSWER:
            raise ValueError("the answer's stream is larger than any answer")
        for line in whole:
            yield line.strip()


def _event(line: bytes, seen: Streamed) -> None:
    """An event of the stream: one or more tokens, or the count of all."""
    now = time.perf_counter()
    if not line.startswith(b"data:") or line.endswith(b"[DONE]"):
        return
    event = json.loads(line[5:])
    if not isinstance(event, dict):
        raise ValueError("an event of the stream is no object")
    if error := event.get("error"):
        raise ValueError(f"the endpoint said: {one_line(str(error))[:SHOWN]}")
    if event.get("choices"):
        seen.arrivals.append(now)
    usage = event.get("usage")
    if isinstance(usage, dict):
        seen.tokens = _whole(usage.get("completion_tokens"))
        seen.prompt = _whole(usage.get("prompt_tokens"))


def _whole(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value < 1 << 24 else 0
