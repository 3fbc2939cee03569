"""How a model is spread over the accelerators, and the words that vLLM is started with."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.profiles import CONFIG, PROFILE, make_checkout

from orchestrator.core.errors import BadInput
from orchestrator.models.flags import EXECUTOR, deciding
from orchestrator.models.profiles import load
from orchestrator.models.serving import Layout, copies, copy_of, layout, resolve, vllm_argv
from orchestrator.profile import Profile

EXPERTS = {**CONFIG, "num_local_experts": 8}
CANNOT = {"no_expert_parallel": "no collectives for it"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("checkout")
        patch.setenv("ORCHESTRATE_CHECKOUT", str(root))
        return load(make_checkout(root))


def with_serving(profile: Profile, accelerators: int = 2, **serving: Any) -> Profile:
    """The profile with other sizes, its accelerators all on one node."""
    node = profile.compute_nodes[0].model_copy(update={"accelerators": accelerators})
    changed = profile.serving.model_copy(update=serving)
    return profile.model_copy(update={"compute_nodes": (node,), "serving": changed})


@pytest.mark.parametrize(
    ("accelerators", "serving", "config", "expected"),
    [
        (1, {}, CONFIG, Layout(1, 1, False, 1)),
        (2, {}, CONFIG, Layout(2, 1, False, 2)),
        (3, {}, CONFIG, Layout(2, 1, False, 3)),
        (16, {}, CONFIG, Layout(8, 1, False, 16)),
        (4, {"pipeline_parallel": 2}, CONFIG, Layout(2, 2, False, 4)),
        (3, {"pipeline_parallel": "auto"}, CONFIG, Layout(1, 3, False, 3)),
        (4, {"pipeline_parallel": "auto"}, CONFIG, Layout(4, 1, False, 4)),
        (6, {"tensor_parallel": 2, "pipeline_parallel": "auto"}, CONFIG, Layout(2, 3, False, 6)),
        (64, {"tensor_parallel": 1, "pipeline_parallel": "auto"}, CONFIG, Layout(1, 4, False, 64)),
        (2, {}, EXPERTS, Layout(2, 1, True, 2)),
        (1, {}, EXPERTS, Layout(1, 1, False, 1)),
        (2, {"expert_parallel": False}, EXPERTS, Layout(2, 1, False, 2)),
        (2, {"expert_parallel": True}, EXPERTS, Layout(2, 1, True, 2)),
        (2, {}, {"num_experts": None, "n_routed_experts": 64}, Layout(2, 1, True, 2)),
        (2, {}, {"moe_num_experts": [4, 4]}, Layout(2, 1, True, 2)),
        (2, {}, {"text_config": EXPERTS}, Layout(2, 1, True, 2)),
        (3, {}, {"text_config": CONFIG}, Layout(2, 1, False, 3)),
        (3, {}, {}, Layout(3, 1, False, 3)),
        (3, {}, {"num_attention_heads": "many"}, Layout(3, 1, False, 3)),
        (3, {}, {"num_attention_heads": 6, "num_key_value_heads": 2}, Layout(2, 1, False, 3)),
        (4, {}, {"num_attention_heads": 8, "num_key_value_heads": 2}, Layout(4, 1, False, 4)),
        (4, {}, {"num_attention_heads": 8, "intermediate_size": 6}, Layout(2, 1, False, 4)),
        (4, {}, {"intermediate_size": 6, "num_experts": 8}, Layout(4, 1, True, 4)),
    ],
)
def test_layouts(
    accelerators: int,
    serving: dict[str, Any],
    config: dict[str, Any],
    expected: Layout,
    base: Profile,
) -> None:
    assert layout(with_serving(base, accelerators, **serving), config, {}) == expected


@pytest.mark.parametrize(
    ("serving", "config", "capabilities", "expected"),
    [
        (
            {"tensor_parallel": 4},
            CONFIG,
            {},
            "tensor_parallel: needs 4 x 1 accelerators, the compute nodes have 2; "
            "make it smaller, or auto",
        ),
        (
            {"pipeline_parallel": 3},
            CONFIG,
            {},
            "pipeline_parallel: needs 3 accelerators, the compute nodes have 2; "
            "make it smaller, or auto",
        ),
        (
            {"tensor_parallel": 3},
            CONFIG,
            {},
            "tensor_parallel: 3 does not divide the model's 8 attention heads; "
            "allowed: 1, 2 or auto",
        ),
        (
            {"tensor_parallel": 2},
            {"num_attention_heads": 6, "num_key_value_heads": 3},
            {},
            "tensor_parallel: 2 neither divides the model's 3 key-value heads nor is a multiple "
            "of them; allowed: 1 or auto",
        ),
        (
            {"tensor_parallel": 2},
            {"num_attention_heads": 6, "intermediate_size": 5},
            {},
            "tensor_parallel: 2 does not divide the model's intermediate_size 5; "
            "allowed: 1 or auto",
        ),
        (
            {"pipeline_parallel": 5},
            CONFIG,
            {},
            "pipeline_parallel: 5 stages are more than the model's 4 layers; "
            "allowed: 1 to 4, or auto",
        ),
        (
            {"expert_parallel": True},
            CONFIG,
            {},
            "expert_parallel: true is not possible: the model tiny has no experts; "
            "allowed: false or auto",
        ),
        (
            {"expert_parallel": True},
            EXPERTS,
            CANNOT,
            "expert_parallel: true is not possible: the image plain does not support it: no "
            "collectives for it; allowed: false or auto",
        ),
        (
            {"expert_parallel": True, "tensor_parallel": 1},
            EXPERTS,
            {},
            "expert_parallel: true is not possible: expert parallelism needs two or more "
            "tensor-parallel ranks; there is one; allowed: false or auto",
        ),
    ],
)
def test_contradictions_are_refused_where_they_stand(
    serving: dict[str, Any],
    config: dict[str, Any],
    capabilities: dict[str, str],
    expected: str,
    base: Profile,
) -> None:
    with pytest.raises(BadInput) as raised:
        layout(with_serving(base, **serving), config, capabilities)
    where, _, text = raised.value.message.partition(": serving.")
    assert text == expected
    assert where.endswith("small.yml:34")  # the keys are not in the file; their section is


def test_a_given_size_is_refused_in_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATE_CHECKOUT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    text = PROFILE.replace("  model: tiny", "  model: tiny\n  tensor_parallel: 3")
    profile = load(make_checkout(tmp_path, text))
    with pytest.raises(BadInput, match=r"^profiles/small.yml:36: serving.tensor_parallel: 3 does"):
        resolve(profile)


def test_an_image_that_cannot_spread_experts_is_respected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATE_CHECKOUT", str(tmp_path))
    file = make_checkout(tmp_path, config=EXPERTS)
    assert resolve(load(file)) == Layout(2, 1, True, 2)
    image = tmp_path / "images/plain/image.yml"
    image.write_text("capabilities:\n  no_expert_parallel: not here\n")
    assert resolve(load(file)) == Layout(2, 1, False, 2)


def on_nodes(profile: Profile, accelerators: list[int], **serving: Any) -> Profile:
    """The profile with other sizes, on nodes with so many accelerators each."""
    first = profile.compute_nodes[0]
    nodes = tuple(
        first.model_copy(
            update={
                "name": f"n{number}",
                "accelerators": count,
                "links": {
                    "lan": first.links["lan"].model_copy(
                        update={"address": IPv4Address("10.0.0.100") + number}
                    )
                },
            }
        )
        for number, count in enumerate(accelerators)
    )
    changed = profile.serving.model_copy(update=serving)
    return profile.model_copy(update={"compute_nodes": nodes, "serving": changed})


@pytest.mark.parametrize(
    ("nodes", "serving", "expected"),
    [
        ([1, 1], {"data_parallel": 2}, Layout(1, 1, False, 2, 2)),
        ([1, 1, 1, 1], {"data_parallel": 2}, Layout(2, 1, False, 4, 2)),
        ([1, 1, 1, 1], {"data_parallel": 4}, Layout(1, 1, False, 4, 4)),
        # The smallest group decides.
        ([2, 1, 1, 1], {"data_parallel": 4}, Layout(1, 1, False, 5, 4)),
        ([2, 2], {"data_parallel": 2}, Layout(2, 1, False, 4, 2)),
        # auto: after the sizes, which come first.
        ([1, 1, 1, 1], {"data_parallel": "auto"}, Layout(4, 1, False, 4, 1)),
        (
            [1, 1, 1, 1],
            {"data_parallel": "auto", "tensor_parallel": 1},
            Layout(1, 1, False, 4, 4),
        ),
        ([1, 1, 1], {"data_parallel": "auto", "tensor_parallel": 2}, Layout(2, 1, False, 3, 1)),
        ([1] * 6, {"data_parallel": "auto", "tensor_parallel": 2}, Layout(2, 1, False, 6, 3)),
        ([2, 1, 1], {"data_parallel": "auto", "tensor_parallel": 2}, Layout(2, 1, False, 4, 1)),
        # mp: as many ranks on each node.
        ([1, 1], {"executor": "mp"}, Layout(2, 1, False, 2)),
        ([2, 1], {"executor": "mp"}, Layout(2, 1, False, 3)),
        ([4, 2, 2], {"executor": "mp"}, Layout(4, 1, False, 8)),
        ([1, 1, 1, 1], {"executor": "mp", "data_parallel": 2}, Layout(2, 1, False, 4, 2)),
    ],
)
def test_copies(nodes: list[int], serving: dict[str, Any], expected: Layout, base: Profile) -> None:
    profile = on_nodes(base, nodes, **serving)
    found = layout(profile, CONFIG, {})
    assert found == expected
    groups = copies(profile, found.data)
    assert [node.name for copy in groups for node in copy.nodes] == [
        node.name for node in profile.compute_nodes
    ]
    assert len({len(copy.nodes) for copy in groups}) == 1
    for copy in groups:
        members = copy.members(found.ranks) if not profile.serving.by_ray else copy.nodes[:1]
        assert members and members[0] is copy.server
        assert all(copy_of(profile, found, node) == copy for node in members)
        assert len(copy.devices(found.ranks)) == found.ranks


@pytest.mark.parametrize(
    ("nodes", "serving", "expected"),
    [
        (
            [1, 1],
            {"data_parallel": 2, "tensor_parallel": 2},
            "tensor_parallel: needs 2 x 1 accelerators, a group of nodes of 2 copies has 1; "
            "make it smaller, or auto",
        ),
        (
            [1, 0],
            {"data_parallel": 2},
            "data_parallel: 2 copies leave a group of nodes without an accelerator; "
            "allowed: fewer, or auto",
        ),
        (
            [1, 2],
            {"executor": "mp", "tensor_parallel": 1, "pipeline_parallel": 3},
            "executor: mp puts as many ranks on each node of a copy, and its nodes' accelerators "
            "do not allow it with these sizes; allowed: ray",
        ),
    ],
)
def test_copies_that_cannot_be_are_refused(
    nodes: list[int], serving: dict[str, Any], expected: str, base: Profile
) -> None:
    with pytest.raises(BadInput) as raised:
        layout(on_nodes(base, nodes, **serving), CONFIG, {})
    assert raised.value.message.partition(": serving.")[2] == expected


def test_an_engine_of_another_executor_is_another_engine(base: Profile) -> None:
    own = base.serving.model_copy(update={"executor": "mp"})
    assert deciding(base.serving) == base.serving.args
    assert deciding(own) == {**base.serving.args, EXECUTOR: "mp"}


def test_the_words_of_vllms_own_executor(base: Profile) -> None:
    profile = on_nodes(base, [1, 1, 1, 1], executor="mp", data_parallel=2, args={})
    whole = layout(profile, CONFIG, {})
    server, worker = profile.compute_nodes[2:]
    words = vllm_argv(profile, "/m", whole, server)
    assert words[words.index("--distributed-executor-backend") :] == [
        *["--distributed-executor-backend", "mp", "--nnodes", "2", "--node-rank", "0"],
        *["--master-addr", "10.0.0.102"],
    ]
    assert "10.0.0.102" in words
    words = vllm_argv(profile, "/m", whole, worker)
    assert words[-5:] == ["--node-rank", "1", "--master-addr", "10.0.0.102", "--headless"]
    one = on_nodes(base, [1], executor="mp", args={})
    words = vllm_argv(one, "/m", layout(one, CONFIG, {}))
    assert words[-2:] == ["--distributed-executor-backend", "mp"]


SIZES = st.integers(1, 8) | st.just("auto")


@given(
    accelerators=st.integers(1, 64),
    sizes=st.fixed_dictionaries({"tensor_parallel": SIZES, "pipeline_parallel": SIZES}),
    config=st.fixed_dictionaries(
        {
            "num_attention_heads": st.integers(1, 96),
            "num_key_value_heads": st.integers(1, 16),
            "num_hidden_layers": st.integers(1, 80),
        }
    ),
)
def test_a_layout_fits_the_accelerators_and_the_model(
    accelerators: int, sizes: dict[str, Any], config: dict[str, int], base: Profile
) -> None:
    tensor, pipeline = sizes["tensor_parallel"], sizes["pipeline_parallel"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    profile = with_serving(base, accelerators, **sizes)
    try:
        found = layout(profile, config, {})
    except BadInput:
        assert not (tensor == pipeline == "auto"), "auto always finds a layout"
        return
    assert found.used <= accelerators
    assert heads % found.tensor == 0
    assert kv_heads % found.tensor == 0 or found.tensor % kv_heads == 0
    assert found.pipeline <= config["num_hidden_layers"]
    assert tensor in ("auto", found.tensor)
    assert pipeline in ("auto", found.pipeline)


def test_the_words_of_vllm(base: Profile) -> None:
    args = {"dtype": "half", "max-model-len": 256, "enforce-eager": True, "async": False, "x": 0.5}
    profile = with_serving(base, args=args)
    assert vllm_argv(profile, Path("/models/tiny"), Layout(2, 1, True, 2)) == [
        *["serve", "/models/tiny", "--served-model-name", "tiny"],
        *["--host", "10.0.0.100", "--port", "8000"],
        *["--tensor-parallel-size", "2", "--pipeline-parallel-size", "1"],
        *["--enable-expert-parallel", "--distributed-executor-backend", "ray"],
        *["--dtype", "half", "--max-model-len", "256", "--enforce-eager", "--no-async"],
        *["--x", "0.5"],
    ]
    plain = vllm_argv(profile, "/models/tiny", Layout(2, 1, False, 2))
    assert "--enable-expert-parallel" not in plain
