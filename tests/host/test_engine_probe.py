"""An engine that is started to be measured, and its faults: whatever happens, nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import PROJECT
from support.account import until
from support.engine_like import FOR_EVER, VERSION, site

from orchestrator.attach import engine
from orchestrator.attach.engine_start import EngineFailed
from orchestrator.core.progress import Board
from orchestrator.performance.probe import engine as probe_engine
from orchestrator.performance.probe.engine import BOOT
from orchestrator.performance.probe.node_engine import ENDING
from orchestrator.profile.load import load_attached

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_attention_heads": 4,
    "vocab_size": 100,
}


class Probing:
    """A profile with one node, this computer, and everything that a probe may leave."""

    def __init__(self, home: Path) -> None:
        self.home, self.scratch = home, home / "scratch"
        self.scratch.mkdir()
        self.site = site(home / "site")
        self.args: dict[str, Any] = {"max-model-len": 64, "max-num-seqs": 2}
        self.nodes: list[dict[str, Any]] = [
            {"name": "here", "host": "localhost", "engine": sys.executable, "ranks": 1}
        ]
        self.layers(8)

    def layers(self, count: int, **more: Any) -> Path:
        path = self.home / "config.json"
        path.write_text(json.dumps(CONFIG | {"num_hidden_layers": count} | more))
        return path

    def profile(self) -> Path:
        path = self.home / "tried.yml"
        serving = {"tensor_parallel": len(self.nodes), "model": "m", "args": self.args}
        document = {
            "name": "tried",
            "machines": "existing",
            "endpoint": {"url": "http://127.0.0.1:9"},
            "nodes": self.nodes,
            "serving": serving | {"env": {"PYTHONPATH": str(self.site)}},
        }
        path.write_text(yaml.safe_dump(document))
        return path

    @property
    def env(self) -> dict[str, str]:
        own = {"ORCHESTRATE_STATE": str(self.home / "state"), "TMPDIR": str(self.scratch)}
        return os.environ | own | {"VLLM_API_KEY": "somebody's"}

    def started(self, *words: str) -> subprocess.Popen[str]:
        probe = ["probe", "--profile", str(self.profile()), "--only", "engine", "--dummy"]
        argv = [sys.executable, "-m", "orchestrator", *probe, str(self.home / "config.json")]
        return subprocess.Popen(
            [*argv, *words], cwd=PROJECT, env=self.env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def json(self, *words: str) -> dict[str, Any]:
        run = self.started("--json", "--force", *words)
        out, err = run.communicate(timeout=300)
        assert run.returncode == 0, err
        found: dict[str, Any] = json.loads(out)
        return found

    def refused(self, *words: str) -> str:
        run = self.started("--force", *words)
        _, err = run.communicate(timeout=300)
        assert run.returncode in (1, 2), err
        assert "Traceback" not in err
        return err

    def processes(self) -> dict[int, str]:
        """Command lines of engines' processes: these have the site in their environment."""
        found, mark = {}, str(self.site).encode()
        for process in list(Path("/proc").iterdir()):
            try:
                if process.name.isdigit() and mark in (process / "environ").read_bytes():
                    found[int(process.name)] = (process / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
        return found

    def left(self) -> list[str]:
        """What there is of engines: directories and processes."""
        directories = self.scratch.glob("orchestrate-engine-*")
        return [*map(str, directories), *self.processes().values()]


@pytest.fixture
def probing(tmp_path: Path) -> Probing:
    return Probing(tmp_path)


def test_it_is_measured_and_known_afterwards(probing: Probing) -> None:
    found = probing.json()
    assert (found["layers"], found["of_layers"], found["kv_tokens"]) == (8, 8, 1024)
    assert found["versions"]["vllm"] == VERSION
    assert {each["concurrency"] for each in found["cells"]} == {1, 2}
    assert found["known"] is False
    assert probing.left() == []
    run = probing.started("--json")
    again = json.loads(run.communicate(timeout=120)[0])
    assert again["known"] and again["time"] == found["time"]
    probing.args["enforce-eager"] = True
    assert probing.json()["key"] != found["key"]


def test_where_not_all_layers_fit_two_depths_and_a_line(probing: Probing) -> None:
    probing.args["fault"] = "small"
    found = probing.json()
    assert (found["layers"], found["of_layers"], found["kv_tokens"]) == (4, 8, None)
    assert found["notes"][0] == "a straight line through 2 and 4 layers, carried to 8"
    assert probing.left() == []


def test_depths_that_were_asked_for(probing: Probing) -> None:
    found = probing.json("--layers", "2,3")
    assert (found["layers"], found["of_layers"]) == (3, 8)


def test_an_engine_without_room_says_so_in_its_own_words(probing: Probing) -> None:
    probing.args["fault"] = "small"
    probing.layers(8, layer_types=list("abcdefgh"))
    said = probing.refused()
    assert "the engine ended: " in said
    assert "ValueError: No available memory for the cache blocks." in said
    assert probing.left() == []


def test_a_model_of_one_layer(probing: Probing) -> None:
    probing.layers(1)
    assert probing.json()["layers"] == 1
    assert "--layers wants two numbers" in probing.refused("--layers", "1,2")


def test_a_models_own_code_is_never_run(probing: Probing) -> None:
    probing.layers(8, auto_map={"AutoModel": "evil.Model"})
    assert "auto_map" in probing.refused()


def test_an_engine_that_hangs_is_ended_at_its_deadline(
    probing: Probing, monkeypatch: pytest.MonkeyPatch
) -> None:
    probing.args["fault"] = "hangs"
    monkeypatch.setattr(probe_engine, "START_S", 3.0)
    monkeypatch.setenv("TMPDIR", str(probing.scratch))
    monkeypatch.setenv("ORCHESTRATE_STATE", str(probing.home / "state"))
    profile = load_attached(probing.profile())
    config = json.loads((probing.home / "config.json").read_text())
    with pytest.raises(EngineFailed, match="did not start within 3 s"):
        engine.dummy(profile, Board(quiet=True), config, 60, again=True, force=True)
    assert probing.left() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whoever_asked_is_gone(probing: Probing, number: signal.Signals) -> None:
    """Ctrl-C, a signal, a killed process: the engine ends by itself, whatever it left."""
    probing.args["fault"] = "stubborn"
    run = probing.started("--force")
    assert run.stderr is not None
    assert any("round 1" in line for line in run.stderr)
    assert len(probing.left()) >= 4  # its directory, the program, the engine, what that left
    run.send_signal(number)
    run.communicate(timeout=60)
    assert run.returncode != 0
    assert any(probing.left() == [] for _ in until(2 * ENDING)), probing.left()


def test_a_node_that_is_lost_ends_the_engine_and_is_named(probing: Probing) -> None:
    probing.args["fault"] = "stubborn"
    run = probing.started("--force")
    assert run.stderr is not None
    assert any("round 1" in line for line in run.stderr)
    (program,) = [pid for pid, words in probing.processes().items() if BOOT in words]
    os.kill(program, signal.SIGKILL)
    said = run.communicate(timeout=60)[1]
    assert run.returncode == 1
    assert "here: lost while its engine was measured" in said
    # With nobody to end it, the engine ends all the same; what that left in a session of its own
    # is out of reach.
    assert any(all(FOR_EVER in each for each in probing.left()) for _ in until(3 * ENDING)), (
        probing.left()
    )
    for pid in probing.processes():
        os.kill(pid, signal.SIGKILL)


def test_ranks_of_several_nodes_are_one_engine(probing: Probing) -> None:
    """Both are this computer; the second one's ranks are held until the first has measured."""
    (node,) = probing.nodes
    probing.nodes = [node | {"name": name, "address": "127.0.0.1"} for name in ("a", "b")]
    found = probing.json()
    assert (found["tensor"], found["nodes"]) == (2, ["a", "b"])
    assert found["link_bytes_per_s"] > 1e6 and 0 < found["link_latency_s"] < 1
    assert probing.left() == []
