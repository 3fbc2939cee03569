"""A model of known size, links of known speed, and probes of a small cluster."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hypothesis import strategies as st

from orchestrator.performance.predict.engine import Engine
from orchestrator.performance.predict.layout import Parallelism
from orchestrator.performance.predict.links import LinkRate
from orchestrator.performance.predict.load import (
    Limits,
    LoadPrediction,
    OfferedLoad,
    Prediction,
    under_load,
)
from orchestrator.performance.predict.rates import Rates
from orchestrator.performance.predict.shape import ModelShape, read
from orchestrator.performance.predict.steps import Formulas
from orchestrator.performance.results.engine import EngineCell, EngineRates, EngineWeights
from orchestrator.performance.results.probe import (
    CollectiveRates,
    DeviceRates,
    LinkRates,
    Probes,
    Spread,
)

#: AMead10/Mistral-Small-Instruct-2409-awq: 22 billion weights, AWQ in groups of 128.
MISTRAL: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "torch_dtype": "float16",
    "hidden_size": 6144,
    "intermediate_size": 16384,
    "num_hidden_layers": 56,
    "num_attention_heads": 48,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 32768,
    "tie_word_embeddings": False,
    "quantization_config": {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 128,
        "zero_point": True,
        "version": "gemm",
    },
}
ONE = Parallelism()
#: Links between two computers, by what TCP gives over them: 1 GbE and 2.5 GbE by a switch, USB4.
GBE = LinkRate(100e-6, 117.5e6)
GBE_2_5 = LinkRate(30e-6, 294e6)
USB4 = LinkRate(65e-6, 1.2e9)
#: An engine that costs nothing: what is left is what physics says.
FREE = Engine(0.0, 0.0, 0.0, 0.0)


seconds = st.floats(1e-7, 1e-2)
rates_ = st.builds(
    Rates,
    memory_bytes_per_s=st.floats(1e8, 1e12),
    flops_per_s=st.fixed_dictionaries({"bfloat16": st.floats(1e8, 1e14)}),
    operation_s=st.floats(0, 1e-4),
    memory_bytes=st.just(16 * 10**9),
    synchronous=st.booleans(),
    tensor_nodes=st.just(2),
    borders=st.just(1),
    link=st.builds(LinkRate, latency_s=seconds, bytes_per_s=st.floats(1e5, 1e10)),
    engine=st.builds(
        Engine,
        step_s=st.floats(0, 1e-2),
        per_sequence_s=st.floats(0, 1e-3),
        request_s=st.floats(0, 1e-1),
    ),
)


def shape_of(config: dict[str, Any]) -> ModelShape:
    shape, _ = read(config)
    assert shape is not None
    return shape


def forecast(
    shape: ModelShape,
    layout: Parallelism,
    rates: Rates,
    load: OfferedLoad,
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> LoadPrediction:
    """A load on a layout, by formulas alone."""
    return under_load(Formulas(shape, layout, rates), layout.data, load, limits)


def phases(
    shape: ModelShape, layout: Parallelism, rates: Rates, load: OfferedLoad
) -> dict[str, Prediction]:
    """Each phase of a request of it."""
    found = forecast(shape, layout, rates, load)
    return {each.phase: each for each in (found.prefill, found.decode, found.request)}


def a770(nodes: int, link: LinkRate | None = None, **other: Any) -> Rates:
    """Cards of 410 GB/s (clpeak's figure of an Arc A770), one a node."""
    values: dict[str, Any] = {
        "memory_bytes_per_s": 410e9,
        "flops_per_s": {"float16": 60e12},
        "operation_s": 0.0,
        "memory_bytes": 16 * 2**30,
        "tensor_nodes": nodes,
        "link": link,
        "engine": FREE,
    }
    return Rates(**values | other)


def exactly(value: float) -> Spread:
    return Spread(value, value, value, 3)


def device(node: str, memory_bytes_per_s: float = 10e9, **other: Any) -> DeviceRates:
    values: dict[str, Any] = {
        "node": node,
        "device": "cpu",
        "name": "a processor",
        "threads": 1,
        "memory_bytes_per_s": exactly(memory_bytes_per_s),
        "matrix_flops_per_s": {"bfloat16": exactly(50e9), "float16": exactly(40e9)},
        "operation_s": exactly(5e-6),
        "clock_skew_s": 0.0,
        "memory_total_bytes": 8 * 10**9,
    }
    return DeviceRates(**values | other)


def link(a: str, b: str, latency_s: float, bytes_per_s: float, network: str = "lan") -> LinkRates:
    return LinkRates(
        a,
        b,
        network,
        ("eth0", "eth0"),
        (10**9, 10**9),
        exactly(latency_s),
        exactly(bytes_per_s),
        {},
    )


def collective(nodes: tuple[str, ...], times: dict[int, float]) -> CollectiveRates:
    by_size = {size: exactly(seconds) for size, seconds in times.items()}
    return CollectiveRates(nodes, "gloo", ("eth0",) * len(nodes), by_size, by_size)


def probes(**parts: Any) -> Probes:
    """Of the cluster in profile_cases: left and right, on the network lan."""
    values: dict[str, Any] = {
        "profile": "small",
        "profile_sha256": "0" * 64,
        "image_id": "1" * 64,
        "versions": {"vllm": "0.30.0"},
        "time": "2026-11-26T07:00:00Z",
        "devices": (device("left"), device("right")),
        "links": (link("left", "right", 50e-6, 100e6),),
    }
    return Probes(**values | parts)


def engine_rates(
    cells: Iterable[EngineCell], layout: Parallelism = ONE, **other: Any
) -> EngineRates:
    """The engine with these cells on as many nodes as it has ranks."""
    values: dict[str, Any] = {
        "key": "k",
        "time": "2026-11-30T00:00:00Z",
        "model": "m",
        "nodes": ("left", "right")[: layout.ranks],
        "devices": ("card",) * layout.ranks,
        "tensor": layout.tensor,
        "pipeline": layout.pipeline,
        "data": layout.data,
        "args": {},
        "versions": {},
        "weights": EngineWeights.DUMMY,
        "cells": tuple(cells),
    }
    return EngineRates(**values | other)
