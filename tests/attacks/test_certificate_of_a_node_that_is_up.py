"""The door: the host certificate of a node that is up, for somebody who sends from its address.

An account of the node has that address, and so has a machine that took it. Real nftables, a real
boot service, a real sshd as the node's.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from support.account import UID
from support.boot_service import (
    ADDRESS,
    DOCUMENT,
    MAC,
    NEIGHBOURS,
    OTHER_ADDRESS,
    OTHER_MAC,
    Running,
    new_key,
)
from support.golden import GOLDEN, states
from support.sshd import sshd
from support.web import NFT, text

from orchestrator.cluster.status import NodeStatus, Status
from orchestrator.models.profiles import load
from orchestrator.models.serving import Layout
from orchestrator.node.trust import open_trust
from orchestrator.provision.machines import netns
from orchestrator.provision.netboot import look
from orchestrator.provision.netboot.diary import Diary
from orchestrator.provision.netboot.images import ImageChoice

NODE, CONTROL = "attack-up-node", "attack-up-control"
LOOPBACK = "127.0.0.1"
#: Of a socket: MPTCP, whose first packet the kernel sends from a socket of its own.
PLAIN, MPTCP = 0, 262
KNOCKS = """
import socket, sys
address, *numbers = sys.argv[1:]
port, kind = map(int, numbers)
with socket.socket(socket.AF_INET, socket.SOCK_STREAM, kind) as knocker:
    knocker.settimeout(5)
    print("refused" if knocker.connect_ex((address, port)) else "let out")
"""


@pytest.fixture
def boot_port() -> Iterator[tuple[str, int]]:
    """The control node's, which listens, seen from a node with its rules in force."""
    profile = load(GOLDEN / "sim/profile.yml")
    node, control = profile.compute_nodes[0], profile.control
    address, port = str(profile.boot_link(control).address), profile.boot.http_port
    for space in (NODE, CONTROL):
        netns.delete(space)
        netns.create(space)
    try:
        peer = ["peer", "name", "eth0", "netns", CONTROL]
        netns.ip(NODE, "link", "add", "eth0", "type", "veth", *peer)
        for space, own in ((NODE, profile.boot_link(node).address), (CONTROL, address)):
            netns.ip(space, "address", "add", f"{own}/24", "dev", "eth0")
            netns.ip(space, "link", "set", "eth0", "up")
        rules = text(states(profile)[node.name], "firewall.nft")
        argv = ["ip", "netns", "exec", NODE, str(NFT), "-f", "-"]
        subprocess.run(argv, input=rules, text=True, check=True)
        with ExitStack() as listening, netns.entered(CONTROL):
            for each in (port, port + 1):
                listening.enter_context(closing(socket.create_server((address, each))))
            yield address, port
    finally:
        for space in (NODE, CONTROL):
            netns.delete(space)


def knocks(uid: int, address: str, port: int, kind: int = PLAIN) -> str:
    who = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    argv = ["ip", "netns", "exec", NODE, *who, sys.executable, "-I", "-c", KNOCKS]
    argv += [address, str(port), str(kind)]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.skipif(NFT is None, reason="needs nft (Debian: nftables)")
@pytest.mark.parametrize("kind", [PLAIN, MPTCP])
def test_only_root_on_a_node_reaches_the_boot_port(boot_port: tuple[str, int], kind: int) -> None:
    address, port = boot_port
    assert knocks(0, address, port, kind) == "let out"
    assert knocks(UID, address, port, kind) == "refused"
    assert knocks(UID, address, port + 1, kind) == "let out"


@contextmanager
def up(service: Running, home: Path) -> Iterator[None]:
    """The node's sshd answers; the service is told where."""
    identity = open_trust("attack").host_identity(["compute0"])
    with sshd(home, identity, "") as port:
        node = DOCUMENT["nodes"][MAC] | {"address": LOOPBACK}  # type: ignore[index]
        nodes = {MAC: node, OTHER_MAC: DOCUMENT["nodes"][OTHER_MAC]}  # type: ignore[index]
        (service.home / "arp").write_text(NEIGHBOURS.replace(ADDRESS, LOOPBACK))
        service.publish(DOCUMENT | {"nodes": nodes, "ssh_port": port})
        yield


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "keys"))


def test_a_boot_of_a_node_that_is_up_is_refused_and_shown(service: Running, tmp_path: Path) -> None:
    with up(service, tmp_path / "sshd"):
        assert service.script(address=LOOPBACK).status_code == 423
        assert service.ask("GET", f"/boot/begin?mac={MAC}", address=LOOPBACK).status_code == 423
        assert not service.events("script")
        service.refused(2)
    profile = load(GOLDEN / "sim/profile.yml")
    logs = {"events": service.events()}
    (told,) = look.seen(profile, Diary(tmp_path / "timeline.jsonl"), logs, ()).netboot.refused
    assert (told.mac, told.address, told.count) == (MAC, LOOPBACK, 2)
    assert re.fullmatch(r"compute0 is up: .* accepts SSH connections", told.text)


def test_a_boot_that_began_before_the_node_was_up_gets_nothing_then(
    service: Running, tmp_path: Path
) -> None:
    """Such as one that began in a moment without the node's network."""
    with up(service, tmp_path / "first"):
        pass
    nonce, key = service.boot(address=LOOPBACK), new_key(tmp_path)
    with up(service, tmp_path / "second"):
        assert service.identity(nonce, key, address=LOOPBACK).status_code == 423
        assert not service.events("identity")


def test_a_certificate_that_another_machine_got_is_shown(service: Running, tmp_path: Path) -> None:
    """It took the node's place for a while, and the node is back with its own key."""
    own, other = new_key(tmp_path), new_key(tmp_path, "other")
    node = NodeStatus("compute0", ADDRESS, "on", "running", "", {}, "-", host_key=own.strip())
    profile = load(GOLDEN / "sim/profile.yml")

    def told() -> list[tuple[str, str]]:
        logs = {"events": service.events()}
        diary = Diary(tmp_path / "timeline.jsonl")
        seen = look.seen(profile, diary, logs, (), [node.name for node in profile.nodes])
        status = Status(
            profile=profile.name,
            image="pxe",
            image_id="",
            layout=Layout(tensor=2, pipeline=1, expert=False, accelerators=2),
            endpoint="",
            model="",
            models=[],
            note="",
            nodes=[node],
            choice=ImageChoice(),
            seen=seen,
        )
        return list(status.warnings())

    assert service.identity(service.boot(), own).status_code == 200
    assert told() == []
    assert service.identity(service.boot(), other).status_code == 200
    ((subject, text),) = told()
    assert subject == "compute0's certificate" and "trust rotate" in text


def test_a_node_that_was_switched_off_boots_again(service: Running, tmp_path: Path) -> None:
    """However soon after a stranger had asked in its name."""
    with up(service, tmp_path / "sshd"):
        assert service.script(address=LOOPBACK).status_code == 423
    deadline = time.monotonic() + 30
    while service.script(address=LOOPBACK).status_code == 423:
        assert time.monotonic() < deadline, "the node is still taken to be up"
        time.sleep(0.2)
    nonce = service.boot(address=LOOPBACK)
    assert service.identity(nonce, new_key(tmp_path), address=LOOPBACK).status_code == 200


def test_a_node_that_answers_nothing_holds_no_other_boot(service: Running) -> None:
    """And boots itself: its first packets may be lost."""
    with socket.socket() as deaf, ExitStack() as waiting:
        deaf.bind((ADDRESS, 0))
        deaf.listen(0)  # what comes beyond that is not answered
        for _ in range(4):
            each = waiting.enter_context(socket.socket())
            each.setblocking(False)
            each.connect_ex(deaf.getsockname())
        service.publish(DOCUMENT | {"ssh_port": deaf.getsockname()[1]})
        codes: list[int] = []
        slow = threading.Thread(target=lambda: codes.append(service.script().status_code))
        slow.start()
        for _ in range(3):
            assert service.script(OTHER_MAC, OTHER_ADDRESS).status_code == 200
        assert codes == []
        slow.join(30)
        assert codes == [200]
