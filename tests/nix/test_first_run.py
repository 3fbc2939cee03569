"""The first run with the image's own torch and vLLM, on the processor: every step of the program,
and that it notices what is wrong. The image's root is two nodes, in one network of their own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from support import PROJECT
from support.flake import built
from support.sim import SHIPPED

from orchestrator.core.progress import Board
from orchestrator.core.run import Result
from orchestrator.models import catalog
from orchestrator.models.profiles import load
from orchestrator.models.publish import sha256
from orchestrator.profile import Node, Profile
from orchestrator.verify import first_run_steps
from orchestrator.verify.first_run import FirstModel, FirstRunContext, answer, first_run, source
from orchestrator.verify.layers import LAYERS
from orchestrator.verify.report import Report

PYTHON = "/opt/venvs/orchestrate/bin/python"
NAMESPACE = f"first-run-{os.getpid()}"
#: What the profile's account is, in the image's passwd.
ACCOUNT = "compute:x:1000:1000::/home/compute:/bin/sh\n"
MODEL = "known-answers"
#: Where the last lines of the program begin.
MAIN = 'if __name__ == "__main__":'


@pytest.fixture(scope="module")
def nodes(root: Path) -> Iterator[Path]:
    """The root with an account, a model's files, and a network that has both nodes' addresses."""
    subprocess.run(["chown", "1000:1000", root / "home"], check=True)
    (root / "home/compute").mkdir()
    os.chown(root / "home/compute", 1000, 1000)
    model = built(f"{PROJECT}#models.{MODEL}", root.parent / "model")
    subprocess.run(["cp", "-rL", model, root / "home/model"], check=True)
    with bound(root / "etc/passwd", ACCOUNT), bound(root / "etc/group", "compute:x:1000:\n"):
        subprocess.run(["ip", "netns", "add", NAMESPACE], check=True)
        try:
            for words in (
                "link set lo up",
                "link add cluster0 type veth peer name other",
                "link set other up",
                "address add 10.77.0.10/24 dev cluster0",
                "address add 10.77.0.11/24 dev cluster0",
                "link set cluster0 up",
            ):
                subprocess.run(["ip", "-n", NAMESPACE, *words.split()], check=True)
            yield root
        finally:
            subprocess.run(["ip", "netns", "delete", NAMESPACE], check=True)


@contextmanager
def bound(file: Path, more: str) -> Iterator[None]:
    """The read-only file with more text, for the body."""
    changed = file.parents[2] / f"changed-{file.name}"
    changed.write_text((file.read_text() if file.exists() else "") + more)
    subprocess.run(["mount", "--bind", changed, file], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", file], check=True)


def inside(nodes: Path, argv: Sequence[str], stdin: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ip", "netns", "exec", NAMESPACE, "chroot", nodes, *argv],
        input=stdin, env={"PATH": "/usr/sbin:/usr/bin"}, capture_output=True, text=True,
        timeout=900, check=False,
    )  # fmt: skip


def made(
    nodes: Path, profile: Profile, change: Callable[[str], str], first: FirstModel | str
) -> Report:
    """The first run on the simulated cluster's two compute nodes, by the very commands."""

    def run_on(node: Node, argv: Sequence[str], stdin: str | None, timeout: float) -> Result:
        assert stdin is not None
        ran = inside(nodes, argv, change(stdin))
        return Result(tuple(argv), ran.returncode, ran.stdout, ran.stderr)

    config = json.loads((nodes / "home/model/config.json").read_text())
    context = FirstRunContext(run_on, nullcontext, config, first)
    return first_run(profile, context, profile.compute_nodes, Board(quiet=True))


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load(SHIPPED)


def test_every_step_passes_on_the_processor(nodes: Path, profile: Profile) -> None:
    files = [
        {"path": path.name, "url": f"file:///home/model/{path.name}", "sha256": sha256(path)}
        for path in (nodes / "home/model").iterdir()
    ]
    answers = [
        {"question": each.question, "answer": each.answer, "whole": True}
        for each in catalog.find(MODEL).answers
    ]
    report = made(nodes, profile, lambda text: text, FirstModel(files, answers))
    assert report.ok, [check.seen for check in report.failed]
    saw = {check.name.split(": ")[1]: check.seen for check in report.checks if check.ran}
    titles: dict[str, str] = {layer.name: layer.title for layer in LAYERS}
    ran = ("torch", "memory", "product", "pressure", "collective", "layer", "model")
    assert list(saw) == [titles[name] for name in ran]
    assert "(/proc/meminfo)" in saw[titles["memory"]]
    assert "exact with 0.25 of" in saw[titles["pressure"]].replace(" GiB", "")
    assert saw[titles["collective"]].startswith("gloo, 2 ranks: 8 KiB")
    assert saw[titles["layer"]].startswith("4 tokens")
    assert catalog.find(MODEL).answers[0].answer in saw[titles["model"]]
    left = [check.seen for check in report.checks if not check.ran and "offered" in check.seen]
    assert any("int4_gemm_w4a16" in each for each in left) and any("Triton" in e for e in left)


def step(nodes: Path, name: str, asked: dict[str, Any], before: str = "") -> dict[str, Any]:
    """What the program prints with these lines before its end: what is wrong with torch."""
    text = source("first_run_steps").replace(MAIN, f"{before}\n{MAIN}")
    argv = [PYTHON, "-", name, json.dumps({"device": "cpu"} | asked)]
    ran = inside(nodes, argv, text)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


#: cat is right as long as no chunk is held: the fault that is looked for.
CAT = """
import torch as library
right, held = library.cat, []
class Held(Pressure):
    def fill(self, size):
        held.append(size)
        return super().fill(size)
def cat(parts, dim=0):
    found = right(parts, dim)
    return found + 1 if len(held) > 3 and parts[0] is not STARTED.parts[0] else found
class Started(Held):
    def __init__(self, on):
        global STARTED
        STARTED = self
        super().__init__(on)
        self.there = [part.clone() for part in self.there[0]], self.there[1]
Pressure = Started
library.cat = cat
"""
FULL = """
import torch as library
once = library.full
def full(shape, value, **how):
    if value > 2:
        raise RuntimeError("level_zero backend failed with error: 39")
    return once(shape, value, **how)
library.full = full
"""
NOISE = """
import torch as library
right = library.nn.functional.linear
library.nn.functional.linear = lambda x, w: right(x, w) + (0.1 if w.dtype == library.half else 0)
"""


@pytest.mark.parametrize(
    ("name", "before", "ok", "seen"),
    [
        ("pressure", CAT, False, "GiB filled: cat"),
        ("pressure", FULL, True, "the device took no more"),
        ("pressure", "", True, "exact with 0.06 GiB"),
        ("product", NOISE, False, "cpu, 1 row(s): 512 of 512 numbers are off, by 0.1"),
        ("torch", "", False, "cpu, torch 2"),
    ],
    ids=["wrong when filled", "refuses", "right", "noise", "too few"],
)
def test_what_is_wrong_is_seen(nodes: Path, name: str, before: str, ok: bool, seen: str) -> None:
    found = step(nodes, name, {"most": 64 << 20, "count": 2}, before)
    assert found["ok"] is ok and seen in found["seen"], found


#: An op of the test's own that reads the packed weights bit by bit, as GPTQ lays them out.
OP = """
import sys, types, torch as library
place = library.library.Library("_xpu_C", "DEF")
place.define("int4_gemm_w4a16(Tensor a, Tensor b, Tensor? bias, Tensor scale, Tensor zero, "
             "int group, Tensor? index) -> Tensor")
def gemm(a, b, bias, scale, zero, group, index):
    rows = []
    for row in range(a.shape[1]):
        number = (b[row // 8].long() >> 4 * (row % 8)) & 15
        rows.append((number - int(zero)).float() * scale[row // group].float())
    return (a.float() @ library.stack(rows)).to(a.dtype) WRONG
place.impl("int4_gemm_w4a16", gemm, "CPU")
for name in ("vllm_xpu_kernels", "vllm_xpu_kernels._xpu_C"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["vllm_xpu_kernels"].__spec__ = types.SimpleNamespace(origin=None)
"""


@pytest.mark.parametrize(("group", "shown"), [(32, 32), (-1, 1024), (None, 128)])
def test_products_with_4_bit_weights(nodes: Path, group: int | None, shown: int) -> None:
    found = step(nodes, "int4", {"group": group}, OP.replace("WRONG", ""))
    assert found["ok"] and found["offered"] and f"groups of {shown}" in found["seen"], found


def test_a_wrong_product_with_4_bit_weights_is_seen(nodes: Path) -> None:
    found = step(nodes, "int4", {}, OP.replace("WRONG", "* 1.2"))
    assert not found["ok"] and "numbers are off" in found["seen"], found


def test_a_wrong_sum_is_seen(nodes: Path) -> None:
    asked = {"rank": 0, "world": 1, "local": 0, "address": "10.77.0.10", "port": 20001}
    asked["timeout_s"] = 20
    assert step(nodes, "collective", asked)["ok"]
    wrong = "import torch.distributed as r; r.all_reduce = lambda data: data.add_(1)"
    found = step(nodes, "collective", asked | {"port": 20002}, wrong)
    assert not found["ok"] and "sums are wrong" in found["seen"], found


def test_a_rank_that_nobody_meets_ends_by_itself(nodes: Path) -> None:
    asked = {"rank": 1, "world": 2, "local": 0, "address": "10.77.0.10", "port": 20003}
    found = step(nodes, "collective", asked | {"timeout_s": 5})
    assert not found["ok"] and "Error" in found["seen"], found


def test_a_layer_that_vllm_refuses_says_why(nodes: Path) -> None:
    config = json.loads((nodes / "home/model/config.json").read_text())
    asked = {"device": "cpu", "config": config, "argv": ["--dtype", "float17"]}
    argv = [PYTHON, "-", "layer", json.dumps(asked)]
    ran = inside(nodes, argv, source("first_run_steps"))
    verdict = answer(ran.returncode, ran.stdout, ran.stderr, 60)
    assert not verdict.ok and "--dtype: invalid choice: 'float17'" in verdict.seen, verdict


def test_the_program_is_one_file_of_the_standard_library() -> None:
    first = [
        line
        for line in Path(first_run_steps.__file__).read_text().splitlines()
        if line.startswith(("import ", "from "))
    ]
    assert first and not [line for line in first if "orchestrator" in line or "torch" in line]
