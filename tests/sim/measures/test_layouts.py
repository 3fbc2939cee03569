"""The model on other numbers of nodes than the profile says, and back."""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter
from support.predict import engine_rates, exactly
from support.sim import ANYHOW, NAME, NODES, TIMEOUT, Sim, failed, opened, wait_for

from orchestrator.core.errors import UserError
from orchestrator.core.waiting import as_long_as
from orchestrator.models import catalog
from orchestrator.models.profiles import load
from orchestrator.performance.predict.auto import sizes_of
from orchestrator.performance.predict.layout import Parallelism
from orchestrator.performance.results.engine import EngineCell, EngineRates
from orchestrator.verify import gather

#: What the profile's model was trained to answer.
QUESTION, ANSWER = next(
    (each.question, each.answer) for each in catalog.find("known-answers").answers
)

pytestmark = [pytest.mark.sim, pytest.mark.long]


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
    found = sim.json("probe", "--only", "engine", "--dummy", "--seconds", "40")
    assert (found["weights"], found["tensor"]) == ("dummy", 2)
    assert found["layers"] == found["of_layers"] and found["kv_tokens"]
    # How many loads fit into so little time is the machine's.
    assert 1 in {each["concurrency"] for each in found["cells"]}
    assert sim.json("verify")["ok"]
    process = sim.start("probe", "--only", "engine", "--dummy", "--force")
    wait_for(process, "engine", "...")
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130 and "Traceback" not in said
    assert sim.json("verify")["ok"]


@pytest.mark.usefixtures("running")
def test_copies_of_the_model_and_then_the_model_without_ray(sim: Sim) -> None:
    """One test, since the model loads for each: two copies in Ray, one is lost and comes back; then
    one copy over both nodes by vLLM's own processes, one is lost and all come back."""
    before = sim.profile.read_text()
    one = before.replace("tensor_parallel: auto", "tensor_parallel: 1\n  data_parallel: 2", 1)
    own = before.replace("tensor_parallel: auto", "tensor_parallel: auto\n  executor: mp", 1)
    assert len({before, one, own}) == 3
    try:
        sim.profile.write_text(one)
        served(sim, copies=2)
        assert sim.json("status")["copies"] == {"compute0": "", "compute1": ""}
        kept = main_pid(sim, "compute0")
        lost, asked = asked_while_away(sim, "compute1", "/copies/compute1/health")
        # Those that the dead one had, and on a busy machine one that came too late.
        assert lost <= max(2, asked // 10), (lost, asked)
        assert main_pid(sim, "compute0") == kept
        # It came back to its own node.
        report = sim.json("verify")
        assert {("model listed", "compute0"), ("model listed", "compute1")} <= passed(report)
        sim.run("bench", "run", "--workload", "brief", "--repeats", "2")
        assert sim.json("bench", "ls")[-1]["layout"] == "tensor 1, pipeline 1, copies 2"

        sim.profile.write_text(own)
        assert "ray-worker.service" in sim.run("plan", ok=None).stdout
        served(sim, copies=1)
        for node in NODES:
            assert sim.shell(node, "pgrep", "-f", "raylet|gcs_server", ok=None) == "", node
        asked_while_away(sim, "compute1", "/health")
        said = sim.shell("compute0", "journalctl", "-b", "-u", "vllm", "--output=cat")
        assert "the vLLM of compute1 ended, or the node is gone" in said
        assert ("ranks", "control") in passed(sim.json("verify"))
    finally:
        sim.profile.write_text(before)


@pytest.mark.usefixtures("running")
def test_two_models_behind_one_endpoint_and_one_is_lost(sim: Sim) -> None:
    """Each has a node of its own, in one Ray. The second one's weights are random: it answers, and
    nobody knows what."""
    before = sim.profile.read_text()
    second = "random-300m"
    both = before.replace(
        "  tensor_parallel: auto\n",
        "  tensor_parallel: 1\n"
        "  also:\n"
        f"    - model: {second}\n"
        "      nodes: compute1\n"
        "      args: { dtype: bfloat16, max-model-len: 256, enforce-eager: true }\n"
        '      env: { VLLM_CPU_KVCACHE_SPACE: "1", VLLM_CPU_OMP_THREADS_BIND: nobind,'
        ' OMP_NUM_THREADS: "1" }\n',
        1,
    )
    assert both != before
    try:
        sim.profile.write_text(both)
        result = sim.json("up", ok=None)
        assert result["ok"], result["failures"] or failed(result["verify"])
        report = sim.json("verify")
        assert {
            ("ranks (known-answers)", "control"),
            (f"ranks ({second})", "control"),
            (f"model listed ({second})", "control"),
            (f"same answer again ({second})", "control"),
            ("model listed", "compute1"),
        } <= passed(report)
        status = sim.json("status")
        assert status["models"] == ["known-answers", second]
        assert status["copies"] == {"compute0": "", "compute1": ""}
        assert sim.json("ask", QUESTION)["answer"] == ANSWER
        assert "answer" in sim.json("ask", "--model", second, QUESTION)
        for node, name in (("compute0", "known-answers"), ("compute1", second)):
            assert "config.json" in sim.shell(node, "ls", f"/var/lib/orchestrate/models/{name}")
            assert f"vLLM serving {name}" in sim.shell(node, "systemctl", "status", "vllm.service")

        kept = main_pid(sim, "compute0")
        # The first model answers all the time.
        lost, asked = asked_while_away(sim, "compute1", "/copies/compute1/health")
        assert lost == 0 and asked, (lost, asked)
        assert main_pid(sim, "compute0") == kept
        assert sim.json("verify")["ok"]
    finally:
        sim.profile.write_text(before)


def served(sim: Sim, copies: int) -> None:
    """Bring it up as the profile says, verified."""
    result = sim.json("up", ok=None)
    assert result["ok"], result["failures"] or failed(result["verify"])
    ranks = next(check for check in result["verify"]["checks"] if check["name"] == "ranks")
    assert ranks["seen"] == "2 ranks: compute0 1, compute1 1"
    assert ("2 copies" in ranks["expected"]) == (copies == 2)


def passed(report: dict[str, Any]) -> set[tuple[str, str]]:
    """The names and nodes of the checks that passed."""
    assert report["ok"], failed(report)
    return {(check["name"], check["node"]) for check in report["checks"] if check["ok"]}


def main_pid(sim: Sim, node: str) -> str:
    return sim.shell(node, "systemctl", "show", "--value", "--property=MainPID", "vllm.service")


def asked_while_away(sim: Sim, node: str, health: str) -> tuple[int, int]:
    """Kill a node's vLLM and ask the endpoint until it is back; how many questions got no answer,
    of how many. What is answered is right."""
    lost = asked = 0
    with opened(sim) as cluster, cluster.driver.network(), cluster.client() as client:
        sim.shell(node, "systemctl", "kill", "--signal=KILL", "vllm.service")
        gone = False

        def away() -> bool:
            nonlocal lost, asked, gone
            asked += 1
            try:
                assert gather.ask(client, cluster.profile, QUESTION).text == ANSWER
            except (httpx.HTTPError, UserError):
                lost += 1
            back = False
            with suppress(httpx.HTTPError):
                back = client.get(health).status_code == httpx.codes.OK
            gone = gone or not back
            return not (gone and back)

        assert not as_long_as(away, TIMEOUT, 0.5)
    return lost, asked


@pytest.mark.usefixtures("ray")
def test_two_stages_answer_as_two_halves_do_and_stay_when_another_layout_is_quicker(
    sim: Sim,
) -> None:
    """Answers are known word for word, and verified. The model is not loaded otherwise before.

    `layout: auto` takes the stages: the engine was measured to be quicker with them.
    """
    before = sim.profile.read_text()
    sizes = "  tensor_parallel: auto\n  pipeline_parallel: 1\n"
    auto = before.replace(sizes, "  layout: auto\n  workload: brief\n")
    assert auto != before
    cluster = Path(sim.env["ORCHESTRATE_STATE"], "clusters", NAME)
    engines = cluster / "measured" / "engines"
    stages, slices = Parallelism(1, 2), Parallelism(2)
    sim.state = ANYHOW
    try:
        sim.profile.write_text(auto)
        measured(sim, engines, {stages: 0.1, slices: 0.5, Parallelism(): 0.5})
        planned = sim.json("plan", ok=None)["layout"]
        assert planned["new"] and planned["sizes"] == sizes_of(stages)
        assert not (cluster / "layout.json").exists()
        result = sim.json("up", ok=None)
        assert result["ok"], result["failures"] or failed(result["verify"])
        assert result["layout"]["sizes"] == sizes_of(stages)
        assert "--pipeline-parallel-size 2" in sim.shell("compute0", "ps", "axww", "-o", "args")

        measured(sim, engines, {slices: 0.02, stages: 0.1})
        again = sim.json("up")
        assert (again["layout"]["pending"], again["layout"]["sizes"]) == (
            sizes_of(slices), sizes_of(stages),
        )  # fmt: skip
        assert not any(again["changed"].values())
        assert "acting" not in sim.run("watch", "--once", "--json").stdout
        shown = sim.run("plan").stdout
        assert "layout: pipeline 2 stays until you change it. tensor 2 is forecast" in shown
        changed = sim.run("plan", "--change-layout", ok=False)
        assert changed.returncode == 2
        assert "layout: changes from pipeline 2 to tensor 2 for brief" in changed.stdout
        assert "/etc/systemd/system/vllm.service" in changed.stdout
        sim.run("down")
        assert not (cluster / "layout.json").exists()
    finally:
        sim.profile.write_text(before)
        shutil.rmtree(engines)


def measured(sim: Sim, engines: Path, found: dict[Parallelism, float]) -> None:
    """The engine has been measured with these layouts, by seconds a token, and with no others."""
    args = {name: str(value) for name, value in load(sim.profile).serving.args.items()}
    shutil.rmtree(engines, ignore_errors=True)
    engines.mkdir(parents=True)
    for layout, seconds in found.items():
        cell = EngineCell(32, 8, 2, exactly(0.1), exactly(seconds), exactly(2 / seconds))
        rates = engine_rates([cell], layout, model="known-answers", args=args, key=str(layout))
        (engines / f"{layout}.json").write_bytes(TypeAdapter(EngineRates).dump_json(rates))
