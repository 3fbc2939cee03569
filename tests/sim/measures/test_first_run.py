"""`verify --hardware` and the first part of `up` on the simulated cluster: the processor stands for
a card, so all but the kernels of cards runs."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from support.sim import NAME, NODES, Sim, failed, wait_for

from orchestrator.verify.layers import LAYERS

pytestmark = pytest.mark.sim

TITLES = {layer.name: f"first run: {layer.title}" for layer in LAYERS}
KIND = """
hardware:
  processor:
    torch: { device: cpu, advice: "torch of the image" }
    first_run: { in_up: IN_UP, limits_s: LIMITS }
"""
#: Ends when no guarded program is left; it is not one itself.
GONE = (
    "for i in $(seq 100); do pgrep -f '[S]UBREAPER' >/dev/null || exit 0; sleep 0.1; done; exit 1"
)


def profile_of(sim: Sim, tmp_path: Path, in_up: str = "true", limits: str = "{}") -> str:
    """The cluster's profile with a device of torch on compute nodes, and a small model."""
    text = sim.profile.read_text()
    for node in NODES[1:]:
        text = text.replace(f"name: {node}\n", f"name: {node}\n    hardware: processor\n")
    text = text.replace("verification:\n", "verification:\n  first_model: known-answers\n")
    file = tmp_path / f"{NAME}.yml"
    file.write_text(text + KIND.replace("IN_UP", in_up).replace("LIMITS", limits))
    return str(file)


def seen(report: dict[str, Any], node: str) -> dict[str, str]:
    """By step, what was seen on a node where the step was made."""
    names = {title: name for name, title in TITLES.items()}
    checks = [check for check in report["checks"] if check["node"] == node and check["ran"]]
    return {names[check["name"]]: check["seen"] for check in checks}


@pytest.mark.usefixtures("base")
def test_every_layer_passes_before_ray(sim: Sim, tmp_path: Path) -> None:
    report = sim.json("verify", "--hardware", "--profile", profile_of(sim, tmp_path))
    assert report["ok"], failed(report)
    for node in NODES[1:]:
        found = seen(report, node)
        assert list(found) == [
            "torch", "memory", "product", "pressure", "collective", "layer", "model",
        ]  # fmt: skip
        assert found["collective"].startswith("gloo, 2 ranks")
        assert "Paris is the capital of France." in found["model"]
        sim.shell(node, "sh", "-c", f"{GONE} && ! ls -d /tmp/orchestrate-*")
    (last,) = (check for check in report["checks"] if check["name"] == TITLES["serving"])
    assert last["seen"] == "the model is not served" and not last["ran"]


@pytest.mark.usefixtures("base")
def test_without_a_kind_torch_says_what_there_is(sim: Sim) -> None:
    report = sim.json("verify", "--hardware", "--node", "compute0")
    found = seen(report, "compute0")
    assert report["ok"] and found["torch"].startswith("cpu, torch 2") and "model" not in found
    assert "collective" not in found  # one device only


@pytest.mark.usefixtures("ray")
def test_a_step_that_takes_too_long_stops_up_and_the_node_stays_usable(
    sim: Sim, tmp_path: Path
) -> None:
    sim.shell("compute1", "systemctl", "stop", "ray-worker")
    profile = profile_of(sim, tmp_path, limits="{ product: 0.05 }")
    result = sim.json("up", "--until", "ray", "--profile", profile, ok=False)
    assert set(result["failures"]) == {"compute0", "compute1"}
    assert "timed out after 0.05 s; killed" in result["failures"]["compute0"]
    assert {check["name"] for check in failed(result["first_run"])} == {TITLES["product"]}
    for node in NODES[1:]:
        sim.shell(node, "sh", "-c", GONE)
    state = sim.shell("compute1", "systemctl", "is-active", "ray-worker", ok=False)
    assert state.strip() in ("inactive", "failed")  # a worker that is stopped ends with an error
    sim.run("up", "--until", "ray")


@pytest.mark.usefixtures("base")
def test_an_interruption_leaves_nothing_on_nodes(sim: Sim) -> None:
    process = sim.start("verify", "--hardware")
    wait_for(process, "compute1", "torch: ")
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in said
    for node in NODES[1:]:
        sim.shell(node, "sh", "-c", GONE)


@pytest.mark.usefixtures("ray")
def test_up_makes_it_once_after_a_boot(sim: Sim, tmp_path: Path) -> None:
    profile = profile_of(sim, tmp_path)
    first = sim.json("up", "--until", "ray", "--profile", profile)
    assert first["first_run"]["ok"] and "model" in seen(first["first_run"], "compute1")
    again = sim.json("up", "--until", "ray", "--profile", profile)
    assert again["first_run"] is None
    assert again["steps"]["cluster"]["first run"]["detail"] == "passed since boot"


@pytest.mark.usefixtures("serving")
def test_a_served_model_is_not_disturbed(sim: Sim, tmp_path: Path) -> None:
    report = sim.json("verify", "--hardware", "--profile", profile_of(sim, tmp_path))
    assert report["ok"], failed(report)
    held = {check["name"] for check in report["checks"] if "being served" in check["seen"]}
    assert held == {TITLES[name] for name in ("pressure", "collective", "layer", "model")}
    assert seen(report, "control")["serving"]
    assert json.dumps(report).count("first run:") == len(report["checks"])
