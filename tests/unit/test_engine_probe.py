"""The engine's probe: which loads, what is made of their times, and models with fewer layers."""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as some

from orchestrator.cli.probe import ENGINE_S, EngineWish, asked_engine
from orchestrator.core.errors import BadInput, UserError
from orchestrator.models.reading.facts import text_path
from orchestrator.models.reading.shorter import shorter
from orchestrator.performance.predict.load import Limits
from orchestrator.performance.probe import cut, engine, node_rounds
from orchestrator.performance.probe.cells import cells
from orchestrator.performance.probe.node_rounds import (
    FEWEST,
    FOLLOWING,
    IN_A_ROW,
    MOST,
    Load,
    TimedRequest,
    Unanswered,
    figures,
    kept_up,
    measured,
    room,
)
from orchestrator.performance.results.bench import Workload
from orchestrator.performance.results.engine import EngineCell
from orchestrator.performance.results.probe import LinkRates, spread

SINGLE = Workload("single stream", 1024, 896, 4, 1)
MANY = Workload("32 at once", 1024, 896, 64, 32)
DECODE = Workload("decode-heavy", 128, 1792, 8, 2)


def test_loads_of_a_profile_short_prompts_at_each_size_long_ones_at_the_ends() -> None:
    found = cells(Limits(context=4096), [SINGLE, MANY, DECODE])
    short = [each.concurrency for each in found if each.prompt == 128]
    assert sorted(short) == [1, 2, 4, 8, 16, 32]
    assert [each.concurrency for each in found if each.prompt == 1024] == [1, 4, 32]
    assert [(each.prompt, each.concurrency) for each in found[:3]] == [
        (128, 1),
        (128, 32),
        (1024, 1),
    ]
    # 32 prompts of 1024 are computed in 16 steps of 2048: all decode together for 32 more.
    assert (
        next(each.output for each in found if (each.prompt, each.concurrency) == (1024, 32)) == 48
    )


@pytest.mark.parametrize(
    ("captured", "alone"),
    [(0, [128, 362, 1024]), (512, [128, 512, 513, 1024]), (128, [128, 129, 1024]),
     (64, [128, 362, 1024]), (1024, [128, 362, 1024])],
)  # fmt: skip
def test_a_prompt_on_each_side_of_the_largest_graph(captured: int, alone: list[int]) -> None:
    found = cells(Limits(context=4096, captured=captured), [SINGLE, MANY, DECODE])
    assert sorted(each.prompt for each in found if each.concurrency == 1) == alone


def test_what_the_profile_does_not_allow_is_not_measured() -> None:
    few = cells(Limits(sequences=3, context=256), [SINGLE, MANY, DECODE])
    assert {each.concurrency for each in few} == {1, 2, 3}
    assert all(each.prompt + each.output <= 256 for each in few)
    alone = cells(Limits(sequences=1), [Workload("brief", 16, 8, 1, 1)])
    assert {(each.prompt, each.concurrency) for each in alone} == {(16, 1)}


@given(some.integers(1, 600), some.integers(4, 100_000), some.integers(16, 9000))
def test_loads_always_fit_and_none_comes_twice(many: int, context: int, batched: int) -> None:
    limits = Limits(sequences=many, context=context, batched_tokens=batched)
    found = cells(limits, [SINGLE, MANY, DECODE, Workload("rate", 64, 64, 9000, None, 5.0)])
    assert len(found) == len(set(found)) <= 12
    assert all(each.prompt >= 1 and each.output >= 2 for each in found)
    assert all(each.concurrency <= min(many, 32) for each in found)
    assert all(each.prompt + each.output <= context for each in found)


def test_figures_are_of_requests_and_a_step_is_one_in_which_all_decode() -> None:
    # The second one's prompt holds the first one's second token up for a second.
    first = TimedRequest(0.0, [1.0, *(2.0 + n / 10 for n in range(20))], 21)
    second = TimedRequest(0.0, [2.0 + n / 10 for n in range(20)], 20)
    found = figures([first, second])
    assert found["ttft_s"] == 1.5
    assert found["step_s"] == pytest.approx(0.1)
    assert found["tpot_s"] == pytest.approx((2.9 / 20 + 0.1) / 2)
    assert found["output_tokens_per_s"] == pytest.approx(41 / 3.9)
    alone = figures([TimedRequest(0.0, [1.0, 1.1], 2)])
    assert "step_s" not in alone and alone["tpot_s"] == pytest.approx(0.1)


def test_requests_that_never_decode_together_have_no_step() -> None:
    early = TimedRequest(0.0, [1.0 + n / 10 for n in range(20)], 20)
    for start in (2.85, 2.95):  # one event of the later one while the first one decodes; none
        late = TimedRequest(0.0, [start + n / 10 for n in range(20)], 20)
        assert "step_s" not in figures([early, late])


def test_events_of_several_tokens_count_as_many() -> None:
    found = figures([TimedRequest(0.0, [1.0 + n / 10 for n in range(20)], 40)])
    assert found["step_s"] == pytest.approx(0.05)
    assert found["tpot_s"] == pytest.approx(1.9 / 39)


class Engine:
    """An engine that takes so many seconds for each prompt token."""

    def __init__(self, each: float = 1e-6, refuses: int = 0) -> None:
        self.each, self.refuses = each, refuses
        self.asked: list[Load] = []

    async def __call__(self, load: Load) -> list[TimedRequest]:
        self.asked.append(load)
        if load[0] == self.refuses:
            raise Unanswered("too long")
        begun = time.perf_counter()
        await asyncio.sleep(self.each * load[0] * load[2])
        now = time.perf_counter()
        return [TimedRequest(begun, [now + n / 1e3 for n in range(load[1])], load[1])] * load[2]


def run(loads: list[Load], wave: Engine, seconds: float) -> tuple[list[Any], list[str]]:
    return asyncio.run(measured(loads, wave, seconds, lambda _: None))


def test_loads_take_turns_and_the_first_round_is_thrown_away() -> None:
    wave = Engine()
    found, notes = run([(8, 16, 1), (16, 16, 2)], wave, 60.0)
    assert notes == []
    turns = [load for load, _ in itertools.groupby(wave.asked)]
    assert turns == [(8, 16, 1), (16, 16, 2)] * (MOST + 1)
    assert [len(each.rounds) for each in found] == [MOST, MOST]


@pytest.mark.parametrize(("brief", "times"), [(True, IN_A_ROW), (False, 1)])
def test_a_brief_load_runs_in_a_row_and_the_first_does_not_count(
    monkeypatch: pytest.MonkeyPatch, brief: bool, times: int
) -> None:
    """The engine is slower to its first tokens after another load."""
    monkeypatch.setattr(node_rounds, "BRIEF", 60.0 if brief else 0.0)
    asked: list[Load] = []

    async def wave(load: Load) -> list[TimedRequest]:
        place = next((n for n, each in enumerate(reversed(asked)) if each != load), 0)
        first = 0.15 if place % IN_A_ROW else 0.4
        asked.append(load)
        return [TimedRequest(0.0, [first + n / 100 for n in range(load[1])], load[1])]

    found, _ = asyncio.run(measured([(8, 16, 1), (16, 16, 1)], wave, 60.0, lambda _: None))
    rows = [len(list(row)) for _, row in itertools.groupby(asked)]
    # The very first load warms up on top.
    assert rows == [2 * times, *[times] * (2 * MOST + 1)]
    seen = {round(each["ttft_s"], 9) for cell in found for each in cell.rounds}
    assert seen == {0.15 if brief else 0.4}


def test_requests_that_follow_others_count_and_those_that_are_sent_together_do_not() -> None:
    """Those wait for each other's prompts; later ones of a load come as others end."""
    sent: list[int] = []
    numbers = itertools.count()

    async def stream(number: int) -> TimedRequest:
        sent.append(number)
        start = len(sent)
        await asyncio.sleep(0.01 * (1 + number // FOLLOWING))  # each client has a time of its own
        return TimedRequest(float(start), [start + 1.0], number)

    found = asyncio.run(kept_up((8, 4, 3), lambda: next(numbers), stream))
    assert sorted(sent) == list(range(3 * FOLLOWING))
    assert sorted(each.tokens for each in found) == [1, 3, 5]
    assert all(each.start > 3 for each in found), "the first of each client were sent together"
    sent.clear()
    assert [each.tokens for each in asyncio.run(kept_up((8, 4, 1), lambda: 7, stream))] == [7]
    assert sent == [7], "one request at a time is in no line"


def test_of_a_load_that_is_refused_no_request_goes_on() -> None:
    ended: list[int] = []
    numbers = itertools.count()

    async def stream(number: int) -> TimedRequest:
        await asyncio.sleep(0.01)
        if number == 2:
            raise Unanswered("full")
        await asyncio.sleep(0.2)
        ended.append(number)
        return TimedRequest(0.0, [1.0], 1)

    async def load() -> None:
        with pytest.raises(Unanswered):
            await kept_up((8, 4, 3), lambda: next(numbers), stream)
        await asyncio.sleep(0.4)

    asyncio.run(load())
    assert ended == []


def test_a_load_that_takes_too_long_is_left_out_and_said() -> None:
    wave = Engine(each=1e-3)
    found, notes = run([(8, 4, 1), (10_000, 4, 1), (16, 4, 1)], wave, 1.0)
    assert [each.load[0] for each in found] == [8, 16]
    assert notes == ["no time for 1 x 10000 tokens"]
    assert all(len(each.rounds) >= FEWEST for each in found)


def test_a_refused_load_is_left_out_unless_it_is_the_first() -> None:
    found, notes = run([(8, 4, 1), (16, 4, 1)], Engine(refuses=16), 60.0)
    assert [each.load[0] for each in found] == [8]
    assert notes == ["1 x 16 tokens: not answered: too long"]
    with pytest.raises(Unanswered):
        run([(8, 4, 1)], Engine(refuses=8), 60.0)


def test_a_wall_clock_that_jumps_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: next(jumps) * 86400.0)
    found, notes = run([(8, 16, 1)], Engine(), 60.0)
    assert notes == [] and all(0 <= each["ttft_s"] < 5 for each in found[0].rounds)


@pytest.mark.parametrize(
    ("page", "tokens"),
    [
        ('vllm:cache_config_info{block_size="16",num_gpu_blocks="10"} 1.0', 160),
        (
            'vllm:cache_config_info{block_size="16",kv_cache_size_tokens="99",'
            'num_gpu_blocks="10"} 1.0',
            99,
        ),
        ('vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1.0', None),
        ("", None),
    ],
)
def test_room_by_the_engines_word(page: str, tokens: int | None) -> None:
    assert room(page) == tokens


#: Sizes of layers, with kinds that differ in them.
SIZES = {
    "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "num_experts": 8,
    "num_experts_per_tok": 2, "moe_intermediate_size": 32, "sliding_window": 512,
}  # fmt: skip
#: What published config.json say of their layers' kinds, and the pattern.
KINDS: dict[str, tuple[dict[str, Any], cut.Pattern]] = {
    "alike": ({"num_hidden_layers": 56}, cut.Pattern(56)),
    "in text_config": ({"text_config": {"num_hidden_layers": 24}}, cut.Pattern(24)),
    "sliding, every sixth full": (
        {
            "num_hidden_layers": 26,
            "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 4
            + ["sliding_attention"] * 2,
        },
        cut.Pattern(26, 0, 6),
    ),
    "the same by its number": (
        {**SIZES, "num_hidden_layers": 26, "sliding_window_pattern": 6},
        cut.Pattern(26, 0, 6),
    ),
    "linear, every fourth full": (
        {**SIZES, "num_hidden_layers": 48, "full_attention_interval": 4, "decoder_sparse_step": 1},
        cut.Pattern(48, 0, 4),
    ),
    "three dense ones first": (
        {**SIZES, "num_hidden_layers": 61, "first_k_dense_replace": 3, "moe_layer_freq": 1},
        cut.Pattern(61, 3, 1),
    ),
    "one dense by its number": (
        {"num_hidden_layers": 48, "mlp_only_layers": [0]},
        cut.Pattern(48, 1, 1),
    ),
    "two patterns": (
        {
            **SIZES,
            "num_hidden_layers": 48,
            "layer_types": ["a", "b"] * 24,
            "interleave_moe_layer_step": 3,
        },
        cut.Pattern(48, 0, 6),
    ),
    "by the count alone, nested deeper": (
        {"thinker_config": {"text_config": {**SIZES, "n_layers": 12, "num_experts": 0}}},
        cut.Pattern(12),
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_cut_keeps_the_pattern(name: str) -> None:
    config, wanted = KINDS[name]
    found = cut.pattern(config)
    assert found == wanted
    depths = found.depths()
    assert depths is not None
    low, high = depths
    assert low < high < found.layers
    for depth in depths:
        assert (depth - found.first) % found.period == 0 and depth > found.first
        made = shorter(config, depth)
        again = cut.pattern(made)
        assert again is not None and (again.layers, again.first) == (depth, found.first)
        text = made
        for key in text_path(made):
            text = text[key]
        assert len(text.get("layer_types", range(depth))) == depth


def test_layers_that_share_others_keys_and_values_are_not_cut() -> None:
    found = cut.pattern({**SIZES, "num_hidden_layers": 30, "num_kv_shared_layers": 10})
    assert found == cut.Pattern(30, 0, 30) and found.depths() is None


def test_a_quarter_and_a_half() -> None:
    assert cut.Pattern(56).depths() == (14, 28)
    assert cut.Pattern(61, 3, 1).depths() == (15, 31)
    assert cut.Pattern(26, 0, 6).depths() == (6, 12)


@pytest.mark.parametrize("layers", [1, 2])
def test_too_few_layers_to_cut(layers: int) -> None:
    assert cut.Pattern(layers).depths() is None


@pytest.mark.parametrize(
    ("depths", "wrong"),
    [((4,), "two numbers"), ((4, 4), "two numbers"), ((0, 6), "two numbers"),
     ((6, 27), "two numbers"), ((6, 13), "break the model's pattern")],
)  # fmt: skip
def test_depths_that_cannot_be(depths: tuple[int, ...], wrong: str) -> None:
    with pytest.raises(BadInput, match=wrong):
        cut.checked(depths, cut.Pattern(26, 0, 6))


def cell(seconds: float, noise: float = 0.0) -> EngineCell:
    figure = spread([seconds * (1 - noise), seconds, seconds * (1 + noise)])
    return EngineCell(128, 32, 8, figure, figure, spread([8 * 32 / (32 * seconds)]), figure)


def test_two_depths_make_a_line_as_wide_as_their_noise() -> None:
    (found,) = cut.extrapolated([cell(0.010)], [cell(0.018)], (14, 28), 56)
    assert found.tpot_s.median == pytest.approx(0.034)
    assert found.tpot_s.low == pytest.approx(found.tpot_s.high)
    assert found.output_tokens_per_s.median == pytest.approx(8 / 0.034)
    (noisy,) = cut.extrapolated([cell(0.010, 0.1)], [cell(0.018, 0.1)], (14, 28), 56)
    assert noisy.step_s is not None
    assert noisy.step_s.low == pytest.approx(0.0162 + 2 * (0.0162 - 0.011))
    assert noisy.step_s.high == pytest.approx(0.0198 + 2 * (0.0198 - 0.009))
    # Noise may turn a line around: more layers never take less time.
    (turned,) = cut.extrapolated([cell(0.020)], [cell(0.018)], (14, 28), 56)
    assert turned.ttft_s.median == pytest.approx(0.018)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [("[1]", "is no model's config.json"), ("{", "is not JSON"), ("{}", "names no architectures")],
)
def test_what_is_no_config(text: str, wrong: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(BadInput, match=wrong):
        engine.read_config(tmp_path)


def test_code_of_a_model_is_refused() -> None:
    config = {"architectures": ["X"], "text_config": {"auto_map": {"AutoConfig": "evil.X"}}}
    with pytest.raises(UserError, match="auto_map"):
        engine.runnable(config)


def test_a_link_counts_as_the_kind_that_is_sold() -> None:
    def link(a: str, b: str, gigabits: float) -> LinkRates:
        one = spread([gigabits * 1e9 / 8])
        return LinkRates(a, b, "ranks", ("", ""), (None, None), spread([1e-4]), one, {})

    links = [link("a", "b", 9.4), link("b", "c", 0.94)]
    assert (engine.slowest(links, ["a", "b"]) or engine.SlowestLink(1, 1)).kind == 10
    assert (engine.slowest(links, ["a", "b", "c"]) or engine.SlowestLink(1, 1)).kind == 1
    assert engine.slowest(links, ["a"]) is None


@pytest.mark.parametrize(
    ("only", "dummy", "layers", "seconds", "said"),
    [
        ((), "", None, None, "--dummy and --layers go with --only engine"),
        (("link",), None, None, 60, "--seconds goes with --only engine"),
        (("engine", "link"), None, None, None, "is measured alone"),
        (("engine",), None, "4,8", None, "--layers goes with --dummy"),
        (("engine",), "", "four", None, "two numbers"),
    ],
)
def test_options_that_do_not_go_together(
    only: tuple[str, ...], dummy: str | None, layers: str | None, seconds: int | None, said: str
) -> None:
    with pytest.raises(click.UsageError, match=said):
        asked_engine(only, dummy, layers, seconds)


def test_how_long_an_engine_is_measured() -> None:
    assert asked_engine(("engine",), None, None, None).seconds == ENGINE_S
    assert asked_engine(("engine",), "", "4,8", 60) == EngineWish("", (4, 8), 60.0)
