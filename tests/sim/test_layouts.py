"""The model on other numbers of nodes than the profile says, and back."""

from __future__ import annotations

import os
import signal

import pytest
from support.sim import ANYHOW, TIMEOUT, Sim, failed, wait_for

pytestmark = pytest.mark.sim


@pytest.mark.usefixtures("serving")
def test_one_node_is_measured_and_all_of_them_after_it(sim: Sim) -> None:
    sim.run("bench", "run", "--workload", "brief", "--repeats", "2", "--against-one-node")
    alone, together = (run["id"] for run in sim.json("bench", "ls")[-2:])
    compared = sim.run("bench", "compare", alone, together).stdout
    assert "layout tensor 1" in compared and "to tensor 2" in compared
    assert "Does clustering help? brief: " in sim.run("bench", "show", together).stdout
    assert sim.json("verify")["ok"]


@pytest.mark.usefixtures("serving")
def test_the_engine_is_measured_with_dummy_weights_and_the_model_served_again(sim: Sim) -> None:
    found = sim.json("probe", "--only", "engine", "--dummy")
    assert (found["weights"], found["tensor"]) == ("dummy", 2)
    assert found["layers"] == found["of_layers"] and found["kv_tokens"]
    assert {each["concurrency"] for each in found["cells"]} >= {1, 2}
    assert sim.json("verify")["ok"]
    process = sim.start("probe", "--only", "engine", "--dummy", "--force")
    wait_for(process, "engine", "...")
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130 and "Traceback" not in said
    assert sim.json("verify")["ok"]


@pytest.mark.usefixtures("ray")
def test_two_stages_answer_as_two_halves_do(sim: Sim) -> None:
    """Answers are known word for word, and verified. The model is not loaded otherwise before."""
    before = sim.profile.read_text()
    staged = before.replace("tensor_parallel: auto", "tensor_parallel: 1")
    staged = staged.replace("pipeline_parallel: 1", "pipeline_parallel: 2")
    assert staged.count("parallel: 2") == 1
    sim.state = ANYHOW
    try:
        sim.profile.write_text(staged)
        result = sim.json("up", ok=None)
        assert result["ok"], result["failures"] or failed(result["verify"])
        assert "--pipeline-parallel-size" in sim.shell("compute0", "ps", "axww", "-o", "args")
    finally:
        sim.profile.write_text(before)
