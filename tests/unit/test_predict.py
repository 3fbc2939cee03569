"""What is predicted: known figures, and what has to hold of any."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.predict import (
    FREE,
    GBE,
    GBE_2_5,
    MISTRAL,
    USB4,
    a770,
    forecast,
    phases,
    rates_,
    shape_of,
)

from orchestrator.models.reading.description import IN_FLIGHT
from orchestrator.performance.predict.layout import Parallelism, candidates, place
from orchestrator.performance.predict.load import Limits, OfferedLoad
from orchestrator.performance.predict.phase import Cause, Parts, Work, step
from orchestrator.performance.predict.rank import fit
from orchestrator.performance.predict.rates import Rates, what_if
from orchestrator.performance.predict.shape import ModelShape, read

ONE = Parallelism()
TWO = Parallelism(tensor=2)
PROJECT = Path(__file__).resolve().parents[2]

shapes = st.builds(
    ModelShape,
    layers=st.integers(1, 100),
    hidden=st.sampled_from([128, 1024, 6144]),
    heads=st.sampled_from([8, 16, 48]),
    kv_heads=st.sampled_from([1, 2, 8]),
    head_dim=st.sampled_from([32, 64, 128]),
    intermediate=st.integers(256, 20000),
    vocabulary=st.integers(256, 130000),
    weight_bits=st.sampled_from([4.15625, 8.0, 16.0]),
    experts=st.sampled_from([0, 8]),
    experts_per_token=st.just(2),
    expert_intermediate=st.just(512),
)
loads = st.builds(
    OfferedLoad,
    prompt_tokens=st.integers(1, 5000),
    output_tokens=st.integers(1, 500),
    concurrency=st.integers(1, 64).map(float),
)
layouts = st.sampled_from(
    [ONE, TWO, Parallelism(4), Parallelism(1, 2), Parallelism(2, 2), Parallelism(1, 1, 2)]
)


# The model's sizes


def test_mistral_small_reads_11_75_gigabytes_a_token() -> None:
    shape = shape_of(MISTRAL)
    assert shape.weight_bits == pytest.approx(4 + 20 / 128)
    assert shape.bytes_read() == pytest.approx(11.75e9, rel=1e-3)
    # The repository's files are 12.2 GB: the embedding is held, not read.
    assert shape.bytes_held() == pytest.approx(12.15e9, rel=1e-3)
    assert shape.kv_bytes_per_token() == 2 * 56 * 8 * 128 * 2


@pytest.mark.parametrize(
    ("name", "parameters"), [("known-answers", 0.854e6), ("random-300m", 300e6)]
)
def test_own_models_have_the_size_that_they_have(name: str, parameters: float) -> None:
    shape = shape_of(json.loads((PROJECT / "models" / name / "config.json").read_text()))
    assert shape.bytes_held() / 2 == pytest.approx(parameters, rel=0.02)
    assert shape.flops(1, 0, 1) / 2 == pytest.approx(shape.bytes_read() / 2)


@pytest.mark.parametrize(
    ("settings", "bits"),
    [
        ({}, 16.0),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, 4.15625),
        ({"quant_method": "gptq", "bits": 8, "group_size": 32}, 8.75),
        ({"quant_method": "gptq", "bits": 4, "group_size": -1}, 4.0),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64}, 4.3125),
        ({"quant_method": "fp8"}, 8.0),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4.5),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 128}}},
            },
            4.125,
        ),
    ],
)
def test_bits_of_a_quantized_weight(settings: dict[str, Any], bits: float) -> None:
    shape, unread = read({**MISTRAL, "quantization_config": settings})
    assert shape is not None
    assert shape.weight_bits == bits
    assert not unread


def test_experts_are_read_as_far_as_tokens_go_through_them() -> None:
    config = MISTRAL | {"num_local_experts": 8, "num_experts_per_tok": 2}
    shape, dense = shape_of(config), shape_of(MISTRAL)
    assert shape.experts_touched(1) == pytest.approx(2)
    assert 7.9 < shape.experts_touched(16) < 8
    mlp = dense.mlp_weights(0)
    assert shape.bytes_read() - dense.bytes_read() == pytest.approx(mlp * dense.weight_bytes)
    assert shape.bytes_held() - dense.bytes_held() == pytest.approx(7 * mlp * dense.weight_bytes)
    assert shape.flops(1, 0, 0) - dense.flops(1, 0, 0) == pytest.approx(2 * mlp)


def test_what_cannot_be_read_is_said() -> None:
    assert read({"model_type": "mystery"})[0] is None
    shape, unread = read(
        {
            "num_hidden_layers": 2,
            "hidden_size": 64,
            "num_attention_heads": 4,
            "kv_lora_rank": None,
            "layer_types": ["full_attention", "mystery_attention"],
            "dtype": "float6",
            "quantization_config": {"quant_method": "magic"},
        }
    )
    assert shape is not None
    assert (shape.kv_heads, shape.head_dim, shape.intermediate) == (4, 16, 256)
    text = "\n".join(unread)
    for word in ("mystery_attention", "dtype float6", "intermediate_size", "magic", "vocab_size"):
        assert word in text


@given(shapes, st.sampled_from([1, 2, 4, 8]), st.integers(1, 64))
def test_a_rank_reads_at_least_its_share(shape: ModelShape, tensor: int, tokens: int) -> None:
    assert shape.bytes_read(tokens, tensor) >= shape.bytes_read(tokens) / tensor * (1 - 1e-9)
    assert shape.kv_bytes_per_token(tensor) >= shape.kv_bytes_per_token() / tensor


# Known speeds


@pytest.mark.parametrize(
    ("layout", "rates", "tokens_per_s"),
    [
        (ONE, a770(1), 35),
        (TWO, a770(2, GBE), 20),
        (TWO, a770(2, GBE_2_5), 39),
        (TWO, a770(2, USB4), 33),
    ],
)
def test_mistral_small_on_two_arc_a770(
    layout: Parallelism, rates: Rates, tokens_per_s: float
) -> None:
    """The figures of docs/explanation/hardware-0.1-arc-a770.md."""
    load = OfferedLoad(prompt_tokens=1, output_tokens=2)
    decode = phases(shape_of(MISTRAL), layout, rates, load)["decode"]
    assert 1 / decode.seconds == pytest.approx(tokens_per_s, rel=0.03)


def test_a_faster_link_of_the_counterfactual_is_that_link() -> None:
    shape, load = shape_of(MISTRAL), OfferedLoad(16, 16)
    other = what_if(
        a770(2, GBE),
        link_bytes_per_s=USB4.bytes_per_s,
        latency_factor=USB4.latency_s / GBE.latency_s,
    )
    assert forecast(shape, TWO, other, load) == forecast(shape, TWO, a770(2, USB4), load)


def test_a_pipeline_makes_no_request_faster_but_has_room_for_more_of_them() -> None:
    shape, stages = shape_of(MISTRAL), Parallelism(pipeline=2)
    cut = a770(1, GBE, borders=1)
    alone = forecast(shape, ONE, a770(1), OfferedLoad(64, 64)).decode
    single = forecast(shape, stages, cut, OfferedLoad(64, 64)).decode
    assert alone.seconds < single.seconds < 1.1 * alone.seconds
    few = forecast(shape, ONE, a770(1), OfferedLoad(64, 64, 8))
    many = forecast(shape, stages, cut, OfferedLoad(64, 64, 16))
    assert many.decode.seconds < 1.1 * few.decode.seconds
    # Not twice as many: all prompts but the first go through the stages together.
    assert many.output_tokens_per_s > 1.5 * few.output_tokens_per_s


# What holds of any figures


@given(shapes, layouts, rates_, loads)
def test_parts_are_all_of_the_time(
    shape: ModelShape, layout: Parallelism, rates: Rates, load: OfferedLoad
) -> None:
    found = phases(shape, layout, rates, load)
    assert {"prefill", "decode"} <= set(found)
    for one in found.values():
        values = {each.name: getattr(one.parts, each.name) for each in fields(Parts)}
        assert min(values.values()) >= 0
        rest = sum(values.values()) - min(values["compute_s"], values["memory_s"])
        assert one.seconds == pytest.approx(rest)
        assert one.bound == max(one.parts.shares(), key=lambda cause: one.parts.shares()[cause])


@given(shapes, rates_, loads)
def test_one_device_has_no_link(shape: ModelShape, rates: Rates, load: OfferedLoad) -> None:
    alone = replace(rates, link=None, tensor_nodes=1, borders=0)
    found = phases(shape, ONE, alone, load)
    assert {"prefill", "decode"} <= set(found)
    for one in found.values():
        assert one.parts.link_latency_s == one.parts.link_bandwidth_s == 0


@given(shapes, layouts, rates_, loads, st.floats(1, 100))
def test_better_hardware_is_never_slower(
    shape: ModelShape, layout: Parallelism, rates: Rates, load: OfferedLoad, factor: float
) -> None:
    assert rates.link is not None
    before = forecast(shape, layout, rates, load)
    for better in (
        what_if(rates, link_bytes_per_s=rates.link.bytes_per_s * factor),
        what_if(rates, latency_factor=1 / factor),
        what_if(rates, memory_factor=factor),
        what_if(rates, host_factor=1 / factor),
    ):
        after = forecast(shape, layout, better, load)
        assert after.decode.seconds <= before.decode.seconds * (1 + 1e-9)
        assert after.request.seconds <= before.request.seconds * (1 + 1e-9)
        assert after.output_tokens_per_s >= before.output_tokens_per_s * (1 - 1e-9)


@given(shapes, st.sampled_from([2, 4, 8]), rates_, loads)
def test_tensor_parallel_is_never_faster_than_its_share_of_the_memory(
    shape: ModelShape, tensor: int, rates: Rates, load: OfferedLoad
) -> None:
    decode = phases(shape, Parallelism(tensor), rates, load)["decode"]
    least = shape.bytes_read() / (tensor * rates.memory_bytes_per_s)
    assert decode.seconds >= least * (1 - 1e-9)


@given(shapes, layouts, rates_, st.integers(1, 64), st.integers(0, 64))
def test_a_larger_batch_never_takes_less(
    shape: ModelShape, layout: Parallelism, rates: Rates, batch: int, more: int
) -> None:
    few = step(shape, layout, rates, Work(batch, batch, 100))
    many = step(shape, layout, rates, Work(batch + more, batch + more, 100))
    assert many.seconds >= few.seconds * (1 - 1e-9)


@given(shapes, layouts, rates_, loads)
def test_little_holds(
    shape: ModelShape, layout: Parallelism, rates: Rates, load: OfferedLoad
) -> None:
    """Requests at once = requests a second x seconds of one, whatever waits for what."""
    found = forecast(shape, layout, rates, load, Limits(sequences=8))
    assert found.running + found.waiting == pytest.approx(max(load.concurrency, 1))
    assert found.requests_per_s * found.request.seconds == pytest.approx(
        found.running + found.waiting
    )


@given(shapes, rates_, loads)
def test_a_slow_trickle_is_served_as_it_comes(
    shape: ModelShape, rates: Rates, load: OfferedLoad
) -> None:
    stay = forecast(shape, ONE, rates, replace(load, concurrency=1)).request.seconds
    slow = replace(load, rate_per_s=0.1 / stay)
    found = forecast(shape, ONE, rates, slow, Limits(sequences=8))
    assert not found.saturated
    assert found.requests_per_s == pytest.approx(0.1 / stay)
    flood = replace(load, concurrency=64, rate_per_s=1000 / stay)
    found = forecast(shape, ONE, rates, flood, Limits(sequences=8))
    assert found.saturated
    assert found.requests_per_s < 1000 / stay


def test_the_batch_limit_is_what_makes_requests_wait() -> None:
    shape = shape_of(MISTRAL)
    found = forecast(shape, ONE, a770(1), OfferedLoad(64, 64, 16), Limits(sequences=2))
    assert (found.running, found.waiting) == (2, 14)
    assert found.prefill.bound is Cause.BATCH_LIMIT
    assert found.request.bound is Cause.BATCH_LIMIT
    assert found.decode.bound is Cause.MEMORY


def test_long_prompts_are_what_a_request_is_spent_on() -> None:
    slow = a770(1, flops_per_s={"float16": 2e12})
    found = forecast(shape_of(MISTRAL), ONE, slow, OfferedLoad(4000, 8, 4))
    assert found.request.bound is Cause.LONG_PREFILL
    assert found.decode.bound is Cause.LONG_PREFILL


# Layouts


def test_layouts_are_those_that_the_model_can_be_cut_into() -> None:
    found = candidates({"num_attention_heads": 6, "num_hidden_layers": 2}, 4)
    assert [layout for layout in found if layout.data == 1] == [
        ONE,
        TWO,
        Parallelism(1, 2),
        Parallelism(3),
        Parallelism(2, 2),
    ]
    assert all(layout.ranks <= 4 for layout in found)


def test_ranks_go_through_the_stages() -> None:
    devices = ["a", "a", "b", "b", "c", "d", "e", "f"]
    first, second = place(devices, Parallelism(2, 2, 2))
    assert first.stages == (("a", "a"), ("b", "b"))
    assert (first.tensor_nodes, first.borders) == (("a",), 1)
    assert second.stages == (("c", "d"), ("e", "f"))
    assert second.tensor_nodes == ("c", "d")
    assert second.nodes == ("c", "d", "e", "f")


def test_an_engine_that_costs_nothing_has_all_constants() -> None:
    assert {getattr(FREE, each.name) for each in fields(FREE)} == {0.0}


def test_tokens_wait_for_the_prompts_of_those_that_come_meanwhile() -> None:
    """Of few, too: at 0.5 a second a stay of one second meets half of another one's prompt."""
    load = OfferedLoad(512, 32, 8, rate_per_s=0.5)
    found = forecast(shape_of(MISTRAL), ONE, a770(1), load)
    alone = forecast(shape_of(MISTRAL), ONE, a770(1), OfferedLoad(512, 32))
    waits = 31 * found.decode.parts.prefill_s
    assert waits == pytest.approx(found.running * alone.prefill.seconds, rel=0.15)


# A rank's share, in figures


def test_a_rank_holds_its_share_of_what_can_be_shared() -> None:
    shape = shape_of(MISTRAL)
    # Of eight key-value heads one on each of eight ranks; with more ranks there are copies.
    assert shape.kv_bytes_per_token(8) == shape.kv_bytes_per_token() / 8
    assert shape.kv_bytes_per_token(16) == shape.kv_bytes_per_token() / 8
    # 56 layers in three stages: the fullest has 19, and the embedding or the head.
    head = shape.head_weights * shape.dtype_bytes
    decoder = shape.bytes_held() - 2 * head
    assert shape.bytes_held(stages=3) == pytest.approx(decoder * 19 / 56 + head)


def test_a_window_bounds_what_is_read_and_held_but_not_of_shorter_requests() -> None:
    """Five layers of six with a window, as in Gemma 3; config.json states 131,072 tokens."""
    kinds = (["sliding_attention"] * 5 + ["full_attention"]) * 10
    gemma = MISTRAL | {"num_hidden_layers": 60, "layer_types": kinds, "sliding_window": 1024,
                       "max_position_embeddings": 131_072}  # fmt: skip
    shape, each = shape_of(gemma), 2 * 8 * 128 * 2
    assert shape.cache_read(512) == shape.cache_held(512) == 60 * each * 512
    assert shape.cache_read(8192, 8) == each / 8 * (10 * 8192 + 50 * 1024)
    assert shape.cache_held(8192) == each * (10 * 8192 + 50 * (1023 + IN_FLIGHT))
    room = fit(shape, ONE, 64e9, Limits(context=512))
    assert room.cache_bytes_per_sequence == 60 * each * 512
    plain = shape_of(MISTRAL | {"num_hidden_layers": 60})
    short, same = (step(one, ONE, a770(1), Work(1, 1, 512)) for one in (shape, plain))
    assert short.memory_s == pytest.approx(same.memory_s, rel=1e-3)


def test_state_is_held_however_short_a_request_is() -> None:
    mamba = {"model_type": "mamba2", "hidden_size": 1024, "num_hidden_layers": 4,
                "num_heads": 32, "head_dim": 64, "expand": 2, "vocab_size": 512}  # fmt: skip
    shape = shape_of(mamba)
    assert shape.cache_held(1) == shape.cache_held(4096) > 0


def test_two_devices_share_the_arithmetic_of_a_prompt() -> None:
    shape, slow = shape_of(MISTRAL), {"float16": 2e12}
    alone = step(shape, ONE, a770(1, flops_per_s=slow), Work(512, 1, 256))
    both = step(shape, TWO, a770(2, USB4, flops_per_s=slow), Work(512, 1, 256))
    assert alone.bound is Cause.COMPUTE
    assert both.compute_s == pytest.approx(alone.compute_s / 2)


def test_launching_is_waited_for_unless_the_device_is_busy_meanwhile() -> None:
    shape, engine = shape_of(MISTRAL), replace(FREE, per_layer_operations=14.0)
    card = a770(1, operation_s=1e-5, engine=engine)
    launches_s = 56 * 14 * 1e-5
    found = step(shape, ONE, card, Work(1, 1, 0))
    assert found.host_s == 0 and found.device_s > launches_s
    processor = replace(card, synchronous=True)
    assert step(shape, ONE, processor, Work(1, 1, 0)).host_s == pytest.approx(launches_s)
    slow = replace(card, operation_s=1e-4)
    assert step(shape, ONE, slow, Work(1, 1, 0)).seconds == pytest.approx(10 * launches_s)


def test_messages_of_a_token_over_two_devices() -> None:
    """113 all-reduces of a hidden state, then half of one with the logits; before, the word."""
    parts = step(shape_of(MISTRAL), TWO, a770(2, GBE), Work(1, 1, 0))
    sent = 113 * 6144 * 2 + 0.5 * 32768 * 2
    assert parts.link_bandwidth_s == pytest.approx(sent / GBE.bytes_per_s)
    assert parts.link_latency_s == pytest.approx((113 * 2 + 1 + 1) * GBE.latency_s)


def test_weights_that_do_not_fit_do_not_run_also_where_the_context_is_unknown() -> None:
    small = fit(shape_of(MISTRAL), ONE, 8e9, Limits(context=None))
    assert small.sequences > 0 and not small.runs and not small.fits
    assert str(small).startswith("does not fit: weights 11.3 GiB of 6.9 GiB")
    assert fit(shape_of(MISTRAL), ONE, 16e9, Limits(context=None)).runs
