"""Recorded machines against the profiles that describe them: which checks fail, and what they say.

The machines are files of ``data/recorded/``; its README says where they come from.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter
from support import DATA

from orchestrator.attach import node_hardware
from orchestrator.core import paths
from orchestrator.core.progress import Board
from orchestrator.core.run import Result
from orchestrator.core.sizes import human_size
from orchestrator.models.profiles import load
from orchestrator.models.serving import Layout
from orchestrator.profile import Node, Profile
from orchestrator.profile.hardware import Command, Hardware, PciDevice, Sign, Upstream
from orchestrator.verify import VerifyContext, everything, gather, hardware, probe_hardware
from orchestrator.verify.facts import (
    CommandFacts,
    HardwareFacts,
    PciFacts,
    PortFacts,
    SignFacts,
)
from orchestrator.verify.first_run import FirstRunContext, first_run
from orchestrator.verify.hardware import looks, output
from orchestrator.verify.report import Check, report

RECORDED = DATA / "recorded"
CASES = sorted(path.name for path in RECORDED.glob("*.yml"))
PREFIX = "hardware: "


def recorded(name: str) -> dict[str, Any]:
    """A case with all that the one it is like has."""
    case: dict[str, Any] = yaml.safe_load((RECORDED / name).read_text())
    if "like" not in case:
        return case
    base = recorded(case.pop("like"))
    for key in ("files", "links", "commands"):
        case[key] = base.get(key, {}) | case.get(key, {})
    log = copy.deepcopy(case["commands"]["journalctl"])
    for old, new in case.pop("replace", {}).items():
        assert old in log["out"], f"{name}: its log has no {old!r}"
        log["out"] = log["out"].replace(old, new)
    log["out"] += case.pop("add_log", "")
    case["commands"]["journalctl"] = log
    return base | case


def make_tree(case: dict[str, Any], root: Path) -> None:
    for path, content in case["files"].items():
        if content is not None:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(content)
    for path, target in case["links"].items():
        if target is not None:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).symlink_to(target)


def key(words: Sequence[str]) -> str:
    """What a case calls a command."""
    programs = {probe_hardware.LEVEL_ZERO: "level zero", probe_hardware.TORCH: "torch"}
    known = [name for program, name in programs.items() if program in words]
    if known:
        return known[0]
    logs = {probe_hardware.LOG: "journalctl", probe_hardware.LOG_BUFFER: "dmesg"}
    return logs.get(tuple(words), " ".join(words[:2]))


def machine(name: str) -> tuple[dict[str, Any], Profile, Node]:
    case = recorded(name)
    profile = load(paths.checkout() / "profiles" / f"{case['profile']}.yml")
    node = next(node for node in profile.nodes if node.name == case["node"])
    return case, profile, node


def looked(case: dict[str, Any], want: dict[str, Any], root: Path) -> str:
    """What the probe prints on a recorded machine."""

    def run(words: Sequence[str], seconds: float) -> tuple[int | None, str]:
        assert seconds > 0
        said = case["commands"][key(words)]
        return said["code"], said["out"]

    make_tree(case, root)
    # As it goes over SSH: as JSON.
    return json.dumps(probe_hardware.facts(json.loads(json.dumps(want)), root, run))


def checked(name: str, root: Path) -> list[Check]:
    """The checks that ``verify`` makes of a recorded machine."""
    case, profile, node = machine(name)

    def run_on(at: Node, argv: Sequence[str], stdin: str | None, timeout: float) -> Result:
        assert at is node
        assert stdin == Path(probe_hardware.__file__).read_text()
        return Result(tuple(argv), 0, looked(case, json.loads(argv[-1]), root), "")

    return list(everything._hardware(profile, context(run_on), node).make())


def context(run_on: gather.RunOn) -> VerifyContext:
    def unused() -> Any:
        raise AssertionError

    layout = Layout(1, 1, False, 1)
    return VerifyContext(run_on, unused, unused, unused, {}, layout, [], "image")


@pytest.mark.parametrize("name", CASES)
def test_just_what_is_wrong_is_found(name: str, tmp_path: Path) -> None:
    found = [check for check in checked(name, tmp_path) if not check.ok]
    for severity, key in (("failure", "failed"), ("warning", "warned")):
        seen = {check.name: check.seen for check in found if check.severity == severity}
        expected = recorded(name).get(key, {})
        assert seen == {PREFIX + check: text for check, text in expected.items()}
    assert report(checked(name, tmp_path / "again")).ok == (not recorded(name)["failed"])


@pytest.mark.parametrize("name", CASES)
def test_every_failure_says_what_was_expected_and_what_to_do(name: str, tmp_path: Path) -> None:
    _, _, node = machine(name)
    for check in checked(name, tmp_path):
        if not check.ok:
            assert check.node == node.name
            assert check.expected and check.expected != check.seen
            assert check.look
            assert "{" not in check.look
            assert all("\n" not in text for text in (check.expected, check.seen, check.look))


def test_each_case_is_in_the_readme() -> None:
    text = (RECORDED / "README.md").read_text()
    assert [name for name in CASES if f"| `{name}` |" not in text] == []


def test_every_check_of_the_profiles_fails_in_some_case(tmp_path: Path) -> None:
    """A check that nothing sets off may be one that cannot fail."""
    for number in ("0.1", "0.2"):
        failing = {
            check for name in CASES if machine(name)[0]["profile"] == number
            for check in recorded(name)["failed"] | recorded(name).get("warned", {})
        }  # fmt: skip
        _, profile, node = machine("a770.yml" if number == "0.1" else "npu.yml")
        names = {look.rule.name.removeprefix(PREFIX) for look in looks(profile, node)}
        healthy = {"link link12", "link link14", "link cluster", "link cluster: speed"}
        left = {"memory", "NPU"} | healthy if number == "0.2" else set()
        assert names - failing - left == set()


def test_a_resizable_bar_that_is_off_reads_as_advice(tmp_path: Path) -> None:
    (check,) = report(checked("a770-no-rebar.yml", tmp_path)).failed
    assert check.expected == "16 GiB or more"
    assert "'Above 4G Decoding' and 'Re-Size BAR Support'" in check.look


def test_a_warning_is_shown_and_fails_nothing(tmp_path: Path) -> None:
    found = report(checked("a770-huc-not-auth.yml", tmp_path))
    assert found.ok and not found.failed
    (warning,) = found.warnings
    assert "only video needs it" in warning.look


def test_a_bridge_that_is_not_visible_is_not_judged(tmp_path: Path) -> None:
    seen = {check.name: check for check in checked("a770-virtual.yml", tmp_path)}
    link = seen[f"{PREFIX}Arc A770: link"]
    assert link.ok
    assert link.seen == "no bridge 8086:4fa0 is visible: not judged"
    assert link.expected == "x16 at 16 GT/s or more"


def test_a_healthy_machine_says_what_it_has(tmp_path: Path) -> None:
    seen = {check.name.removeprefix(PREFIX): check.seen for check in checked("a770.yml", tmp_path)}
    assert seen["memory"] == "62.6 GiB"
    assert seen["Arc A770"] == "1: 0000:03:00.0"
    assert seen["Arc A770: BAR 2"] == "16 GiB"
    assert seen["Arc A770: link"] == "0000:01:00.0: x16 at 16 GT/s"
    assert seen["link cluster: speed"] == "2500 Mb/s"
    assert seen["link usb4: speed"] == "40 Gb/s"
    assert seen["GuC firmware"].endswith("GuC firmware i915/dg2_guc_70.bin version 70.20.0")
    assert seen["torch xpu"] == "Intel(R) Arc(TM) A770 Graphics"
    assert seen["OpenCL"] == "`-- Device #0: Intel(R) Arc(TM) A770 Graphics"


def test_nodes_without_hardware_have_no_such_check() -> None:
    sim = load(paths.checkout() / "profiles" / "sim.yml")
    assert [look for node in sim.nodes for look in looks(sim, node)] == []


def test_a_probe_that_fails_fails_each_check_once() -> None:
    _, profile, node = machine("a770.yml")

    def run_on(at: Node, argv: Sequence[str], stdin: str | None, timeout: float) -> Result:
        return Result(tuple(argv), 1, "", "python: not found")

    part = everything._hardware(profile, context(run_on), node)
    assert [rule.name for rule, _ in part.checks] == [
        look.rule.name for look in looks(profile, node)
    ]
    with pytest.raises(Exception, match="exit code 1: python: not found"):
        list(part.make())


def everything_of(**entries: Any) -> dict[str, Any]:
    return gather.hardware_want(Hardware(**entries), ["lo"])


def test_the_probe_runs_by_itself_on_any_machine() -> None:
    """As over SSH: from standard input, with nothing but the standard library."""
    sign = Sign(name="a", file="/proc/versio*", matches="Linux", advice="-")
    command = Command(name="b", argv=("/bin/echo", "a $b"), matches="a", advice="-")
    slow = Command(name="c", argv=("/bin/sleep", "9"), matches="a", timeout_s=0.2, advice="-")
    none = Command(name="d", argv=("/no/such/command",), matches="a", advice="-")
    want = everything_of(
        devices=("/dev/null", "/dev/no-such-*"),
        modules=("no-such-module",),
        signs=(sign,),
        level_zero=1,
        commands=(command, slow, none),
    )
    argv = [sys.executable, "-I", "-S", "-", json.dumps(want)]
    source = Path(probe_hardware.__file__).read_text()
    ran = subprocess.run(argv, input=source, capture_output=True, text=True, check=True)
    seen = TypeAdapter(HardwareFacts).validate_json(ran.stdout)
    assert seen.memory > 1 << 28
    assert seen.devices == {"/dev/null": 1, "/dev/no-such-*": 0}
    assert seen.modules == {"no-such-module": False}
    assert seen.links["lo"].there
    assert seen.signs[0].line and seen.signs[0].line.startswith("Linux version")
    assert seen.level_zero and seen.level_zero.devices == 0 and seen.level_zero.error
    assert [ran.code for ran in seen.commands] == [0, None, 127]
    assert seen.commands[0].out == "a $b\n"
    assert seen.commands[2].error == "/no/such/command: No such file or directory"


def test_an_answer_of_torch_without_torch_is_its_error() -> None:
    said = probe_hardware.torch(
        probe_hardware.run_here, {"device": "xpu", "timeout_s": 60}
    )  # torch is not among this project's dependencies
    assert said == {
        "names": [],
        "wrong": "",
        "error": "ModuleNotFoundError: No module named 'torch'",
    }


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (1 << 28, "256 MiB"),
    ],
)
def test_sizes_are_for_people(count: int, said: str) -> None:
    assert human_size(count) == said


def test_a_command_has_to_end_well_whatever_it_printed() -> None:
    command = Command(name="x", argv=("x",), matches="all is well", advice="look")
    nothing: dict[str, Any] = {"memory": 0, "modules": {}, "devices": {}, "links": {}}
    nothing |= {"pci": [], "signs": [], "level_zero": None, "torch": None}
    for code, error in ((0, ""), (1, "exit code 1"), (None, "timed out")):
        ran = [CommandFacts(code, "first\nall is well\n", error)]
        verdict = output(command, 0, HardwareFacts(**nothing, commands=ran))
        assert verdict.ok == (code == 0)
        assert verdict.seen == (error or "all is well")


@pytest.mark.parametrize(
    ("name", "ok", "said"),
    [
        ("a770.yml", True, "checks passed"),
        ("a770-huc-not-auth.yml", True, "checks passed; warning: hardware: "),
        ("a770-no-rebar.yml", False, "Re-Size BAR"),
    ],
)
def test_the_first_run_begins_with_the_machine(
    name: str, ok: bool, said: str, tmp_path: Path
) -> None:
    """A warning is told and stops nothing; a failure stops it before anything uses the card."""
    case, profile, node = machine(name)
    asked = []

    def run_on(at: Node, argv: Sequence[str], stdin: str | None, timeout: float) -> Result:
        asked.append(argv)
        if stdin != Path(probe_hardware.__file__).read_text():
            return Result(tuple(argv), 1, "", "no torch in this test")
        return Result(tuple(argv), 0, looked(case, json.loads(argv[-1]), tmp_path), "")

    context = FirstRunContext(run_on, nullcontext, {}, "none")
    report = first_run(profile, context, [node], Board(quiet=True))
    first, second = report.checks[:2]
    assert (first.ok, first.ran, second.ran) == (ok, True, ok)
    assert said in first.seen and len(asked) == (2 if ok else 1)


CARD, OTHER, OWN = "0000:03:00.0", "0000:08:00.0", "0000:00:02.0"


@pytest.mark.parametrize(
    ("messages", "line", "without"),
    [
        (f"i915 {CARD}: up", f"i915 {CARD}: up", [OTHER]),
        (f"i915 {OWN}: up\ni915 {OTHER}: up", f"i915 {OTHER}: up", [CARD]),
        (f"i915 {OWN}: up", None, [CARD, OTHER]),
        (f"i915 {CARD}: up\ni915 {OTHER}: up", f"i915 {CARD}: up", []),
        ("[drm] GT0: up", "[drm] GT0: up", []),  # it may be any
        (f"i915 1{CARD}: up", None, [CARD, OTHER]),  # another domain
        (f"bridge {OWN} to {CARD}: up", f"bridge {OWN} to {CARD}: up", [OTHER]),
    ],
)
def test_a_line_of_the_log_is_about_the_device_that_it_names(
    messages: str, line: str | None, without: list[str], tmp_path: Path
) -> None:
    want = {"file": None, "matches": "up", "device": "8086:56a0"}
    found = probe_hardware.sign(tmp_path, messages, want, [CARD, OTHER])
    assert found == {"read": True, "line": line, "told": 2 - len(without), "without": without}
    anybodys = probe_hardware.sign(tmp_path, messages, {**want, "device": None}, [])
    assert anybodys["line"] == messages.splitlines()[0]


@pytest.mark.parametrize(("count", "ok"), [(1, True), (2, False)])
def test_as_many_devices_as_there_have_to_be_need_a_line(count: int, ok: bool) -> None:
    sign = Sign(name="a", matches="up", device="card", advice="-")
    facts = HardwareFacts(
        memory=0, modules={}, devices={}, pci=[], links={}, level_zero=None, torch=None,
        commands=[], signs=[SignFacts(True, "up", 1, (OTHER,))],
    )  # fmt: skip
    verdict = hardware.line(sign, 0, count, facts)
    assert verdict.ok == ok
    assert (f"for {OTHER}" in verdict.seen) != ok


#: Current and possible lanes from the root port to the card. Of a port, those of the link below it.
ARC = [(16, 16), (16, 16), (1, 1), (1, 1)]


@pytest.mark.parametrize(
    ("lanes", "told", "narrow"),
    [
        (ARC, "x16", False),
        ([(4, 16), (4, 16), (1, 1), (1, 1)], "x4 of x16; 0000:00:01.0 above it has x16", True),
        ([(4, 4), (4, 16), (1, 1), (1, 1)], "x4 of x16; 0000:00:01.0 above it has x4", True),
        ([(16, 16), (16, 16)], "x16", False),
        ([(16, 16), (8, 16)], "x8 of x16; 0000:00:01.0 above it has x16", True),
        # A server's switch: either link may be the narrow one.
        ([(16, 16), (16, 16), (8, 16), (8, 16)], "x8 of x16; 0000:02:00.0 above it has x16", True),
        ([(8, 16), (8, 16), (16, 16), (16, 16)], "x8 of x16; 0000:00:01.0 above it has x16", True),
        ([(1, 1)], "x1", False),  # in a virtual machine
    ],
)
def test_the_link_that_counts_is_found_alike_for_verify_and_attach(
    lanes: list[tuple[int, int]], told: str, narrow: bool, tmp_path: Path
) -> None:
    device = tmp_path / "sys/devices/pci0000:00"
    for bus, (width, most) in enumerate(lanes):
        device /= f"0000:{bus:02}:{'01' if not bus else '00'}.0"
        device.mkdir(parents=True)
        device.joinpath("current_link_width").write_text(f"{width}\n")
        device.joinpath("max_link_width").write_text(f"{most}\n")
    by_address = tmp_path / "sys/bus/pci/devices" / device.name
    by_address.parent.mkdir(parents=True)
    by_address.symlink_to(device)
    found = TypeAdapter(PortFacts).validate_python(probe_hardware.way(by_address))
    assert (found.told, found.is_narrow) == (told, narrow)
    assert node_hardware.counted_link(by_address).name == found.address
    kind = PciDevice(
        name="card", id="8086:56a0", driver="d", advice="-", upstream=Upstream(advice="the slot")
    )
    facts = HardwareFacts(
        memory=0, modules={}, devices={}, links={}, level_zero=None, torch=None, commands=[],
        signs=[], pci=[PciFacts(device.name, "8086:56a0", "d", {}, way=found)],
    )  # fmt: skip
    assert kind.upstream
    verdict = hardware.upstream(kind, kind.upstream, facts)
    assert (verdict.ok, verdict.seen) == (not narrow, f"{found.address}: {told}")
    at_most = Upstream(width=16, advice="-")
    assert hardware.upstream(kind, at_most, facts).ok == (found.width >= 16)


def test_a_device_without_lanes_has_no_link_to_judge(tmp_path: Path) -> None:
    (tmp_path / "0000:00:02.0").mkdir()
    assert probe_hardware.way(tmp_path / "0000:00:02.0") is None
    (tmp_path / "0000:00:02.0/current_link_width").write_text("0\n")  # nothing is in the slot
    (tmp_path / "0000:00:02.0/max_link_width").write_text("16\n")
    assert probe_hardware.way(tmp_path / "0000:00:02.0") is None
