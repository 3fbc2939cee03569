"""A stranger on the cluster's network, before a node's firewall: real nftables, two namespaces."""

from __future__ import annotations

import os
import re
import shlex
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.golden import GOLDEN, states
from support.web import NFT, text

from orchestrator.core.run import run
from orchestrator.models.profiles import load
from orchestrator.node.firewall import IN_FORCE, RULES, UNIT
from orchestrator.provision.machines import netns

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(NFT is None, reason="needs nft (Debian: nftables)"),
]

NODE, OTHERS = "attack-node", "attack-others"
STRANGER = "10.77.0.99"
PORT = 40001  # such as Linux gives to Ray


@dataclass
class Firewall:
    """A node's rules and their unit, and what others on its network can do."""

    rules: Path
    unit: str
    address: str
    #: Another node's, which the rules let in.
    friend: str

    def in_node(self, *words: str) -> int:
        return run(["ip", "netns", "exec", NODE, *words], ok=None).code

    def set(self, rules: str | None = None) -> int:
        """As systemd does at the unit's start."""
        if rules is not None:
            self.rules.write_text(rules)
        code = 0
        for command in self.commands("ExecStart"):
            code = code or self.in_node(*command)
        return code

    def commands(self, setting: str) -> list[list[str]]:
        found = re.findall(rf"^{setting}=(.*)$", self.unit, re.MULTILINE)
        return [shlex.split(line.replace(RULES, str(self.rules))) for line in found]

    def listen(self, port: int = PORT) -> socket.socket:
        with netns.entered(NODE):
            return socket.create_server((self.address, port))

    def connect(self, source: str, port: int = PORT) -> socket.socket:
        with netns.entered(OTHERS):
            return socket.create_connection((self.address, port), 5, source_address=(source, 0))

    def lets_in(self, source: str, port: int = PORT) -> bool:
        try:
            self.connect(source, port).close()
        except ConnectionRefusedError:
            return False
        return True

    def without(self, address: str) -> str:
        """The rules once the node at ``address`` has left the profile."""
        changed = re.sub(rf", {re.escape(address)}\b", "", self.rules.read_text())
        assert changed != self.rules.read_text()
        return changed


@pytest.fixture
def firewall(tmp_path: Path) -> Iterator[Firewall]:
    profile = load(GOLDEN / "sim/profile.yml")
    node, other = profile.compute_nodes[:2]
    state = states(profile)[node.name]
    firewall = Firewall(
        tmp_path / "firewall.nft",
        text(state, UNIT),
        str(profile.ray_address(node)),
        str(profile.ray_address(other)),
    )
    firewall.rules.write_text(text(state, "firewall.nft"))
    for space in (NODE, OTHERS):
        netns.delete(space)
        netns.create(space)
    try:
        netns.ip(
            NODE, "link", "add", "eth0", "type", "veth", "peer", "name", "eth1", "netns", OTHERS
        )
        for space, link, addresses in (
            (NODE, "eth0", [firewall.address]),
            (OTHERS, "eth1", [STRANGER, firewall.friend]),
        ):
            for address in addresses:
                netns.ip(space, "address", "add", f"{address}/24", "dev", link)
            netns.ip(space, "link", "set", link, "up")
        yield firewall
    finally:
        for space in (NODE, OTHERS):
            netns.delete(space)


def test_it_is_closed_at_each_moment_of_a_restart(firewall: Firewall) -> None:
    with closing(firewall.listen()):
        assert firewall.lets_in(STRANGER)  # nothing is set yet
        assert firewall.set() == 0
        assert (firewall.lets_in(STRANGER), firewall.lets_in(firewall.friend)) == (False, True)
        for setting in ("ExecStop", "ExecStopPost", "ExecStartPre", "ExecStart", "ExecStartPost"):
            for command in firewall.commands(setting):
                firewall.in_node(*command)
                assert not firewall.lets_in(STRANGER), command


def test_it_is_closed_while_it_is_restarted_again_and_again(firewall: Firewall) -> None:
    let_in, over = [], threading.Event()

    def knock() -> None:
        while not over.is_set():
            let_in.append(firewall.lets_in(STRANGER))

    with closing(firewall.listen()):
        firewall.set()
        knocking = threading.Thread(target=knock)
        knocking.start()
        for _ in range(40):
            for setting in ("ExecStop", "ExecStart"):
                for command in firewall.commands(setting):
                    firewall.in_node(*command)
        over.set()
        knocking.join(30)
    assert let_in and not any(let_in)


@pytest.mark.parametrize("wrong", ["table inet", "garbage", "table inet x { chain y { z } }"])
def test_rules_that_are_wrong_open_nothing(firewall: Firewall, wrong: str) -> None:
    good = firewall.rules.read_text()
    with closing(firewall.listen()):
        firewall.set()
        for command in firewall.commands("ExecStop"):
            firewall.in_node(*command)
        assert firewall.set(good + wrong + "\n") != 0
        assert not firewall.lets_in(STRANGER)
        assert firewall.lets_in(firewall.friend)


def test_what_it_guards_does_not_start_without_it(firewall: Firewall) -> None:
    """The units of Ray and vLLM ask first."""
    profile = load(GOLDEN / "sim/profile.yml")
    units = [
        text(states(profile)[node.name], name)
        for node, names in (
            (profile.control, ["ray-head.service"]),
            (profile.server, ["ray-worker.service", "vllm.service"]),
        )
        for name in names
    ]
    assert all(f"\nExecStartPre=+{IN_FORCE}\n" in unit for unit in units)
    asked = shlex.split(IN_FORCE)
    assert firewall.in_node(*asked) != 0
    firewall.set()
    assert firewall.in_node(*asked) == 0


def test_a_connection_that_new_rules_forbid_ends(firewall: Firewall) -> None:
    with closing(firewall.listen()) as server:
        firewall.set()
        with closing(firewall.connect(firewall.friend)) as client:
            inside, _ = server.accept()
            client.sendall(b"before")
            assert inside.recv(100) == b"before"
            firewall.set(firewall.without(firewall.friend))
            inside.settimeout(2)
            with pytest.raises(OSError):
                for _ in range(20):
                    client.sendall(b"after")
                    time.sleep(0.05)
            with pytest.raises(OSError):
                assert inside.recv(100) == b""
                raise ConnectionResetError
            inside.close()


def test_it_ends_for_who_does_not_heed_that_too(firewall: Firewall) -> None:
    """The other side drops resets, and goes on to acknowledge what the node still sends.

    conntrack soon forgets the connection. It then sees the node speak first, and takes what the
    other side sends for an answer: a rule for what is established would let that in.
    """
    with closing(firewall.listen()) as server:
        firewall.set()
        firewall.in_node("sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_timeout_close=1")
        drop = "add table ip t; add chain ip t c { type filter hook input priority 0; };"
        drop += " add rule ip t c tcp flags & rst == rst drop"
        run(["ip", "netns", "exec", OTHERS, str(NFT), drop])
        with closing(firewall.connect(firewall.friend)) as client:
            inside, _ = server.accept()
            firewall.set(firewall.without(firewall.friend))
            client.sendall(b"x")
            inside.settimeout(5)
            sender = threading.Thread(target=_send_until_refused, args=(inside,))
            sender.start()
            client.settimeout(1)
            received, deadline = 0, time.monotonic() + 6
            while time.monotonic() < deadline:
                try:
                    received += len(client.recv(1 << 20))
                except TimeoutError:
                    continue
            sender.join(30)
            inside.close()
    # What is in flight without an acknowledgement: the first window, and its repetitions.
    assert received < 256 << 10


def _send_until_refused(connection: socket.socket) -> None:
    try:
        for _ in range(512):
            connection.sendall(bytes(1 << 16))
    except OSError:
        return


def test_what_the_node_began_goes_on(firewall: Firewall) -> None:
    """To whomever it wants, and through a change of the rules."""
    with netns.entered(OTHERS):
        server = socket.create_server((STRANGER, PORT))
    with closing(server):
        firewall.set()
        with netns.entered(NODE):
            client = socket.create_connection((STRANGER, PORT), 5)
        with closing(client):
            outside, _ = server.accept()
            for rules in (None, firewall.without(firewall.friend)):
                firewall.set(rules)
                client.sendall(b"question")
                assert outside.recv(100) == b"question"
                outside.sendall(b"answer")
                assert client.recv(100) == b"answer"
            outside.close()
