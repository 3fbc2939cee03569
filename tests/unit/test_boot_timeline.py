"""Where a boot is and why it is stuck: a file of tests/data/boots for each case.

Their lines are those of a UEFI boot in QEMU (dnsmasq 2.90, nginx 1.22, OVMF, iPXE), cut where a
fault would cut them; the initrd's are its own words. ``now`` is when they are read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import DATA, PROJECT

from orchestrator.cluster.status import told
from orchestrator.models.profiles import load
from orchestrator.provision.netboot import causes, sources, timeline
from orchestrator.provision.netboot.look import profile_lines
from orchestrator.provision.netboot.timeline import Netboot, Place, assemble

CASES = {path.stem: path for path in sorted((DATA / "boots").glob("*.yml"))}
NODE = Place("compute0", "02:00:0a:4d:00:10", "10.77.0.10")
PLACES = [Place("control", "02:00:0a:4d:00:01", "10.77.0.1"), NODE,
          Place("compute1", "02:00:0a:4d:00:11", "10.77.0.11")]  # fmt: skip


REQUIRED = {"about", "now", "up", "dnsmasq", "access", "events", "steps"}
OPTIONAL = {"spans", "bytes", "told", "stuck", "hint", "refused", "unknown"}


def case(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(CASES[name].read_text())
    assert REQUIRED <= set(document) <= REQUIRED | OPTIONAL, "a key that no test reads"
    assert ("stuck" in document) == ("hint" in document)
    return document


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def messages(text: str) -> Iterable[tuple[float, str]]:
    for line in text.splitlines():
        time, _, message = line.partition(" ")
        yield float(time), message


def netboot(found: dict[str, Any]) -> Netboot:
    events = [
        *sources.from_up(records(found["up"])),
        *sources.from_dnsmasq(messages(found["dnsmasq"])),
        *sources.from_access(records(found["access"])),
        *sources.from_service(records(found["events"])),
    ]
    return assemble(PLACES, events, found["now"])


@pytest.mark.parametrize("name", CASES)
def test_steps(name: str) -> None:
    found = case(name)
    boot = netboot(found).boots[NODE.name]
    assert [f"{step.step} {step.status}" for step in boot.steps] == found["steps"]
    began = boot.began
    steps = {step.step: step for step in boot.steps}
    for step, (start, seconds) in found.get("spans", {}).items():
        assert steps[step].start - began == pytest.approx(start, abs=0.002), step
        assert steps[step].seconds == pytest.approx(seconds, abs=0.002), step
    for step, size in found.get("bytes", {}).items():
        assert steps[step].bytes == size
    assert all(step.seconds >= 0 for step in boot.steps)
    if "told" in found:
        assert told(boot) == found["told"]


@pytest.mark.parametrize("name", CASES)
def test_causes(name: str) -> None:
    found = case(name)
    seen = netboot(found)
    cause = causes.stuck(seen.boots[NODE.name], seen, found["now"])
    if "stuck" not in found:
        assert cause is None
        return
    assert cause is not None
    assert re.search(found["stuck"], cause.text), cause.text
    assert re.search(found["hint"], cause.hint), cause.hint
    assert 0 < len(seen.boots[NODE.name].last) <= timeline.LAST


@pytest.mark.parametrize("name", CASES)
def test_strangers_and_refusals(name: str) -> None:
    found = case(name)
    seen = netboot(found)
    assert list(seen.unknown) == found.get("unknown", [])
    told_of = [f"{refusal.text} {refusal.count}" for refusal in seen.refused]
    assert told_of == found.get("refused", [])


def test_every_cause_has_a_case_and_a_line_in_the_reference() -> None:
    reference = (PROJECT / "docs/reference/boot.md").read_text()
    names = {rule.__name__ for rule in causes.RULES}
    assert {name for name in names if f"| {name.replace('_', ' ')} |" not in reference} == set()
    steps = {step for step in timeline.STEPS if f"| `{step}" not in reference}
    assert steps == set()
    used = set()
    for name in CASES:
        found = case(name)
        seen = netboot(found)
        boot = seen.boots[NODE.name]
        if boot.current is not None and "stuck" in found:
            sight = causes.BootObservation(boot, seen, boot.current)
            used.add(next(rule.__name__ for rule in causes.RULES if rule(sight)))
    assert used == names


def test_the_dnsmasq_words_are_all_that_is_read() -> None:
    """The probe brings only those lines: without the others, all is the same."""
    for name in CASES:
        found = case(name)
        lines = found["dnsmasq"].splitlines(keepends=True)
        kept = [line for line in lines if re.search(sources.DNSMASQ_WORDS, line)]
        assert netboot({**found, "dnsmasq": "".join(kept)}) == netboot(found)


@pytest.mark.parametrize(
    "read",
    [sources.from_access, sources.from_service, sources.from_up],
    ids=lambda read: read.__name__,
)
def test_empty_logs(read: Callable[[list[dict[str, Any]]], Iterable[sources.BootEvent]]) -> None:
    assert list(read([])) == []


def test_the_lines_for_an_unknown_machine_make_a_profile_that_has_it(tmp_path: Path) -> None:
    shipped = PROJECT / "profiles/sim.yml"
    profile = load(shipped)
    lines = profile_lines(profile, "02:00:0a:4d:00:99")
    text = shipped.read_text().replace("compute_nodes:\n", f"compute_nodes:\n{lines}")
    (tmp_path / "sim.yml").write_text(text)
    new = load(tmp_path / "sim.yml").compute_nodes[0]
    link = new.links[profile.boot.network]
    assert (new.name, link.mac, str(link.address)) == (
        "compute2",
        "02:00:0a:4d:00:99",
        "10.77.0.12",
    )


@pytest.mark.parametrize(
    ("sender", "furthest", "begins"),
    [
        (sources.FIRMWARE, "loader", False),
        (sources.FIRMWARE, "script", True),
        (sources.LOADER, "script", False),
        (sources.LOADER, "kernel", True),
        (sources.SYSTEM, "sshd", False),
    ],
)
def test_a_boot_begins_with_a_sender_that_was_over(
    sender: str, furthest: str, begins: bool
) -> None:
    """Firmware asks before there is a script, a loader before there is a kernel."""
    events = [
        sources.BootEvent(1.0, "dhcp", sources.STARTED, "m", sender=sources.FIRMWARE),
        sources.BootEvent(2.0, furthest, mac="m"),
        sources.BootEvent(3.0, "dhcp", sources.STARTED, "m", sender=sender),
    ]
    boot = timeline.assemble([timeline.Place("a", "m", "x")], events, 4.0).boots["a"]
    assert (boot.began == 3.0) == begins


def test_a_step_that_failed_is_told_before_one_that_goes_on() -> None:
    steps = (
        timeline.BootStep("manifest", sources.DONE, 1.0, 1.0),
        timeline.BootStep("layer:base", sources.STARTED, 2.0, 1.0),
        timeline.BootStep("layer:python", sources.FAILED, 2.0, 1.0),
    )
    at = timeline.BootTimeline("a", steps).current
    assert at is not None and at.step == "layer:python"
    assert told(timeline.BootTimeline("a", steps)) == "layer:python failed"
    assert told(timeline.BootTimeline("a", steps[:2])) == "layer:base 1 s"
