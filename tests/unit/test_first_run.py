"""The first run: steps in order on real processes with their real guard, what ends it, and what its
failures say. Programs stand in for those that need torch, except where no torch is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from support.profiles import PROFILE, make_checkout

from orchestrator.cluster.first_run import Meeting, covers, why
from orchestrator.core.errors import BadInput, UserError
from orchestrator.core.progress import Board
from orchestrator.core.run import Result
from orchestrator.models.profiles import load
from orchestrator.models.reading.shorter import shorter
from orchestrator.node.paths import PYTHON
from orchestrator.profile import Node, Profile
from orchestrator.verify import first_run_steps
from orchestrator.verify.first_run import (
    PREFIX,
    FirstModel,
    FirstRunContext,
    answer,
    first_run,
    source,
)
from orchestrator.verify.layers import LAYERS
from orchestrator.verify.report import Check, Report

#: Steps that run a program in vLLM's environment.
PROGRAMS: list[str] = [layer.name for layer in LAYERS if layer.name in first_run_steps.STEPS]
TITLES: dict[str, str] = {layer.name: PREFIX + layer.title for layer in LAYERS}
FINE = 'print(\'\\n{"ok": true, "seen": "fine", "expected": "", "seconds": 0.1, "offered": true}\')'
KIND = """
hardware:
  card:
    torch: {device: cpu, advice: "look at the card"}
    first_run: {limits_s: LIMITS, skip: SKIP, advice: {product: "on {node}: see {this}"}}
"""
#: Words before the program's own: the guard's, with its limit.
GUARD = 6


def profile_of(root: Path, limits: str = "{}", skip: str = "[]") -> Profile:
    text = PROFILE.replace("accelerators: 1\n", "accelerators: 1\n    hardware: card\n")
    return load(make_checkout(root, text + KIND.replace("LIMITS", limits).replace("SKIP", skip)))


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    monkeypatch.setenv("ORCHESTRATE_CHECKOUT", str(tmp_path))
    return profile_of(tmp_path)


class Nodes:
    """Nodes that are processes here: what each of them runs for a step is a program of the test."""

    def __init__(self, programs: dict[str, str] | None = None) -> None:
        self.programs = programs or {}  # by step, or "node step"
        self.asked: dict[str, Any] = {}

    def run_on(self, node: Node, argv: Sequence[str], stdin: str | None, timeout: float) -> Result:
        step, want = argv[-2:]
        assert stdin and step in PROGRAMS and timeout > float(argv[GUARD - 1])
        # The small model's files are root's to fetch.
        begins = {"model": [PYTHON, "-I", "-c", source("node_files"), "[]"]}.get(step, [])
        own = argv[GUARD + len(begins) :]
        assert argv[GUARD : GUARD + len(begins)] == begins
        assert own[0] == "setpriv" and f"--reuid={'compute'}" in own
        self.asked[f"{node.name} {step}"] = json.loads(want)
        program = self.programs.get(f"{node.name} {step}", self.programs.get(step, FINE))
        guarded = [sys.executable, *argv[1:GUARD], sys.executable, "-", step, want]
        ran = subprocess.run(guarded, input=program, capture_output=True, text=True, check=False)
        return Result(tuple(argv), ran.returncode, ran.stdout, ran.stderr)


def made(
    profile: Profile,
    nodes: Nodes,
    *,
    served: Sequence[str] = (),
    forced: bool = False,
    config: dict[str, Any] | None = None,
) -> Report:
    context = FirstRunContext(
        run_on=nodes.run_on,
        network=nullcontext,
        config={"num_hidden_layers": 4} if config is None else config,
        first_model=FirstModel([], []),
        served=served,
    )
    return first_run(profile, context, profile.compute_nodes, Board(quiet=True), forced=forced)


def seen(report: Report, step: str) -> dict[str, Check]:
    """The checks of a step, by node."""
    return {check.node: check for check in report.checks if check.name == TITLES[step]}


def test_all_steps_pass_in_order_on_all_nodes(profile: Profile) -> None:
    nodes = Nodes()
    report = made(profile, nodes)
    assert report.ok
    names = list(dict.fromkeys(check.name for check in report.checks))
    assert names == [TITLES[layer.name] for layer in LAYERS[:-1]]
    ran = {check.name for check in report.checks if check.ran}
    assert ran == {TITLES[name] for name in PROGRAMS}
    assert len(nodes.asked) == 2 * len(PROGRAMS)


def test_the_steps_are_told_what_the_profile_says(profile: Profile) -> None:
    nodes = Nodes()
    made(profile, nodes)
    assert nodes.asked["left torch"] == {"device": "cpu", "dtype": "half", "count": 1}
    assert nodes.asked["left layer"]["config"] == {"num_hidden_layers": 1}
    assert nodes.asked["left layer"]["argv"] == ["--dtype", "half"]
    left, right = (nodes.asked[f"{name} collective"] for name in ("left", "right"))
    assert (left["rank"], right["rank"], left["world"]) == (0, 1, 2)
    assert left["port"] == right["port"] and left["address"] == right["address"] == "10.0.0.100"


@pytest.mark.parametrize("step", PROGRAMS)
def test_a_step_that_hangs_is_ended_and_named(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what it started, in whatever session; the steps after it are not made."""
    monkeypatch.setenv("ORCHESTRATE_CHECKOUT", str(tmp_path))
    child = tmp_path / "child"
    before = PROGRAMS[: PROGRAMS.index(step)]
    hang = (
        "import subprocess, sys, tempfile, time\n"
        "child = subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
        "print('loading the kernel', file=sys.stderr, flush=True)\n"
        f"open({str(child)!r}, 'w').write(f'{{child.pid}} {{tempfile.mkdtemp()}}')\n"
        "time.sleep(1000)\n"
    )
    nodes = Nodes({f"right {step}": hang})
    report = made(profile_of(tmp_path, f"{{{step}: 2}}", f"[{', '.join(before)}]"), nodes)
    (failed,) = report.failed
    assert (failed.name, failed.node) == (TITLES[step], "right")
    assert failed.seen == "timed out after 2 s; killed. Last: loading the kernel"
    pid, place = child.read_text().split()
    assert not Path("/proc", pid).exists() and not Path(place).parent.exists()
    later = PROGRAMS[PROGRAMS.index(step) + 1 :]
    assert not [words for words in nodes.asked if words.split()[1] in later]
    assert all(seen(report, name)["left"].seen.endswith("failed on right") for name in later)
    assert all(not seen(report, name)["left"].ran for name in later)


@pytest.mark.parametrize("step", ["torch", "collective"])
def test_a_step_that_crashes_is_named_with_its_signal(profile: Profile, step: str) -> None:
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    report = made(profile, Nodes({step: crash}))
    assert {check.node for check in report.failed} == {"left", "right"}
    assert report.failed[0].seen == "ended by SIGSEGV. Last: it said nothing"


def test_a_step_that_answers_and_then_crashes_has_failed(profile: Profile) -> None:
    crash = FINE + "; import os, sys; sys.stdout.flush(); os.kill(os.getpid(), 6)"
    report = made(profile, Nodes({"torch": crash}))
    assert report.failed[0].seen.startswith("ended by SIGABRT")


def test_a_step_that_breaks_says_its_last_line(profile: Profile) -> None:
    report = made(profile, Nodes({"product": "raise ValueError('no such card')"}))
    assert report.failed[0].seen == "exit code 1: ValueError: no such card"


def test_a_failure_says_what_it_means_and_what_to_do(profile: Profile) -> None:
    wrong = FINE.replace('"ok": true', '"ok": false').replace("fine", "5 numbers are off")
    check = seen(made(profile, Nodes({"left product": wrong})), "product")["left"]
    assert check.seen == "5 numbers are off, 0 s"
    assert check.look.startswith("The device computes wrong")
    assert "\ndo: Another version" in check.look and "on left: journalctl" in check.look
    assert check.look.endswith("on left: see {this}")


def test_every_layer_says_what_its_failure_means() -> None:
    assert LAYERS
    for layer in LAYERS:
        assert layer.means.endswith(".") and layer.advice and layer.limit_s > 0
        assert layer.advice.format(node="n")


def test_what_a_device_does_not_offer_is_said_and_no_failure(profile: Profile) -> None:
    none = FINE.replace('"offered": true', '"offered": false').replace("fine", "no such op")
    report = made(profile, Nodes({"int4": none}))
    check = seen(report, "int4")["left"]
    assert report.ok and not check.ran and check.seen == "not offered here: no such op"


def test_what_libraries_print_is_no_answer(profile: Profile) -> None:
    loud = "print('{not json')\n" + FINE + "\nprint('bye')"
    assert made(profile, Nodes({"torch": loud})).ok
    assert not answer(0, "{}\n", "", 1).ok


def test_a_served_model_is_not_disturbed_unless_forced(profile: Profile) -> None:
    nodes = Nodes()
    report = made(profile, nodes, served=["left", "right"])
    left = {check.name for check in report.checks if check.seen == "the model is being served"}
    assert left == {TITLES[name] for name in ("pressure", "collective", "layer", "model")}
    assert not {f"left {name}" for name in ("pressure", "layer")} & nodes.asked.keys()
    made(profile, nodes, served=["left", "right"], forced=True)
    assert {f"left {name}" for name in ("pressure", "layer", "model")} <= nodes.asked.keys()


def test_a_node_that_serves_nothing_is_tested_beside_one_that_does(profile: Profile) -> None:
    nodes = Nodes()
    report = made(profile, nodes, served=["left"])
    assert {"right pressure", "right layer", "right model"} <= nodes.asked.keys()
    assert not {"left pressure", "left layer", "right collective"} & nodes.asked.keys()
    assert seen(report, "collective")["right"].seen == "the model is being served"


def test_an_answer_that_nobody_can_read_is_a_failure(profile: Profile) -> None:
    report = made(profile, Nodes({"torch": "print('{\"ok\": tru')"}))
    assert "JSONDecodeError" in report.failed[0].seen


def test_what_is_skipped_or_not_here_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATE_CHECKOUT", str(tmp_path))
    report = made(profile_of(tmp_path, skip="[pressure]"), Nodes(), config={})
    assert report.ok
    assert seen(report, "pressure")["left"].seen == "the profile skips it"
    assert seen(report, "layer")["left"].seen == "the config.json of tiny is not on this machine"
    assert seen(report, "present")["left"].seen == "the profile names nothing of it"


def test_one_layer_of_a_model_has_one_entry_for_each_list_of_layers() -> None:
    config = {
        "num_hidden_layers": 3,
        "layer_types": ["a", "b", "c"],
        "architectures": ["X"],
        "quantization_config": {"bits": 4},
        "torch_dtype": "abc",  # as many letters as layers
    }
    assert shorter(config, 1) == config | {"num_hidden_layers": 1, "layer_types": ["a"]}
    assert shorter({"text_config": config}, 1)["text_config"]["num_hidden_layers"] == 1
    assert config["num_hidden_layers"] == 3
    assert shorter({"llm_config": {"n_layer": 3}}, 1) == {"llm_config": {"n_layer": 1}}
    mamba = {"num_hidden_layers": 4, "hybrid_override_pattern": "M-M*", "hidden_act": "silu"}
    assert shorter(mamba, 1) == mamba | {"num_hidden_layers": 1, "hybrid_override_pattern": "M"}


def test_names_of_the_profile_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATE_CHECKOUT", str(tmp_path))
    text = PROFILE.replace("{repeats: 3}", "{repeats: 3, first_model: tini}")
    file = make_checkout(tmp_path, text)
    with pytest.raises(BadInput, match=r"verification\.first_model.*(.|\n)*tini"):
        load(file)
    file.write_text(PROFILE + KIND.replace("LIMITS", "{presure: 3}").replace("SKIP", "[]"))
    with pytest.raises(BadInput, match="presure"):
        load(file)


# The program itself, where no torch is needed; tests/nix runs it with the image's torch and vLLM.

STANDS_IN = {
    "torch.py": """
__version__ = "0"
class xpu:
    device_count = staticmethod(lambda: 2)
class ops:
    class _C_cache_ops:
        getMemoryInfo = staticmethod(lambda index: ([FREE][index], 16 << 30))
""",
    "vllm_xpu_kernels/__init__.py": "",
    "vllm_xpu_kernels/_C.py": "",
}


def step(home: Path, name: str, asked: dict[str, Any], free: str) -> Any:
    """What the program prints where libraries of the test's are torch and the kernels."""
    for path, text in STANDS_IN.items():
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_text(text.replace("FREE", free))
    argv = [sys.executable, "-", name, json.dumps(asked)]
    source = Path(first_run_steps.__file__).read_text()
    env = os.environ | {"PYTHONPATH": str(home)}
    ran = subprocess.run(argv, input=source, env=env, capture_output=True, text=True, check=True)
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("free", "share", "ok"),
    [
        ("14 << 30, 0", None, False),
        ("14 << 30, 14 << 30", None, True),
        ("14 << 30, 14 << 30", 0.85, True),
        ("14 << 30, 8 << 30", 0.85, False),
    ],
)
def test_a_card_without_free_memory_fails_by_the_call_that_vllm_makes(
    tmp_path: Path, free: str, share: float | None, ok: bool
) -> None:
    found = step(tmp_path, "memory", {"device": "xpu", "share": share}, free)
    assert found["ok"] is ok
    assert found["seen"].startswith("14.0 of 16.0 GiB free, ")
    assert found["seen"].endswith("(vllm_xpu_kernels' getMemoryInfo)")
    (layer,) = (layer for layer in LAYERS if layer.name == "memory")
    assert "vLLM would take the device for full" in layer.means


def test_a_step_without_torch_says_so(tmp_path: Path) -> None:
    argv = [sys.executable, "-I", "-", "product", '{"device": "xpu"}']
    source = Path(first_run_steps.__file__).read_text()
    ran = subprocess.run(argv, input=source, capture_output=True, text=True, check=True)
    assert answer(0, ran.stdout, "", 1).seen.startswith(
        "ModuleNotFoundError: No module named 'torch'"
    )


# As the first part of `up`.


def check(name: str, node: str, ok: bool) -> Check:
    return Check(name, node, ok, "", "seen", "look")


def met(meeting: Meeting, *names: str) -> dict[str, str]:
    """What each node that arrives at once is told; empty where it may go on."""
    told: dict[str, str] = {}

    def arrive(name: str) -> None:
        try:
            meeting.arrive(name, 60)
            told[name] = ""
        except UserError as error:
            told[name] = error.message

    threads = [threading.Thread(target=arrive, args=[name]) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return told


def test_nodes_wait_for_each_other_and_the_first_run_is_made_once() -> None:
    runs: list[list[str]] = []
    meeting = Meeting(["a", "b"], lambda here: runs.append(list(here)))
    assert met(meeting, "b", "a", "other") == {"a": "", "b": "", "other": ""}
    assert runs == [["a", "b"]]


def test_a_node_that_does_not_come_is_not_waited_for() -> None:
    runs: list[list[str]] = []
    meeting = Meeting(["a", "b"], lambda here: runs.append(list(here)))
    meeting.leave("b")
    assert met(meeting, "a") == {"a": ""} and runs == [["a"]]


def test_no_node_goes_on_where_one_failed() -> None:
    report = Report((check("x", "a", True), check("x", "b", False)))
    told = met(Meeting(["a", "b"], lambda here: report), "a", "b")
    assert told == {"a": "not started: 'x' failed on b", "b": "x: seen\nlook"}
    assert why(report, "b") == told["b"]


def test_an_interruption_lets_nobody_wait() -> None:
    meeting = Meeting(["a", "b"], lambda here: None)
    meeting.close()
    assert met(meeting, "a") == {"a": "a: the first run broke: interrupted"}


@pytest.mark.parametrize(
    ("recorded", "covered"),
    [
        (None, False),
        ({}, False),
        ({"image": "i", "told": "t", "boots": {"a": "1"}}, True),
        ({"image": "i", "told": "t", "boots": {"a": "1", "b": "2"}}, True),
        ({"image": "i", "told": "t", "boots": {"a": "2"}}, False),
        ({"image": "i", "told": "t", "boots": {"b": "1"}}, False),
        ({"image": "j", "told": "t", "boots": {"a": "1"}}, False),
        ({"image": "i", "told": "u", "boots": {"a": "1"}}, False),
        ({"image": "i", "told": "t", "boots": "1"}, False),
        ([], False),
    ],
)
def test_what_passed_since_boot_is_of_the_same_boot_image_and_profile(
    recorded: Any, covered: bool
) -> None:
    assert covers(recorded, {"image": "i", "told": "t", "boots": {"a": "1"}}) is covered
