"""Forecasts against real cards: tests/data/measured/h200.json, some loads for the engine, others
held out. `PYTHONPATH=tests:. python -m support.h200` prints the table of performance-model.md."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from orchestrator.performance.predict.engine import assumed
from orchestrator.performance.predict.layout import Parallelism
from orchestrator.performance.predict.links import LinkRate, curve
from orchestrator.performance.predict.load import Limits, OfferedLoad
from orchestrator.performance.predict.outlook import Figure, Known, outlook
from orchestrator.performance.predict.rates import Rates, of_devices
from orchestrator.performance.results.engine import EngineCell, EngineRates, EngineWeights
from orchestrator.performance.results.probe import DeviceRates, Spread
from support.predict import MISTRAL, exactly, shape_of

FILE = Path(__file__).parents[1] / "data/measured/h200.json"
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "torch_dtype": "bfloat16",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
CONFIGS = {"llama-8b": LLAMA, "mistral-22b": MISTRAL}
LIMITS = Limits(sequences=64, batched_tokens=2048, context=4096)
#: What TCP gave between the two without a throttle, by the all-reduces of 8 KiB and 24 MiB.
FREE = LinkRate(25e-6, 2.08e9)
#: What tc's bits carry: the rest is headers.
CARRIED = 0.94
#: The machines whose devices were probed.
PROBED = ("A", "B")


@dataclass(frozen=True)
class Run:
    """One load on one machine."""

    machine: str
    model: str
    layers: int
    layout: str
    link_mbit: int | None
    load: OfferedLoad
    ttft_s: float
    tpot_s: float

    @property
    def place(self) -> tuple[str, str, int, str, int | None]:
        return self.machine, self.model, self.layers, self.layout, self.link_mbit

    @property
    def parallelism(self) -> Parallelism:
        return Parallelism(2 if self.layout == "tensor 2" else 1)

    @property
    def name(self) -> str:
        link = f" {self.link_mbit} Mb/s" if self.link_mbit else ""
        many = f"{self.load.prompt_tokens} tokens, {self.load.concurrency:g} at once"
        return f"{self.machine} {self.model} {self.layers} layers {self.layout}{link}: {many}"


@dataclass(frozen=True)
class Phase:
    """A forecast of one phase beside its measured time."""

    name: str
    figure: Figure
    measured_s: float

    @property
    def off(self) -> float:
        return self.figure.value / self.measured_s - 1

    @property
    def inside(self) -> bool:
        return self.figure.low <= self.measured_s <= self.figure.high


@cache
def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text())
    return found


def runs() -> list[Run]:
    found = []
    for row in document()["measured"]:
        machine, model, layers, layout, link_mbit, prompt, output, many, ttft, tpot = row
        load = OfferedLoad(prompt, output, many)
        found.append(Run(machine, model, layers, layout, link_mbit, load, ttft / 1e3, tpot / 1e3))
    return found


def rates_of(run: Run) -> Rates:
    """The probes of the run's machine, else of A."""
    found = document()["devices"][run.machine if run.machine in PROBED else PROBED[0]]
    device = DeviceRates(
        node=run.machine,
        device="cuda",
        name=found["name"],
        threads=32,
        memory_bytes_per_s=exactly(found["memory_bytes_per_s"]),
        matrix_flops_per_s={k: exactly(v) for k, v in found["matrix_flops_per_s"].items()},
        operation_s=exactly(found["operation_s"]),
        clock_skew_s=0.0,
        memory_total_bytes=found["memory_total_bytes"],
        product_bytes_per_s={int(k): exactly(v) for k, v in found["product_bytes_per_s"].items()},
    )
    rates = replace(of_devices([device]), engine=assumed(synchronous=False, eager=True))
    if run.parallelism.one:
        return rates
    link = FREE
    if run.link_mbit:
        link = LinkRate(FREE.latency_s, run.link_mbit * 1e6 / 8 * CARRIED)
    times = {int(size): exactly(seconds) for size, seconds in document()["all_reduce_s"].items()}
    return replace(rates, tensor_nodes=2, link=link, all_reduce=curve(2, times, FREE))


def known_of(run: Run, cells: list[Run], *, formulas: bool = True) -> Known:
    """What is known of a run's place, with the engine as it was in the cells."""
    config = CONFIGS[run.model] | {"num_hidden_layers": run.layers}
    known = Known(run.parallelism, LIMITS, shape_of(config), rates_of(run))
    if not formulas:
        known = replace(known, shape=None, rates=None)
    if not cells:
        return known
    first = cells[0]
    engine = EngineRates(
        key="",
        time="",
        model=first.model,
        nodes=("left", "right")[: first.parallelism.ranks],
        devices=(),
        tensor=first.parallelism.tensor,
        pipeline=1,
        data=1,
        args={},
        versions={},
        weights=EngineWeights.DUMMY,
        cells=tuple(_cell(each) for each in cells),
    )
    then = rates_of(first) if first.place != run.place else None
    return replace(known, engine=engine, then=then)


def _cell(run: Run) -> EngineCell:
    once = [Spread(value, value, value, 1) for value in (run.ttft_s, run.tpot_s, 1.0)]
    load = run.load
    return EngineCell(load.prompt_tokens, load.output_tokens, int(load.concurrency), *once)


def phases(known: Known, run: Run) -> Iterator[Phase]:
    found = outlook(known, run.load)
    yield Phase(f"{run.name}: first token", found.ttft_s, run.ttft_s)
    yield Phase(f"{run.name}: further token", found.tpot_s, run.tpot_s)


def formulas_alone() -> Iterator[Phase]:
    """All of the machines whose devices were probed."""
    for run in runs():
        if run.machine in PROBED:
            yield from phases(known_of(run, []), run)


def another_load(*, formulas: bool = True) -> Iterator[Phase]:
    """Eight at once from one and thirty-two; and a second measurement of one from the first."""
    places: dict[tuple[object, ...], list[Run]] = {}
    for run in runs():
        places.setdefault(run.place, []).append(run)
    for found in places.values():
        cells: dict[OfferedLoad, Run] = {}
        for run in found:
            if run.load.concurrency != 8:
                cells.setdefault(run.load, run)
        for run in found:
            if run not in cells.values():
                known = known_of(run, list(cells.values()), formulas=formulas)
                yield from phases(known, run)


def another_link() -> Iterator[Phase]:
    """Machine B at 10 and 1 Gb/s, from its engine without a throttle."""
    ours = [run for run in runs() if run.machine == "B"]
    free = [run for run in ours if run.link_mbit is None]
    for run in ours:
        if run.link_mbit:
            yield from phases(known_of(run, free), run)


def another_layout() -> Iterator[Phase]:
    """Tensor 2 over TCP from one card: C by its own, B by A's."""
    for here, there in (("A", "B"), ("C", "C")):
        whole = [run for run in runs() if run.model == "mistral-22b" and run.layers == 56]
        one = [run for run in whole if run.machine == here and run.layout == "one"]
        for run in whole:
            if run.machine == there and run.layout == "tensor 2" and not run.link_mbit:
                yield from phases(known_of(run, one), run)


KINDS = {
    "formulas alone": formulas_alone,
    "another number of requests": another_load,
    "the same, without formulas": lambda: another_load(formulas=False),
    "another link": another_link,
    "another layout": another_layout,
}


def off(found: list[Phase]) -> tuple[float, float, float]:
    """Median, ninth tenth and largest of the errors."""
    errors = sorted(abs(each.off) for each in found)
    return statistics.median(errors), errors[int(0.9 * (len(errors) - 1))], errors[-1]


if __name__ == "__main__":
    for name, of in KINDS.items():
        found = list(of())
        median, ninth, worst = off(found)
        inside = sum(each.inside for each in found)
        print(f"| {name} | {len(found)} | {median:.0%} | {ninth:.0%} | {worst:.0%} | {inside} |")
        for each in found:
            if abs(each.off) > 0.25:
                sides = f"{each.figure.value * 1e3:.3g} {each.measured_s * 1e3:.3g}"
                print(f'    "{each.name}", # {each.off:+.0%} {sides} {each.inside}')
