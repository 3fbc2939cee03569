"""A throttled cable, measured by the probe itself."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.link import as_throttled, measured
from support.profiles import make_checkout

from orchestrator.models.profiles import load as load_profile
from orchestrator.performance.results.probe import spread
from orchestrator.profile import Profile
from orchestrator.provision.machines import netns
from orchestrator.provision.machines.switch import Switch

PROBED = "lan"


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("ORCHESTRATE_CHECKOUT", str(tmp_path / "plain"))
    return load_profile(make_checkout(tmp_path / "plain"))


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


SPACES = "orchestrate-test-probe"


@pytest.fixture
def switch(profile: Profile) -> Iterator[Switch]:
    """Both compute nodes' cables, with their addresses on the probed network."""
    made = Switch(profile, SPACES)
    made.remove()
    try:
        made.make()
        for node in profile.compute_nodes:
            space = made.plug_namespace(node)
            card = node.links[PROBED].interface
            netns.ip(space, "address", "add", f"{node.links[PROBED].address}/24", "dev", card)
            netns.ip(space, "link", "set", card, "up")
        yield made
    finally:
        made.remove()


def test_a_throttled_cable_is_measured_as_it_is_and_set_free(
    switch: Switch, profile: Profile, port: int
) -> None:
    left, right = profile.compute_nodes
    here, there = (["ip", "netns", "exec", switch.named(node.name)] for node in (left, right))
    addresses = (str(left.links[PROBED].address), str(right.links[PROBED].address))
    for _ in range(2):  # a second time changes nothing
        switch.throttle(right, PROBED, 10**8)
    assert switch.throttled(right) == {PROBED: 10**8}
    assert switch.throttled(left) == {}
    limited = spread(measured(port, here, there, addresses)["bytes_per_s"])
    assert as_throttled(limited, 10**8), limited
    for _ in range(2):
        switch.throttle(right, PROBED, None)
    assert switch.throttled(right) == {}
    assert spread(measured(port, here, there, addresses)["bytes_per_s"]).high > 1.5 * limited.high
    switch.throttle(left, PROBED, 10**6)
    switch.remove()
    assert switch.throttled(left) == {}
    assert not any(name.startswith(SPACES) for name in netns.names())
