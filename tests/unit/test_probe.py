"""Probes: what is planned and judged, the programs that run on nodes, and a throttled cable."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.link import measured
from support.predict import MISTRAL, collective, device, exactly, link, probes
from support.profiles import PROFILE, make_checkout

from orchestrator.core.errors import BadInput, UserError
from orchestrator.models.profiles import load as load_profile
from orchestrator.node import guard
from orchestrator.node.programs import environment
from orchestrator.node.programs import guarded as guarded_by
from orchestrator.performance.predict import inputs
from orchestrator.performance.probe import node_link
from orchestrator.performance.probe.judge import anomalies, used, way
from orchestrator.performance.probe.node_state import cards, negotiated
from orchestrator.performance.probe.plan import (
    AT_ONCE,
    BETWEEN,
    TURNS,
    between,
    left_out,
    sizes,
    turns,
)
from orchestrator.performance.probe.run import PARTS, store
from orchestrator.performance.probe.tables import tables
from orchestrator.performance.results.probe import Before, Probes, Spread, StorageRates, spread
from orchestrator.profile import Node, Profile
from orchestrator.provision.machines.switch import bits_per_s

#: The small profile, with a cable between its compute nodes that carries what lan has between them.
CARRYING = PROFILE.replace("10.0.1.0/30}", "10.0.1.0/30, carries: lan}")
PROBED = "lan"


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("ORCHESTRATE_CHECKOUT", str(tmp_path / "plain"))
    return load_profile(make_checkout(tmp_path / "plain"))


@pytest.fixture
def carrying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    monkeypatch.setenv("ORCHESTRATE_CHECKOUT", str(tmp_path / "carrying"))
    return load_profile(make_checkout(tmp_path / "carrying", CARRYING))


def many(profile: Profile, count: int) -> list[Node]:
    """So many nodes that have a link on one network."""
    node = profile.compute_nodes[0]
    links = {PROBED: node.links[PROBED]}
    return [node.model_copy(update={"name": f"n{i}", "links": links}) for i in range(count)]


def members(profile: Profile, nodes: Sequence[Node]) -> dict[str, list[str]]:
    return {name: [each.name for each in nodes if name in each.links] for name in profile.networks}


# What is planned.


def test_messages_are_of_the_models_width() -> None:
    assert sizes({"hidden_size": 128})[0] == 256
    assert sizes({"text_config": {"hidden_size": 64}})[0] == 128
    assert sizes({})[0] == 8192  # a width that is not known
    assert max(sizes({"hidden_size": 16384})) <= 16 << 20
    assert {tokens * 6144 * 2 for tokens in (1, 8, 32, 128)} <= set(sizes({"hidden_size": 6144}))


def test_what_lies_between_two_messages_is_the_models() -> None:
    assert between({}, 2) == BETWEEN
    # 11.75 GB a token over two cards, with 113 all-reduces.
    assert between(MISTRAL, 2) == pytest.approx(11.75e9 / 2 / 113, rel=0.01)


def test_few_pairs_have_a_turn_each_on_every_network_of_both(profile: Profile) -> None:
    found = turns(members(profile, profile.nodes))
    assert all(len(turn) == 1 for turn in found)
    seen = {(frozenset((pair.a, pair.b)), pair.network) for (pair,) in found}
    assert len(found) == len(seen) == 4
    assert (frozenset(("left", "right")), "usb4") in seen
    assert {pair for pair, network in seen if network == "lan"} == {
        frozenset(pair) for pair in combinations(("head", "left", "right"), 2)
    }
    assert left_out(members(profile, profile.nodes)) == 0


@pytest.mark.parametrize("count", [2, 7, 8])
def test_every_pair_has_a_turn_as_long_as_there_are_enough(profile: Profile, count: int) -> None:
    found = [pair for turn in turns(members(profile, many(profile, count))) for pair in turn]
    names = [frozenset((pair.a, pair.b)) for pair in found]
    assert sorted(map(sorted, names)) == sorted(
        [sorted(pair) for pair in combinations([f"n{i}" for i in range(count)], 2)]
    )


@pytest.mark.parametrize("count", [9, 40, 100])
def test_of_many_nodes_each_is_in_a_pair_and_never_in_two_at_once(
    profile: Profile, count: int
) -> None:
    nodes = many(profile, count)
    found = turns(members(profile, nodes))
    assert len(found) <= TURNS and max(map(len, found)) <= AT_ONCE
    for turn in found:
        names = [name for pair in turn for name in (pair.a, pair.b)]
        assert len(names) == len(set(names))
    pairs = {(pair.a, pair.b) for turn in found for pair in turn}
    assert {name for pair in pairs for name in pair} == {node.name for node in nodes}
    assert left_out(members(profile, nodes)) == count * (count - 1) // 2 - len(pairs)


def test_variables_are_those_of_vllms_process(profile: Profile) -> None:
    text = PROFILE.replace("env: {}", 'env: {CARD: "{interface}"}')
    text = text.replace("args: {dtype: half}", 'args: {dtype: half}\n  env: {OMP_NUM_THREADS: "3"}')
    profile = load_profile(make_checkout(profile.path.parents[2] / "env", text))
    left, right = (environment(profile, node) for node in profile.compute_nodes)
    assert left["CARD"] == left["GLOO_SOCKET_IFNAME"] == "enp5s0"
    assert right["CARD"] == right["GLOO_SOCKET_IFNAME"] == "enp6s0"
    assert left["OMP_NUM_THREADS"] == right["OMP_NUM_THREADS"] == "3"


# What is judged.


def card(count: int, master: str | None = None) -> dict[str, Any]:
    return {"bytes": count, "negotiated": None, "master": master}


def test_the_interface_that_took_most_is_the_one_that_was_used() -> None:
    before = {"a": card(5), "b": card(100)}
    assert used(before, {"a": card(900), "b": card(110)}) == "a"
    assert used(before, before) == ""


def test_a_bridge_counts_for_its_ports() -> None:
    before = {"port": card(0, "br0"), "br0": card(0), "other": card(0)}
    after = {"port": card(1000, "br0"), "br0": card(980), "other": card(10)}
    assert used(before, after) == "br0"
    assert used({"port": card(0, "br0")}, {"port": card(9, "br0")}) == "port"


def test_the_way_is_the_network_that_carries(profile: Profile, carrying: Profile) -> None:
    left, right = profile.compute_nodes
    assert way(profile, left, right, "lan") == "lan"
    head, left, right = carrying.nodes
    assert way(carrying, left, right, "lan") == "usb4"
    assert way(carrying, head, left, "lan") == "lan"
    assert way(carrying, left, right, "usb4") == "usb4"


def lines(profile: Profile, **parts: Any) -> str:
    clean = {"devices": (), "links": ()}
    return "\n".join(anomalies(profile, probes(**clean | parts)))


def by(interfaces: tuple[str, str]) -> tuple[Any, ...]:
    found = replace(link("left", "right", 1e-4, 1e8), interfaces=interfaces)
    return (replace(found, negotiated_bits_per_s=(None, None)),)


def test_another_interface_than_the_profiles_is_odd(profile: Profile, carrying: Profile) -> None:
    assert lines(profile, links=by(("enp5s0", "enp6s0"))) == ""
    said = lines(profile, links=by(("thunderbolt0", "enp6s0")))
    assert "left used thunderbolt0, not enp5s0" in said and "small.yml:" in said
    # Where a cable carries it, the switch's interface is the wrong one.
    assert lines(carrying, links=by(("thunderbolt0", "thunderbolt1"))) == ""
    assert "right used enp6s0, not thunderbolt1" in lines(
        carrying, links=by(("thunderbolt0", "enp6s0"))
    )
    assert "no interface" in lines(profile, links=by(("", "enp6s0")))


def test_a_collective_on_another_interface_is_odd(carrying: Profile) -> None:
    group = collective(("left", "right"), {256: 1e-4})
    right = replace(group, interfaces=("thunderbolt0", "thunderbolt1"))
    assert lines(carrying, collectives=(right,)) == ""
    wrong = replace(group, interfaces=("thunderbolt0", "enp6s0"))
    assert "all-reduce by gloo: right used enp6s0" in lines(carrying, collectives=(wrong,))


def test_figures_that_should_not_be_believed_are_said(profile: Profile) -> None:
    (pair,) = by(("enp5s0", "enp6s0"))
    wide = replace(pair, bytes_per_s=Spread(1e8, 5e7, 1.1e8, 5))
    assert "left, right over lan: repeats differ by up to 60%" in lines(profile, links=(wide,))
    slow = replace(pair, negotiated_bits_per_s=(10**10, 25 * 10**8))
    assert "32% of the negotiated speed" in lines(profile, links=(slow,))
    cable = replace(slow, network="usb4", interfaces=("thunderbolt0", "thunderbolt1"))
    assert "negotiated different speeds" in lines(profile, links=(cable,))
    assert "negotiated different" not in lines(profile, links=(slow,))
    devices = (device("left", 10e9), device("right", 4e9))
    assert "right: its memory bandwidth is 40%" in lines(profile, devices=devices)
    busy = lines(profile, before=Before({"left": 0.1, "right": 0.9}, 2.0))
    assert "right: its processors were 90% busy" in busy and "left:" not in busy
    assert "was answering 2 requests" in busy
    assert "7 more pairs" in lines(profile, pairs_left_out=7)


def test_what_is_held_in_memory_is_no_rate_of_a_disk(profile: Profile) -> None:
    rates = StorageRates("left", "m", exactly(1e9), exactly(1e9), 10**9, "tmpfs", uncached=False)
    assert "is in memory (tmpfs)" in lines(profile, storage=(rates,))
    assert lines(profile, storage=(replace(rates, uncached=True),)) == ""
    assert "too small" in lines(profile, storage=(replace(rates, uncached=True, bytes=10**6),))


def test_a_spread_is_of_its_values() -> None:
    assert spread([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0, 3)
    assert spread([2.0, 1.0, 3.0]).relative == 1.0


# What is kept and shown.


def test_predictions_take_whole_rounds_only(profile: Profile) -> None:
    with pytest.raises(UserError, match="no measurements of small"):
        inputs.probes("small")
    whole = probes(time="2026-11-26T07:00:00+00:00")
    assert store(whole, whole=True).parent.name == inputs.PROBES
    part = store(probes(time="2026-11-26T08:00:00+00:00"), whole=False)
    assert part.parent.name == PARTS
    assert inputs.probes("small") == whole
    # Figures of an older version, which noted less, can still be read.
    document = json.loads(part.read_text())
    for key in ("before", "pairs_left_out"):
        del document[key]
    part.write_text(json.dumps(document))
    assert inputs.probes("small", part).before == Before()


def test_tables_show_each_figure_with_its_spread(profile: Profile) -> None:
    measured = Spread(2e-4, 1e-4, 3e-4, 5)
    pair = replace(link("left", "right", 1e-4, 1e8), by_size_s={256: measured, 4096: measured})
    storage = (StorageRates("left", "m", exactly(1e9), exactly(2e9), 10**9, "ext4", True),)
    group = collective(("left", "right"), {256: 3e-3})
    console = Console(width=200)
    with console.capture() as said:
        for table in tables(probes(links=(pair,), storage=storage, collectives=(group,))):
            console.print(table)
    shown = said.get()
    assert "10 GB/s" in shown and "bfloat16 50" in shown and "800 Mb/s" in shown
    assert "200 µs ±50%" in shown and "all-reduce, gloo" in shown and "3 ms" in shown
    assert "1000 MB on ext4" in shown and "1 Gb/s, 1 Gb/s" in shown
    empty: Probes = probes(devices=(), links=())
    assert list(tables(empty)) == []


# What runs on nodes.


def test_what_cards_negotiated_is_read_from_the_kernel(tmp_path: Path) -> None:
    """As /sys/class/net has a card, a bridge over it, a cable of USB4, and a virtual card."""
    net = tmp_path / "net"
    host = tmp_path / "0-1"
    for path in (host / "0-1.0", net / "eth0/device", net / "br0", net / "usb0", net / "veth0"):
        path.mkdir(parents=True)
    (host / "tx_speed").write_text("20.0 Gb/s\n")
    (host / "tx_lanes").write_text("2\n")
    (net / "usb0/device").symlink_to(host / "0-1.0")
    (net / "br0/lower_eth0").symlink_to(net / "eth0")
    (net / "eth0/master").symlink_to(net / "br0")
    (net / "eth0/speed").write_text("2500\n")
    (net / "veth0/speed").write_text("10000\n")
    found = {name: negotiated(name, net) for name in ("eth0", "br0", "usb0", "veth0")}
    assert found == {"eth0": 25 * 10**8, "br0": 25 * 10**8, "usb0": 4 * 10**10, "veth0": None}
    (net / "eth0/speed").write_text("-1\n")  # no cable
    assert negotiated("eth0", net) is None
    assert {name: each["master"] for name, each in cards(net).items()} == {
        "eth0": "br0", "br0": None, "usb0": None, "veth0": None,
    }  # fmt: skip


def guarded(seconds: float, *argv: str) -> list[str]:
    return guarded_by(seconds, argv, sys.executable)


def test_a_guarded_program_ends_as_it_would_alone() -> None:
    done = subprocess.run(
        guarded(60, "sh", "-c", "cat; exit 3"), input="in", capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (3, "in")


#: Starts a child in a session of its own, and prints its process id.
LEAVES = "setsid sleep 1000 >&2 & echo $!;"


@pytest.mark.parametrize(("then", "code"), [("wait", guard.LATE), ("exit 0", 0)])
def test_what_a_guarded_program_started_ends_with_it(then: str, code: int) -> None:
    done = subprocess.run(
        guarded(2, "sh", "-c", f"{LEAVES} {then}"), stdout=subprocess.PIPE, text=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == code
    assert not Path("/proc", done.stdout.strip()).exists()


def test_a_guarded_program_ends_when_nobody_listens_any_more() -> None:
    process = subprocess.Popen(
        guarded(1000, "sh", "-c", "echo $$; exec sleep 1000 >/dev/null"), stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout is not None
    inside = process.stdout.readline().strip()
    process.stdout.close()
    process.wait(timeout=60)
    assert not Path("/proc", inside).exists()


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_a_link_is_measured_by_two_processes_that_talk(port: int) -> None:
    found = measured(port, [], [], ("127.0.0.1", "127.0.0.1"))
    assert set(found["by_size_s"]) == {"256", "65536"}
    assert 0 < min(found["latency_s"]) < 1 and min(found["bytes_per_s"]) > 0


def test_a_link_that_nobody_answers_is_an_error_and_no_hang(
    monkeypatch: pytest.MonkeyPatch, port: int
) -> None:
    monkeypatch.setattr(node_link, "WAIT", 0.3)
    with pytest.raises(SystemExit, match=f"TCP, 127.0.0.1 port {port}: .*refused"):
        node_link.main(["ask", "127.0.0.1", str(port), "127.0.0.1", "256"])
    with pytest.raises(SystemExit, match=r"no answer within 0\.3 s"):
        node_link.main(["serve", "127.0.0.1", str(port)])


# A throttled cable.


@pytest.mark.parametrize(
    ("text", "bits"), [("100Mbit", 10**8), ("2.5gbit", 25 * 10**8), ("800kbit", 800_000)]
)
def test_a_rate_is_bits_a_second(text: str, bits: int) -> None:
    assert bits_per_s(text) == bits


@pytest.mark.parametrize("text", ["100", "100mbps", "fast", "-1mbit", "1bit", "9999gbit"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="Invalid cable rate"):
        bits_per_s(text)


def test_a_cable_that_carries_what_its_ends_negotiated_is_not_odd(profile: Profile) -> None:
    (pair,) = by(("enp5s0", "enp6s0"))
    good = replace(pair, bytes_per_s=exactly(117.5e6), negotiated_bits_per_s=(10**9, 10**9))
    assert lines(profile, links=(good,)) == ""
