"""The report's three sentences: each with figures and intervals, or with what is not known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.predict import MISTRAL, collective, device, exactly, link, probes
from support.report import measured, story

from orchestrator.performance.bench.load import offered
from orchestrator.performance.predict.forecast import Question, rank_all
from orchestrator.performance.predict.layout import Parallelism
from orchestrator.performance.predict.load import Limits
from orchestrator.performance.predict.rank import Ranked
from orchestrator.performance.predict.rates import Machines
from orchestrator.performance.report.answer import answer
from orchestrator.performance.report.story import FirstScreen, Phase
from orchestrator.performance.results.bench import Run
from orchestrator.performance.results.probe import Spread

RUN = story().run
DECODE = story().phases[0]
TWO = Parallelism(2)


def of(
    *phases: Phase,
    run: Run = RUN,
    alone: Run | None = None,
    ranked: tuple[Ranked, ...] = (),
    **more: Any,
) -> tuple[str, str, str]:
    found = answer(run, phases, alone, ranked, more.pop("layout", TWO), **more)
    return tuple(each.says for each in found.sentences)  # type: ignore[return-value]


def whole(*phases: Phase, **more: Any) -> FirstScreen:
    return answer(RUN, phases, more.get("alone"), more.get("ranked", ()), TWO)


def at(factor: float, repeats: int = 3) -> Run:
    """The same loads on one node, so many times as fast."""

    def times(spread: Spread, by: float) -> Spread:
        return Spread(spread.median * by, spread.low * by, spread.high * by, repeats)

    loads = tuple(
        replace(each, output_tokens_per_s=times(each.output_tokens_per_s, factor),
                tpot_s=times(each.tpot_s, 1 / factor))
        for each in RUN.measured
    )  # fmt: skip
    return replace(RUN, id="alone", measured=loads)


def ranked(bytes_per_s: float, memory: int = 64 << 30) -> tuple[Ranked, ...]:
    """The forecasts for two nodes with a link of that rate."""
    card = {
        "device": "xpu",
        "matrix_flops_per_s": {"float16": exactly(60e12)},
        "memory_total_bytes": memory,
    }
    found = probes(
        devices=(device("left", 410e9, **card), device("right", 410e9, **card)),
        links=(link("left", "right", 100 / bytes_per_s, bytes_per_s),),
        collectives=(collective(("left", "right"), {256: 300 / bytes_per_s}),),
    )
    there = Machines(("left", "right"), "lan", found)
    load = offered(RUN.measured[0].workload)
    return rank_all(Question("m", Limits(sequences=8), TWO, MISTRAL, there, load=load)).ranked


def test_what_limits_is_its_part_of_the_measured_time() -> None:
    limits, _, _ = of(DECODE)
    assert limits == "Host: 12 ms of 20 ms (19 to 21.6) per output token, load 1."
    (source, *_) = (each.source for each in whole(DECODE).sentences)
    assert "by the model (+2.6 ms unexplained)" in source and "no counter shows it" in source


def test_a_counter_that_names_the_cause_is_quoted() -> None:
    limits, *_ = of(replace(DECODE, counted=True, why="Compute1: a quota cuts 40% (measured)."))
    assert limits.endswith("Compute1: a quota cuts 40% (measured).")


def test_loads_with_the_same_cause_are_counted() -> None:
    other = replace(DECODE, workload="load 2", cause="memory")
    limits, *_ = of(DECODE, replace(DECODE, workload="load 4"), other)
    assert "it limits 2 of 3 loads" in limits


def test_prompts_are_the_answer_where_they_take_most_of_a_request() -> None:
    load = measured(1, 1)
    prompts = replace(load, workload=replace(load.workload, output_tokens=2))
    prefill = replace(DECODE, name="prefill", cause="compute", workload="load 1")
    limits, *_ = of(DECODE, prefill, run=replace(RUN, measured=(prompts,)))
    assert limits.startswith("Compute: 1 ms of 50 ms (47.5 to 54) until the first token, load 1")


def test_unknown_is_said_as_unknown() -> None:
    nothing = of(run=replace(RUN, measured=()))
    assert nothing == ("Not known: nothing was measured.",) * 3
    limits, change, helps = of(lacks="There are no probes. Run: orchestrate probe")
    assert limits.startswith("Not known. Measured: 20 ms (19 to 21.6) per output token, load 1.")
    assert limits.endswith("Run: orchestrate probe") and change.startswith("Not known")
    assert helps.startswith("Not known") and "--against-one-node" in helps
    why = "No predicted part explains 60% of it (modelled)."
    limits, change, _ = of(replace(DECODE, cause="unexplained", why=why))
    assert limits.startswith("Not known") and why in limits and change.startswith("Not known")


def test_what_to_change_says_what_half_of_the_cause_brings() -> None:
    _, change, _ = of(DECODE)
    assert change == (
        "A host twice as fast (a faster core, or graphs instead of eager mode): 20 ms become "
        "14 ms (9.2 to 16.4), 30% less (18% to 54%)."
    )
    now, then = whole(DECODE).rows
    assert (now.told, then.told) == (False, True) and then.parts["host"] == pytest.approx(6e-3)


def test_a_cause_without_a_remedy_has_none() -> None:
    assert of(replace(DECODE, cause="engine"))[1].startswith("Not known: no remedy")


def test_one_node_that_was_measured_to_be_faster_is_the_change_whatever_the_model_says() -> None:
    _, change, helps = of(DECODE, alone=at(5, repeats=2))
    assert change == (
        "Serve on one node: 50 tokens a second (47.5 to 54) become "
        "250 tokens a second (238 to 270)."
    )
    assert helps.startswith("No: 50 tokens a second on all nodes, 250 on one, load 1. That is 5 ")
    assert "times worse (" in helps and "few repeats, 2 and 3" in helps
    assert helps.endswith("Of 6 loads: no in 6.")
    assert [each.name for each in whole(DECODE, alone=at(5)).rows][-1] == "one node"


def test_clustering_that_helps_and_clustering_that_changes_little() -> None:
    _, change, helps = of(DECODE, alone=at(0.25))
    assert helps.startswith("Yes: 50") and "4 times better" in helps and "host" in change
    assert of(DECODE, alone=at(1.01))[2].startswith("Not clear: 50")


@pytest.mark.parametrize(("rate", "word"), [(1e6, "No"), (1e11, "Yes")])
def test_without_a_run_on_one_node_clustering_is_forecast(rate: float, word: str) -> None:
    _, change, helps = of(DECODE, ranked=ranked(rate))
    assert helps.startswith(f"{word}, by forecast: 20 ms as it is, one device would take ")
    assert "No run on one node was measured" in helps
    assert ("Serve on one device" in change) == (word == "No")


def test_a_model_that_no_single_node_holds_needs_clustering() -> None:
    helps = of(DECODE, ranked=ranked(1e6, memory=8 << 30))[2]
    assert helps.startswith("Yes: on one device the model does not fit: weights ")


def test_what_is_forecast_twice_is_one_bar() -> None:
    found = whole(DECODE, ranked=ranked(1e6))
    assert [each.name for each in found.rows][1:] == ["one device"]
