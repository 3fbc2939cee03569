"""`model inspect` asks the image's own vLLM: what each kind of model is, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import PROJECT
from support.flake import built

pytestmark = pytest.mark.nix

VENV, UID = "/opt/venvs/orchestrate", 1000
ENV = {
    "PATH": f"{VENV}/bin:/usr/sbin:/usr/bin",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "OMP_NUM_THREADS": "1",
}
PUBLISHED = {
    each["name"]: each
    for each in json.loads((PROJECT / "tests/data/models/published.json").read_text())
}


@pytest.fixture(scope="module")
def profile(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cluster that others run, whose one node is the image, entered as an ordinary user."""
    home = tmp_path_factory.mktemp("classes")
    node = {
        "name": "box",
        "host": "localhost",
        "enter": ["chroot", f"--userspec={UID}:{UID}", str(root)],
        "python": f"{VENV}/bin/python",
        "engine": f"{VENV}/bin/python",
    }
    text = {"name": "theirs", "machines": "existing", "endpoint": {"url": "http://127.0.0.1:9"},
            "nodes": [node], "serving": {"model": "m", "env": ENV}}  # fmt: skip
    (home / "theirs.yml").write_text(yaml.safe_dump(text))
    return home / "theirs.yml"


def told(profile: Path | str, home: Path, config: dict[str, Any], code: int = 0) -> dict[str, Any]:
    (home / "config.json").write_text(json.dumps(config))
    argv = ["model", "inspect", home / "config.json", "--profile", profile, "--json"]
    run = subprocess.run(
        [sys.executable, "-m", "orchestrator", *map(str, argv)], cwd=PROJECT, text=True,
        env=os.environ | {"ORCHESTRATE_STATE": str(home / "state"),
                          "ORCHESTRATE_CACHE": str(home / "cache")},
        capture_output=True, check=False, timeout=900,
    )  # fmt: skip
    assert run.returncode == code, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    return found


#: Bytes of a recurrence's number: vLLM's processor backend has 32 bits where AVX-512 has BF16.
RECURRENT = 4 if "avx512_bf16" in Path("/proc/cpuinfo").read_text() else 2


#: vLLM takes a minute for each kind.
LONG = pytest.mark.long


@pytest.mark.parametrize(
    ("name", "growing", "windows", "state"),
    [
        pytest.param("Qwen/Qwen3-8B", 2 * 36 * 8 * 128 * 2, {}, 0, marks=LONG),
        ("google/gemma-3-1b-it", 2 * 4 * 256 * 2, {"512": 2 * 22 * 256 * 2}, 0),
        pytest.param("Qwen/Qwen3-30B-A3B", 2 * 48 * 4 * 128 * 2, {}, 0, marks=LONG),
        pytest.param("deepseek-ai/DeepSeek-V2-Lite", 27 * (512 + 64) * 2, {}, 0, marks=LONG),
        # 64 layers with a window of 3 of 8192 in 16 bits, and 8192 states of 16.
        ("tiiuae/falcon-mamba-7b", 0, {}, 64 * 8192 * (3 * 2 + 16 * RECURRENT)),
    ],
    ids=["grouped queries", "sliding and full", "experts", "latent", "state"],
)
def test_a_model_of_each_kind(
    profile: Path, tmp_path: Path, root: Path, name: str, growing: int, windows: dict[str, int],
    state: int,
) -> None:  # fmt: skip
    entry = PUBLISHED[name]
    found = told(profile, tmp_path, entry["config"])
    assert (found["engine_not_asked"], found["refused"]) == ([], [])
    says = found["engine_classes"]
    assert says["vllm"].startswith("0.30.0") and says["platform"] == "cpu"
    assert found["origins"]["kv_bytes_per_token"] == f"vLLM {says['vllm']} (box)"
    assert abs(found["parameters"] / entry["published"] - 1) < 0.001
    # A Mamba layer's A, 8192 x 16 numbers, is kept in 32 bits.
    wide = 64 * 8192 * 16 if state else 0
    assert found["weight_bytes"] == 2 * (found["parameters"] + wide)
    assert (says["growing_bytes_per_token"], says["windows"]) == (growing, windows)
    assert says["state_bytes_per_request"] == state
    if not state or RECURRENT == 2:  # config.json says nothing of a processor's own format
        assert found["differences"] == []
    assert not list((root / "tmp").glob("orchestrate-*"))


def test_what_vllm_refuses_is_refused_with_its_words(profile: Path, tmp_path: Path) -> None:
    """The image leaves torchvision out: no list that is generated from vLLM's source says this."""
    found = told(profile, tmp_path, PUBLISHED["google/gemma-3-4b-it"]["config"], code=1)
    (why,) = found["refused"]
    assert why.startswith("vLLM 0.30.0+cpu (box) refuses it: ") and "'torchvision'" in why
    assert found["origins"]["parameters"] == "config.json"


def test_quantized_bytes_are_the_engines(profile: Path, tmp_path: Path) -> None:
    plain = PUBLISHED["Qwen/Qwen2.5-0.5B"]["config"]
    quantized = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True,
                 "version": "gemm"}  # fmt: skip
    found = told(profile, tmp_path, plain | {"quantization_config": quantized})
    assert abs(found["parameters"] / PUBLISHED["Qwen/Qwen2.5-0.5B"]["published"] - 1) < 0.001
    assert found["engine_classes"]["weight_bytes"] < 1.3 * found["parameters"]
    assert found["differences"] == []


def mounted() -> list[str]:
    """What is mounted where the image is for the program. Other tests mount elsewhere meanwhile."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [line for line in lines if line.split()[1].startswith("/mnt")]


def test_the_built_image_answers_where_no_node_does(tmp_path: Path) -> None:
    """It is entered as nobody, in namespaces of its own; the second time nothing is started."""
    (tmp_path / "state/images").mkdir(parents=True)
    built(f"{PROJECT}#pxe-sim", tmp_path / "state/images/pxe-sim")
    config = json.loads((PROJECT / "models/known-answers/config.json").read_text())
    before_it = mounted()
    found = told("sim", tmp_path, config)
    assert found["engine_classes"]["where"] == "image pxe-sim", found["engine_not_asked"]
    assert found["origins"]["parameters"] == "vLLM 0.30.0+cpu (image pxe-sim)"
    assert mounted() == before_it
    (kept,) = (tmp_path / "cache/models/engine").iterdir()
    before = kept.stat().st_mtime_ns
    assert told("sim", tmp_path, config) == found
    assert kept.stat().st_mtime_ns == before
