"""The engine that a probe starts: the image's own vLLM on the processor, two ranks, dummy weights,
from a config.json alone, as an ordinary user."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import PROJECT

pytestmark = [pytest.mark.nix, pytest.mark.long]

VENV, UID = "/opt/venvs/orchestrate", 1000
#: As in profiles/sim.yml: no compiler in the image, little memory, cores that are shared.
ENV = {
    "PATH": f"{VENV}/bin:/usr/sbin:/usr/bin",
    "HOME": "/home/owner",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "TORCH_COMPILE_DISABLE": "1",
}
ARGS = {"dtype": "bfloat16", "max-model-len": 256, "max-num-seqs": 4, "enforce-eager": True}
CONFIG = PROJECT / "models/known-answers/config.json"


class Probing:
    """A profile whose one node is the image, and where `orchestrate` keeps things."""

    def __init__(self, root: Path, home: Path) -> None:
        self.root, self.home, self.path = root, home, home / "probed.yml"
        node = {
            "name": "box",
            "host": "localhost",
            "enter": ["chroot", f"--userspec={UID}:{UID}", str(root)],
            "python": f"{VENV}/bin/python",
            "engine": f"{VENV}/bin/python",
            "ranks": 2,
        }
        serving = {"model": "known-answers", "tensor_parallel": 2, "args": ARGS, "env": ENV}
        self.profile: dict[str, Any] = {
            "name": "probed",
            "machines": "existing",
            "endpoint": {"url": "http://127.0.0.1:9"},
            "nodes": [node],
            "serving": serving,
        }

    def started(self, *words: str | Path) -> subprocess.Popen[str]:
        self.path.write_text(yaml.safe_dump(self.profile))
        probe = ["probe", "--profile", self.path, "--only", "engine", *words]
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator", *map(str, probe)], cwd=PROJECT, text=True,
            env=os.environ | {"ORCHESTRATE_STATE": str(self.home / "state")},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def json(self, *words: str | Path) -> dict[str, Any]:
        run = self.started(*words, "--json")
        out, err = run.communicate(timeout=1800)
        assert run.returncode == 0, err
        found: dict[str, Any] = json.loads(out)
        return found

    def left(self) -> list[str]:
        """Its processes, and its directories."""
        found = [str(each) for each in (self.root / "tmp").glob("orchestrate-*")]
        for process in Path("/proc").iterdir():
            try:
                if process.name.isdigit() and (process / "root").readlink() == self.root:
                    found.append((process / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
        return found


@pytest.fixture(scope="module")
def probing(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Probing]:
    (root / "home/owner").mkdir()
    os.chown(root / "home/owner", UID, UID)
    yield Probing(root, tmp_path_factory.mktemp("engine"))


def test_all_layers_with_dummy_weights(probing: Probing) -> None:
    found = probing.json("--dummy", CONFIG, "--force", "--seconds", "60")
    layers = json.loads(CONFIG.read_text())["num_hidden_layers"]
    assert (found["layers"], found["of_layers"], found["weights"]) == (layers, layers, "dummy")
    assert found["kv_tokens"] > 256 and found["versions"]["vllm"]
    cells = {(each["prompt_tokens"], each["concurrency"]): each for each in found["cells"]}
    for load in ((16, 1), (16, 4), (128, 1), (16, 2)):  # on a busy machine some are left out
        said = f"no time for {load[1]} x {load[0]} tokens"
        assert load in cells or any(each.startswith(said) for each in found["notes"])
    for each in cells.values():
        assert each["ttft_s"]["n"] >= 3
        assert 0 < each["tpot_s"]["low"] <= each["tpot_s"]["median"] <= each["tpot_s"]["high"]
    assert probing.left() == []
    again = probing.json("--dummy", CONFIG.parent)
    assert again["known"] and again["cells"] == found["cells"]


def test_an_engine_that_refuses_says_why(probing: Probing) -> None:
    config = json.loads(CONFIG.read_text()) | {"architectures": ["NoSuchForCausalLM"]}
    file = probing.home / "config.json"
    file.write_text(json.dumps(config))
    run = probing.started("--dummy", file, "--force")
    _, err = run.communicate(timeout=900)
    assert run.returncode == 1
    assert "the engine ended" in err and "NoSuchForCausalLM" in err, err
    assert probing.left() == []


def test_ctrl_c_while_the_engine_starts_leaves_nothing(probing: Probing) -> None:
    run = probing.started("--dummy", CONFIG, "--force")
    assert run.stderr is not None
    assert any("starts: " in line for line in run.stderr)
    assert len(probing.left()) > 1
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=120)
    assert run.returncode not in (0, None)
    until = time.monotonic() + 60
    while probing.left() and time.monotonic() < until:
        time.sleep(0.5)
    assert probing.left() == []


def test_one_engine_on_two_nodes(probing: Probing) -> None:
    """Both are this machine, with a rank each, joined by vLLM's own executor."""
    (node,) = probing.profile["nodes"]
    two = [node | {"name": name, "address": "127.0.0.1", "ranks": 1} for name in ("a", "b")]
    probing.profile["nodes"] = two
    try:
        found = probing.json("--dummy", CONFIG, "--force", "--seconds", "40")
    finally:
        probing.profile["nodes"] = [node]
    assert (found["nodes"], found["tensor"]) == (["a", "b"], 2)
    assert found["cells"] and found["link_bytes_per_s"] > 1e6
    assert probing.left() == []
