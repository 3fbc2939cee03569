"""Small loads in turns: timed requests to an engine, standard library only.

Imported here, and sent to nodes. A machine's speed may drift by a factor of two within seconds, so
every load is repeated in turns with all others, and the spread over rounds is kept. The first round
warms up (kernels are compiled at first use) and is thrown away. In a turn, a brief load runs a few
times in a row, and the first does not count: after another load an engine is some 10 ms slower to
its first tokens (vLLM 0.26 on an H200: 32, 22, 20, 20 ms).
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")
#: Rounds that count: at least and at most.
FEWEST, MOST = 3, 12
#: The share of the time that the first round may take; a request's longest wait, in seconds.
WARM, WAIT = 0.4, 120.0
#: So many times in a row, and no further time after so many seconds.
IN_A_ROW, BRIEF = 6, 1.0
#: Requests that a client sends one after the other, where there are several clients.
FOLLOWING = 2
#: Fewest gaps between tokens from which a step's time is taken.
GAPS = 8
#: What makes an event of the stream one with tokens, and their count at its end.
TOKENS = re.compile(rb'"choices":\s*\[\s*\{')
USAGE = re.compile(rb'"completion_tokens":\s*(\d+)')
#: vLLM's metric that says how its cache is set up, one of each engine, and its labels.
CACHE = re.compile(r"^vllm:cache_config_info\{(.*)\} ", re.MULTILINE)
LABEL = re.compile(r'(?:^|,)(\w+)="(\d+)"')

#: Prompt tokens, output tokens, requests at once.
Load = Sequence[int]


class Unanswered(Exception):
    """The engine did not answer a request as asked."""


@dataclass
class TimedRequest:
    """A request: when it began, when its events came, how many tokens they held."""

    start: float
    arrivals: list[float] = field(default_factory=list)
    tokens: int = 0


#: Runs one load to its end. Raises Unanswered.
Wave = Callable[[Load], Awaitable[Sequence[TimedRequest]]]
Say = Callable[[str], None]


@dataclass
class RepeatedLoad:
    """A load and its figures, one of each round."""

    load: Load
    rounds: list[dict[str, float]] = field(default_factory=list)
    #: Seconds that it took the last time, and until the first tokens.
    took: float = 0.0
    first: float = 0.0


def figures(requests: Sequence[TimedRequest]) -> dict[str, float]:
    """Medians over requests of one load; ``step_s``: between tokens while all of them decode."""
    tokens = [max(each.tokens, len(each.arrivals)) for each in requests]
    firsts, lasts = ([each.arrivals[end] for each in requests] for end in (0, -1))
    further = [
        (last - first) / (count - 1)
        for first, last, count in zip(firsts, lasts, tokens, strict=True)
        if count > 1
    ]
    begin, end = max(firsts), min(lasts)
    found = {
        "ttft_s": statistics.median(each.arrivals[0] - each.start for each in requests),
        "tpot_s": statistics.median(further) if further else 0.0,
        "output_tokens_per_s": sum(tokens)
        / max(1e-9, max(lasts) - min(each.start for each in requests)),
    }
    inside = ([at for at in each.arrivals if begin <= at <= end] for each in requests)
    together = [each for each in inside if len(each) > 1]
    gaps = sum(len(each) - 1 for each in together)
    if gaps >= GAPS:
        # Events may hold several tokens.
        share = sum(len(each.arrivals) for each in requests) / sum(tokens)
        found["step_s"] = sum(each[-1] - each[0] for each in together) / gaps * share
    return found


async def measured(
    loads: Sequence[Load], wave: Wave, seconds: float, say: Say
) -> tuple[list[RepeatedLoad], list[str]]:
    """All loads in turns, as many rounds as fit; and notes on what was left out.

    The first loads matter most. Raises Unanswered where not even the first one was answered.
    """
    begun, notes = time.monotonic(), []
    cells: list[RepeatedLoad] = []
    for load in loads:
        left = seconds - (time.monotonic() - begun)
        if cells and (left < (1 - WARM) * seconds or _least(load, cells) * (1 + FEWEST) > left):
            notes.append(f"no time for {_told(load)}")
            continue
        say(f"warms up: {_told(load)}")
        try:
            if not cells:  # what takes long at the very first request says nothing of the others
                await _timed(load, wave)
            found, took = await _timed(load, wave)
            cells.append(RepeatedLoad(load, took=took, first=found["ttft_s"]))
        except Unanswered as error:
            if not cells:
                raise
            notes.append(f"{_told(load)}: not answered: {error}")
    for number in range(MOST):
        left = seconds - (time.monotonic() - begun)
        _fit(cells, left, FEWEST - number, notes)
        if number >= FEWEST and sum(each.took for each in cells) > left:
            break
        say(f"round {number + 1}, {left:.0f} s left")
        for cell in cells:
            found, cell.took = await _timed(cell.load, wave)
            cell.rounds.append(found)
    return cells, notes


def _least(load: Load, cells: Sequence[RepeatedLoad]) -> float:
    """Seconds that a load takes at least: its prompts are no faster than the fastest so far."""
    fastest = min(each.first / (each.load[0] * each.load[2]) for each in cells)
    return load[0] * load[2] * following(load) * fastest


def _fit(cells: list[RepeatedLoad], left: float, rounds: int, notes: list[str]) -> None:
    """Leave out the longest loads until the rounds that are needed fit; never the first load."""
    while rounds > 0 and len(cells) > 1 and rounds * sum(each.took for each in cells) > left:
        longest = max(cells[1:], key=lambda each: each.took)
        cells.remove(longest)
        notes.append(f"no time for {_told(longest.load)}: {longest.took:.1f} s each time")


def _told(load: Load) -> str:
    prompt, _, many = load
    return f"{many} x {prompt} tokens"


async def _timed(load: Load, wave: Wave) -> tuple[dict[str, float], float]:
    """A load's figures in one turn, and how long the turn took."""
    begun = time.monotonic()
    seen: list[dict[str, float]] = []
    while not seen or (len(seen) < IN_A_ROW and time.monotonic() - begun < BRIEF):
        try:
            seen.append(figures(await asyncio.wait_for(wave(load), WAIT * max(1, load[2] ** 0.5))))
        except asyncio.TimeoutError:  # noqa: UP041 (another class in Python 3.10)
            text = f"{_told(load)}: no end after {time.monotonic() - begun:.0f} s"
            raise Unanswered(text) from None
    counted = seen[1:] or seen
    found = {
        name: statistics.median(each[name] for each in counted if name in each)
        for name in counted[0]
    }
    return found, time.monotonic() - begun


def following(load: Load) -> int:
    """How many requests each of a load's clients sends."""
    return FOLLOWING if load[2] > 1 else 1


async def kept_up(
    load: Load, ask: Callable[[], T], stream: Callable[[T], Awaitable[TimedRequest]]
) -> list[TimedRequest]:
    """A load whose clients send their next request when the last one is answered: each one's last.
    ``ask``: makes a request, before any is sent."""
    asked = [[ask() for _ in range(following(load))] for _ in range(load[2])]

    async def client(own: Sequence[T]) -> TimedRequest:
        *before, last = own
        for each in before:
            await stream(each)
        return await stream(last)

    tasks = [asyncio.ensure_future(client(each)) for each in asked]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def completion(model: str, prompt: list[int] | str, tokens: int) -> dict[str, Any]:
    """The request of a streamed completion that is as long as it is meant to be."""
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@dataclass(frozen=True)
class EngineServer:
    """An engine's own address. ``known``: the range of tokens to draw prompts from."""

    address: str
    port: int
    model: str
    known: tuple[int, int]
    key: str = ""

    async def wave(self, load: Load) -> list[TimedRequest]:
        """A load's requests, each with a prompt that no cache has."""

        def ask() -> bytes:
            tokens = [random.randrange(*self.known) for _ in range(load[0])]
            return json.dumps(completion(self.model, tokens, load[1])).encode()

        return await kept_up(load, ask, self.stream)

    async def stream(self, asked: bytes) -> TimedRequest:
        """One request. Raises Unanswered."""
        request = TimedRequest(time.perf_counter())
        try:
            reader, writer = await asyncio.open_connection(self.address, self.port, limit=1 << 22)
            try:
                writer.write(self.head("POST", "/v1/completions", len(asked)) + asked)
                status = await reader.readline()
                if status.split()[1:2] != [b"200"]:
                    text = (await reader.read(1 << 16)).decode(errors="replace")
                    raise Unanswered(f"{status.decode(errors='replace').strip()}: {text[-300:]}")
                while line := await reader.readline():
                    _event(line, request)
            finally:
                writer.close()
        except (OSError, ValueError) as error:
            raise Unanswered(f"the connection: {error}") from None
        if not request.arrivals:
            raise Unanswered("an answer without tokens")
        return request

    def head(self, verb: str, path: str, length: int) -> bytes:
        lines = [f"{verb} {path} HTTP/1.1", f"Host: {self.address}", "Connection: close"]
        lines += ["Content-Type: application/json", f"Content-Length: {length}"]
        lines += [f"Authorization: Bearer {self.key}"] if self.key else []
        return "\r\n".join([*lines, "", ""]).encode()

    async def page(self, path: str) -> str:
        """A page of the server; empty where it does not answer."""
        try:
            reader, writer = await asyncio.open_connection(self.address, self.port)
            try:
                writer.write(self.head("GET", path, 0))
                text = await asyncio.wait_for(reader.read(8 << 20), 10)
                while more := await asyncio.wait_for(reader.read(1 << 20), 10):
                    text += more
            finally:
                writer.close()
        except (OSError, asyncio.TimeoutError):  # noqa: UP041
            return ""
        found = text.decode(errors="replace")
        return found.partition("\r\n\r\n")[2] if " 200 " in found[:40] else ""


def _event(line: bytes, request: TimedRequest) -> None:
    if not line.startswith(b"data:"):
        return
    if TOKENS.search(line):
        request.arrivals.append(time.perf_counter())
    elif b'"error"' in line:
        raise Unanswered(f"the engine said: {line[5:300].decode(errors='replace').strip()}")
    if found := USAGE.search(line):
        request.tokens = int(found[1])


def room(page: str) -> int | None:
    """Tokens that the KV cache has room for, by vLLM's metrics; None where they do not say."""
    tokens = 0
    for labels in CACHE.findall(page):
        said = {name: int(value) for name, value in LABEL.findall(labels)}
        # Blocks times size is too much where layers of several kinds share the blocks.
        blocks = said.get("num_gpu_blocks", 0) * said.get("block_size", 0)
        tokens += said.get("kv_cache_size_tokens") or blocks
    return tokens or None
