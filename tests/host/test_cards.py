"""The control node's network cards: taken from a "host" that is a namespace, and given back."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.profiles import PROFILE, make_checkout

from orchestrator.core.errors import UserError
from orchestrator.models.profiles import load
from orchestrator.provision.machines import netns
from orchestrator.provision.machines.cards import Cards

HOST, AWAY = "orchestrate-test-host", "orchestrate-test-away"
PREFIX = "orchestrate-test-cards"
INSIDE = f"{PREFIX}-head"
CARD, MAC = "enx8cae4cf44e21", "8c:ae:4c:f4:4e:21"


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The test is on a host with two cards: one for the cluster, `lan0` with its default route."""
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    for space in (HOST, AWAY, INSIDE):
        netns.delete(space)
    try:
        for space in (HOST, AWAY):
            netns.create(space)
        for name, mac, end in ((CARD, MAC, "end0"), ("lan0", "02:00:00:00:00:02", "end1")):
            add = ["link", "add", name, "address", mac, "type", "veth"]
            netns.ip(HOST, *add, "peer", "name", end, "netns", AWAY)
            netns.ip(HOST, "link", "set", name, "up")
            netns.ip(AWAY, "link", "set", end, "up")
        netns.ip(HOST, "address", "add", "10.0.0.1/24", "dev", CARD)
        netns.ip(HOST, "address", "add", "10.9.0.2/24", "dev", "lan0")
        netns.ip(HOST, "route", "add", "default", "via", "10.9.0.1")
        with netns.entered(HOST):
            netns.host.cache_clear()
            netns.host()
            yield
    finally:
        netns.host.cache_clear()
        for space in (HOST, AWAY, INSIDE):
            netns.delete(space)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes Cards of the small profile, with a text of it replaced."""
    monkeypatch.setenv("ORCHESTRATE_CHECKOUT", str(tmp_path))
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "state"))
    file = make_checkout(tmp_path)

    def cards(old: str = "", new: str = "") -> Cards:
        text = PROFILE.replace("mac: 8C:AE:4C:F4:4E:21, address", f"mac: {MAC}, address")
        assert old in text
        file.write_text(text.replace(old, new) if old else text)
        return Cards(load(file), PREFIX)

    return cards


def links(space: str) -> dict[str, Any]:
    argv = ["ip", "-n", space, "-json", "-details", "address", "show"]
    shown = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return {one["ifname"]: one for one in json.loads(shown)}


def addresses(link: dict[str, Any]) -> list[str]:
    return [
        f"{one['local']}/{one['prefixlen']}"
        for one in link["addr_info"]
        if one["scope"] == "global"
    ]


def answers(space: str, address: str) -> bool:
    """Whether an address takes or refuses a connection from a namespace."""
    try:
        with netns.entered(space), socket.create_connection((address, 9), 2):
            return True
    except OSError as error:
        return isinstance(error, ConnectionRefusedError)


def test_a_card_is_taken_once_and_given_back_as_it_was(host: None, make: Any) -> None:
    cards = make()
    before = addresses(links(HOST)[CARD])
    for _ in range(2):
        assert cards.plug_namespace(cards.profile.control) == INSIDE
        assert CARD not in links(HOST)
        inside = links(INSIDE)[CARD]
        assert inside["address"] == MAC and not addresses(inside)
    assert addresses(links(HOST)["lan0"]) == ["10.9.0.2/24"]
    # By another process that knows what was written down only.
    make().remove()
    given = links(HOST)[CARD]
    assert "UP" in given["flags"] and addresses(given) == before == ["10.0.0.1/24"]
    assert INSIDE not in netns.names()
    make().remove()


def test_a_card_is_found_by_its_mac_and_called_as_the_profile_says(host: None, make: Any) -> None:
    cards = make(f"interface: {CARD}", "interface: cluster0")
    cards.plug_namespace(cards.profile.control)
    assert links(INSIDE)["cluster0"]["address"] == MAC
    cards.remove()
    assert links(HOST)[CARD]["address"] == MAC


def test_a_card_that_is_not_there_is_told_with_those_that_are(host: None, make: Any) -> None:
    cards = make(f"mac: {MAC}", "mac: 8c:ae:4c:f4:4e:99")
    with pytest.raises(UserError) as told:
        cards.plug_namespace(cards.profile.control)
    where = "small.yml:11: control.links.lan: this machine has no network card"
    assert f"{where} {CARD} (8c:ae:4c:f4:4e:99)" in told.value.message
    for card in (f"{CARD} ({MAC})", "lan0 (02:00:00:00:00:02)"):
        assert card in told.value.hint
    assert INSIDE not in netns.names()


LAN = f"interface: {CARD}, mac: {MAC}"


def test_what_the_host_is_reached_by_is_not_taken(
    host: None, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = make(LAN, "interface: lan0")
    with pytest.raises(UserError, match="lan0 leads to this machine's default route") as told:
        cards.plug_namespace(cards.profile.control)
    assert "shared: true" in told.value.hint
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.9 4711 10.0.0.1 22")
    cards = make()
    with pytest.raises(UserError, match="carries the SSH session"):
        cards.plug_namespace(cards.profile.control)
    netns.ip(HOST, "link", "add", "br0", "type", "bridge")
    netns.ip(HOST, "link", "set", CARD, "master", "br0")
    with pytest.raises(UserError, match=f"{CARD} belongs to br0"):
        make().plug_namespace(cards.profile.control)
    assert {CARD, "lan0"} <= set(links(HOST))


def test_a_shared_card_stays_the_hosts(host: None, make: Any) -> None:
    cards = make(LAN, "interface: lan0, shared: true")
    for _ in range(2):
        cards.plug_namespace(cards.profile.control)
        inside = links(INSIDE)["lan0"]
        assert inside["linkinfo"]["info_kind"] == "macvlan"
        assert inside["address"] == cards.mac(cards.profile.control, "lan")
    assert addresses(links(HOST)["lan0"]) == ["10.9.0.2/24"]
    # Both are on the wire: the control node, and the host with its own address.
    netns.ip(INSIDE, "address", "add", "10.0.0.1/24", "dev", "lan0")
    netns.ip(INSIDE, "link", "set", "lan0", "up")
    netns.ip(AWAY, "address", "add", "10.0.0.100/24", "dev", "end1")
    netns.ip(AWAY, "address", "add", "10.9.0.1/24", "dev", "end1")
    for address in ("10.0.0.1", "10.9.0.2"):
        assert answers(AWAY, address), address
    cards.remove()
    assert addresses(links(HOST)["lan0"]) == ["10.9.0.2/24"]
