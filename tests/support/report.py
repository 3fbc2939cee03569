"""A story with something of everything, for tests of the report and its picture."""

from __future__ import annotations

import math
from dataclasses import replace

from orchestrator.performance.predict.layout import Parallelism
from orchestrator.performance.report.answer import answer
from orchestrator.performance.report.story import Phase, Story
from orchestrator.performance.results.bench import (
    Measured,
    Provenance,
    Run,
    RunState,
    Series,
    Window,
    Workload,
)
from orchestrator.performance.results.probe import (
    CollectiveRates,
    DeviceRates,
    FailedProbe,
    LinkRates,
    Probes,
    Spread,
    spread,
)

NODES = ("control", "compute0", "compute1")
#: A name that would break a page that does not escape it.
HOSTILE = "</script><script>document.body.dataset.broken = 1</script>"


def about(value: float) -> Spread:
    return spread([value * 0.95, value, value * 1.08])


def measured(number: int, concurrency: int | None, rate: float | None = None) -> Measured:
    load = concurrency or int(rate or 1)
    return Measured(
        workload=Workload(f"load {number}", 64, 32, 16, concurrency, rate),
        ttft_s=about(0.05 * load),
        ttft_p99_s=about(0.09 * load),
        tpot_s=about(0.02 * math.sqrt(load)),
        tpot_p99_s=about(0.03 * math.sqrt(load)),
        output_tokens_per_s=about(50 * math.sqrt(load)),
        requests_per_s=about(1.5 * math.sqrt(load)),
        goodput_per_s=about(1.2) if load < 4 else None,
        completed=48,
        failed=0,
        windows=tuple(
            Window(1000.0 + 10 * number + 3 * each, 1002.5 + 10 * number + 3 * each)
            for each in range(3)
        ),
    )


def series(node: str, name: str, unit: str, scale: float) -> Series:
    times = tuple(1000 + each / 2 for each in range(120))
    return Series(node, name, unit, times, tuple(scale * (1 + math.sin(x)) for x in times))


def probes() -> Probes:
    return Probes(
        profile="demo",
        profile_sha256="ab" * 32,
        image_id="cd" * 32,
        versions={"vllm": "0.30.0", "ray": "2.60.0"},
        time="2026-11-26T07:00:00Z",
        devices=tuple(
            DeviceRates(
                node, "cpu", "a processor", 1, about(9e9), {"bfloat16": about(1.1e11)},
                about(4e-6), 0.001, 24 << 30,
            )
            for node in NODES[1:]
        ),
        links=(
            LinkRates("control", "compute0", "cluster", ("cluster0", "cluster0"), (10**9, 10**9),
                      about(84e-6), about(117e6), {256: about(90e-6)}),
            LinkRates("compute0", "compute1", "cluster", ("cluster0", "cluster0"), (10**9, None),
                      about(84e-6), about(117e6), {256: about(90e-6)}),
            LinkRates("compute0", "compute1", "usb4", ("thunderbolt0",) * 2, (None, None),
                      about(65e-6), about(1.2e9), {}),
        ),
        collectives=(
            CollectiveRates(NODES[1:], "gloo", ("cluster0",) * 2, {256: about(3e-4)}, {}),
        ),
        failed=(FailedProbe("storage", "compute1", "no answer within 60 s"),),
    )  # fmt: skip


def story() -> Story:
    provenance = Provenance(
        profile="demo",
        profile_sha256="ab" * 32,
        profile_text="name: demo\n",
        image_id="cd" * 32,
        versions={"vllm": "0.30.0", "ray": "2.60.0"},
        model=HOSTILE,
        model_revision="",
        layout="tensor parallel over 2",
        probes="2026-11-26T07:00:00Z",
        machine="2 cores",
    )
    run = Run(
        id="20261126T070000Z",
        provenance=provenance,
        state=RunState.COMPLETE,
        measured=(
            *(measured(n, n) for n in (1, 2, 4, 8)),
            measured(9, None, 1),
            measured(10, None, 4),
        ),
        series=(
            series("compute0", "CPU", "% busy", 45),
            series("compute1", "CPU", "% busy", 30),
            series("compute0", "cluster0 sent", "MB/s", 2),
            series("compute1", "swap", "MB", 0),
        ),
        clocks_s={"compute0": 0.0004, "compute1": -0.0021},
    )  # fmt: skip
    parts = {"compute": 1e-3, "memory": 4e-3, "link latency": 3e-3, "link bandwidth": 2e-4,
             "host": 1.2e-2}  # fmt: skip
    decode = Phase(
        "load 1", "decode", 22.8e-3, parts, 22.8e-3 - sum(parts.values()), "host",
        "12 of 22.8 ms are the engine's own work between two steps.", ("memory",),
    )  # fmt: skip
    prefill = replace(decode, name="prefill", cause="compute")
    phases = (decode, prefill)
    return Story(
        run=run,
        verdict=(
            "The second node does not help: 44 tokens a second on two, 61 on one.",
            "Decoding waits for the host between two steps.",
        ),
        probes=probes(),
        phases=phases,
        targets_s={"time per output token": 0.05},
        compared=(
            "load 1, time per output token: 20 ms to 20.8 ms, 4% worse (9% better to 19% worse)",
        ),
        answer=answer(run, phases, None, (), Parallelism(2)),
        stages=(NODES[1:],),
    )
