"""vLLM's own classes as a source of `model inspect`: what counts, what is said, what hangs.

Answers of the real vLLM are in tests/nix/test_engine_classes.py.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from orchestrator.attach import classes
from orchestrator.cli.model import model
from orchestrator.models.reading.classes import EngineSays
from orchestrator.models.reading.inspection import inspect
from orchestrator.models.reading.sources import ModelFiles

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 4,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 32,
    "vocab_size": 128,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
    "max_position_embeddings": 8192,
}
#: Of experts, and a token's keys and values of 16 bits.
EXPERTS, CACHE = 2 * 4 * 3 * 64 * 32, 2 * 2 * 2 * 16 * 2


def said(**changed: Any) -> EngineSays:
    read = inspect(ModelFiles("", "", CONFIG)).figure("parameters")
    answer = {
        "vllm": "0.30.0+cpu",
        "platform": "cpu",
        "parameters": read,
        "experts": EXPERTS,
        "weight_bytes": 2 * (read or 0),
        "cache": {"growing": CACHE, "windows": {}, "state": 0},
    }
    return EngineSays.of("node1", answer | changed)


def document(engine: EngineSays, **config: Any) -> dict[str, Any]:
    return inspect(ModelFiles("", "", CONFIG | config), engine=engine).document()


def test_the_engines_figures_count_and_say_so() -> None:
    found = document(said())
    origin = "vLLM 0.30.0+cpu (node1)"
    assert found["origins"] == {
        "parameters": origin,
        "weight_bytes": origin,
        "weight_bytes_on_disk": "config.json",
        "kv_bytes_per_token": origin,
        "state_bytes_per_request": origin,
    }
    assert found["differences"] == found["unread"] == found["refused"] == []
    assert found["active_parameters"] == found["parameters"] - EXPERTS * 3 // 4


def test_the_engine_differs_from_config_json() -> None:
    """2 % are allowed."""
    close = document(said(cache={"growing": 1.02 * CACHE, "windows": {}, "state": 0}))
    assert close["differences"] == []
    found = document(said(cache={"growing": 2 * CACHE, "windows": {}, "state": 0}))
    assert found["differences"] == [
        {
            "figure": "kv_bytes_per_token",
            "sources": {"vLLM 0.30.0+cpu (node1)": 2 * CACHE, "config.json": CACHE},
        }
    ]
    assert found["kv_bytes_per_token"] == 2 * CACHE
    assert found["unread"] == [
        f"kv bytes per token differ: {2 * CACHE} by vLLM 0.30.0+cpu (node1), {CACHE} by "
        "config.json; the first counts here"
    ]


def test_windows_of_the_engine_stop_growing() -> None:
    """A layer with a window keeps it and the tokens in flight, of a context of 8192."""
    cache = {"growing": CACHE / 2, "windows": {"1025": CACHE / 2}, "state": 7}
    found = document(said(cache=cache))
    kept = CACHE / 2 + CACHE / 2 * (1024 + 4096) / 8192
    assert found["kv_bytes_per_token"] == round(kept)
    assert found["kv_cache"]["windows"] == {"1025": CACHE // 2}
    assert found["kv_cache"]["state_bytes_per_request"] == 7


def test_what_the_engine_refuses() -> None:
    nothing = {"parameters": None, "weight_bytes": None, "cache": None}
    failed = nothing | {"stage": "configuration", "why": "no such rope"}
    found = document(said(**failed))
    assert found["refused"] == ["vLLM 0.30.0+cpu (node1) refuses it: no such rope"]
    assert found["origins"]["parameters"] == "config.json"
    # A build for cards that sees none speaks for the processor only.
    other = document(said(**failed, vllm="0.30.0+xpu"))
    assert other["refused"] == []
    text = "vLLM 0.30.0+xpu (node1), on cpu, could not make the configuration: no such rope"
    assert other["unread"] == [text]
    half = document(said(**nothing | {"stage": "model", "why": "no kernel"}))
    assert half["refused"] == [] and "could not make the model: no kernel" in half["unread"][0]


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A node of an attached cluster, this computer, whose vLLM is what a test writes to a file."""
    for name in ("CACHE", "STATE"):
        monkeypatch.setenv(f"ORCHESTRATE_{name}", str(tmp_path / name))
    site = tmp_path / "site"
    (site / "vllm-9.0.dist-info").mkdir(parents=True)
    (site / "vllm-9.0.dist-info/METADATA").write_text("Name: vllm\nVersion: 9.0\n")
    (site / "vllm").mkdir()
    profile = {
        "name": "theirs",
        "machines": "existing",
        "endpoint": {"url": "http://127.0.0.1:9"},
        "nodes": [{"name": "box", "host": "localhost", "python": sys.executable,
                   "engine": sys.executable}],
        "serving": {"model": "m", "env": {"PYTHONPATH": str(site), "HOME": str(tmp_path)}},
    }  # fmt: skip
    (tmp_path / "theirs.yml").write_text(yaml.safe_dump(profile))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    yield site / "vllm/__init__.py"


def told(node: Path, *words: str) -> tuple[Result, dict[str, Any]]:
    home = node.parents[2]
    argv = ["inspect", str(home / "config.json"), "--profile", str(home / "theirs.yml"), "--json"]
    result = CliRunner().invoke(model, [*argv, *words])
    return result, json.loads(result.stdout)


def test_a_program_that_hangs_is_ended_with_all_it_started(
    node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = node.with_name("pids")
    node.write_text(
        "import os, subprocess, time\n"
        "child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "time.sleep(600)\n"
    )
    monkeypatch.setattr(classes, "SECONDS", 20)
    begun = time.monotonic()
    result, found = told(node)
    assert time.monotonic() - begun < 300  # not the sleeps' ten minutes
    assert found["engine_not_asked"] == ["box: timed out after 20 s; killed"]
    assert (result.exit_code, found["origins"]["parameters"]) == (0, "config.json")
    running = [Path(f"/proc/{pid}/stat") for pid in pids.read_text().split()]
    assert len(running) == 2
    assert not [each for each in running if each.exists() and " Z " not in each.read_text()]
    assert not list((node.parents[2] / "CACHE").rglob("*.json"))  # so it is asked again


def test_a_vllm_that_fails_is_said_and_no_option_asks_nobody(node: Path) -> None:
    node.write_text("raise RuntimeError('broken install')\n")
    result, found = told(node)
    (why,) = found["engine_not_asked"]
    assert result.exit_code == 0 and "box" in why and "broken install" in why
    assert found["engine_classes"] is None
    _, silent = told(node, "--no-engine")
    assert silent["engine_not_asked"] == []


def test_code_of_the_models_own_is_never_near(node: Path) -> None:
    """It is not asked about at all."""
    home = node.parents[2]
    node.write_text(f"open({str(home / 'ran')!r}, 'w')\n")
    strange = CONFIG | {"model_type": "strange", "auto_map": {"AutoConfig": "code.Config"}}
    (home / "config.json").write_text(json.dumps(strange))
    _, found = told(node)
    assert found["engine_not_asked"] == [
        "the model needs code of its own, which is never run to inspect it"
    ]
    assert not (home / "ran").exists()


def test_it_runs_as_the_ordinary_user(node: Path) -> None:
    """Without rights beyond those of whoever asks; its home is its own."""
    node.write_text("import os\nraise RuntimeError(f\"{os.getuid()} {os.environ['HOME']}\")\n")
    _, found = told(node)
    assert f"{os.getuid()} " in found["engine_not_asked"][0]
    assert "/orchestrate-classes-" in found["engine_not_asked"][0]
