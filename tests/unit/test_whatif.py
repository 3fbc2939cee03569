"""Devices from files, links in words, machines that are not there."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import TypeAdapter
from support.predict import device, probes

from orchestrator.core.errors import BadInput
from orchestrator.performance.predict import whatif
from orchestrator.performance.predict.links import LinkRate
from orchestrator.performance.predict.rates import Machines
from orchestrator.performance.results.probe import Probes

CARD = device("left", 410e9, device="xpu")
THERE = probes(devices=(CARD,))


@pytest.mark.parametrize("name", whatif.shipped())
def test_devices_that_come_along_say_where_they_are_from(name: str) -> None:
    rates, source = whatif.device(name)
    assert rates.memory_bytes_per_s.median > 1e11 and rates.memory_total_bytes > 1e10
    assert source.startswith(("measured: ", "published: ")) and len(source) > 60


def test_a_file_of_probes_is_a_device(tmp_path: Path) -> None:
    file = tmp_path / "probes.json"
    file.write_bytes(TypeAdapter(Probes).dump_json(THERE))
    rates, source = whatif.device(str(file))
    assert rates == CARD and source == f"measured: {file}, {THERE.time}"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("10Gbit:20us", LinkRate(20e-6, 1.175e9)),
        ("2.5gbit", LinkRate(30e-6, 293.75e6)),
        ("100Mbit:1ms", LinkRate(1e-3, 11.75e6)),
    ],
)
def test_links_in_words(text: str, found: LinkRate) -> None:
    read = whatif.link(text)
    assert read.latency_s == pytest.approx(found.latency_s)
    assert read.bytes_per_s == pytest.approx(found.bytes_per_s)


@pytest.mark.parametrize("text", ["10", "Gbit", "0Gbit", "1..2Gbit", "10Gbit:0us", "10Gbit:5"])
def test_what_is_no_link(text: str) -> None:
    with pytest.raises(BadInput, match="not a link"):
        whatif.link(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: x", "memory_bytes_per_s"),
        ("devices: []", "does not hold probes with a device"),
    ],
)
def test_files_that_are_no_device(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "card.yml"
    file.write_text(text)
    with pytest.raises(BadInput) as raised:
        whatif.device(str(file))
    assert says in str(raised.value)


def test_an_unknown_device_names_the_nearest() -> None:
    with pytest.raises(BadInput) as raised:
        whatif.device("a771")
    assert "did you mean 'a770'" in str(raised.value)


def test_devices_are_one_or_one_for_each_node() -> None:
    card, _ = whatif.device("a770")
    with pytest.raises(BadInput, match="2 devices for 3 nodes"):
        whatif.changed(None, 3, [card, card], wanted=True)
    mixed = whatif.changed(None, None, [card, whatif.device("h200")[0]], wanted=True)
    assert mixed.nodes == ("node0", "node1")
    assert [each.name for each in mixed.probes.devices] == ["Intel Arc A770, 16 GB", "NVIDIA H200"]


def test_another_card_keeps_the_host() -> None:
    """Launching an operation is the host's work; on a new node it is as on the first one."""
    there = Machines(("left",), "lan", THERE)
    card, _ = whatif.device("a770")
    found = whatif.changed(there, 2, [card], wanted=True).probes.devices
    assert [each.operation_s for each in found] == [CARD.operation_s] * 2
    assert [each.memory_bytes_per_s for each in found] == [card.memory_bytes_per_s] * 2
